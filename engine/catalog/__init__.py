"""What can be measured: bundled models, adapter types, strategies, and what each of them needs. Data and its readers.

Nothing here imports torch, transformers or peft, so that pages can use it.
"""

from engine.catalog.adapter_types import AdapterType, FieldEntry, adapter_type, adapter_types, check_options
from engine.catalog.architectures import ModelEntry, model, models
from engine.catalog.lookup import UnknownEntry
from engine.catalog.modules import ModuleGroup
from engine.catalog.strategies import Strategy, strategies, strategy

__all__ = [
    "AdapterType",
    "FieldEntry",
    "ModelEntry",
    "ModuleGroup",
    "Strategy",
    "UnknownEntry",
    "adapter_type",
    "adapter_types",
    "check_options",
    "model",
    "models",
    "strategies",
    "strategy",
]
