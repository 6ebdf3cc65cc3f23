"""Whether an adapter does the same in every block of a model, as far as its own fields tell. Builds nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.catalog import targets
from engine.catalog.adapter_requirements import saved_options
from engine.spec import FreshAdapter, SavedAdapter

# These types begin at a block counted from the last one.
_IN_SOME_BLOCKS = frozenset({"adaption_prompt"})
_BY_BLOCK = re.compile(r"layers_to_transform|layer_replication|exclude_modules|\w+_pattern")


def blocks_differ(adapter: FreshAdapter | SavedAdapter) -> bool:
    """Whether the adapter may be another one in one block than in the next: then a few blocks do not stand for all."""
    if isinstance(adapter, FreshAdapter):
        return _may_differ(adapter.type, adapter.target_modules, adapter.options)
    options, _ = saved_options(adapter)
    parameters = options.get("target_parameters") or ()
    return any(
        _may_differ(str(options.get("peft_type")).lower(), wanted, options)
        for wanted in (options.get("target_modules"), parameters)
    )


def _may_differ(kind: str, wanted: Any, options: Mapping[str, Any]) -> bool:
    if kind in _IN_SOME_BLOCKS or any(value and _BY_BLOCK.fullmatch(name) for name, value in options.items()):
        return True
    if isinstance(wanted, str):
        # A regular expression can pick blocks.
        return wanted not in targets.PRESETS
    return any(re.search(r"\d+\.", name) for name in wanted or ())
