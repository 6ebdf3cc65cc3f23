"""What can be measured: bundled models, adapter types, strategies, and what each of them needs; cards to run on. Data
and its readers.

Nothing here imports torch, transformers or peft, so that pages can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.catalog.abilities import cannot
from engine.catalog.adapter_types import AdapterType, FieldEntry, adapter_type, adapter_types
from engine.catalog.architectures import ModelEntry, model, models
from engine.catalog.cards import Card, card, cards
from engine.catalog.choices import FULL_FINE_TUNING, AdapterChoice, adapter_choices, adapter_label
from engine.catalog.lookup import UnknownEntry
from engine.catalog.modules import ModuleGroup
from engine.catalog.options import check_options
from engine.catalog.strategies import Strategy, strategies, strategy

if TYPE_CHECKING:
    from engine.spec import Measured

__all__ = [
    "FULL_FINE_TUNING",
    "AdapterChoice",
    "AdapterType",
    "Card",
    "FieldEntry",
    "ModelEntry",
    "ModuleGroup",
    "Strategy",
    "UnknownEntry",
    "adapter_choices",
    "adapter_label",
    "adapter_type",
    "adapter_types",
    "cannot",
    "card",
    "cards",
    "check_options",
    "model",
    "models",
    "snippet",
    "strategies",
    "strategy",
]


def snippet(spec: Measured, groups: Sequence[ModuleGroup] | None = None) -> str:
    """A short program to use a spec's adapter and strategy in one's own code; see :mod:`engine.catalog.snippets`."""
    # Not imported at the top: snippets read specs, and the module of specs reads this catalog.
    from engine.catalog.snippets import snippet as write

    return write(spec, groups)
