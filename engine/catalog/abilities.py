"""What an adapter can do and what not, by its type, its options, and what it is attached to. Data lookups; no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.catalog.adapter_types import AdapterType
from engine.catalog.modules import ModuleGroup

# Everything that an adapter may be unable to do, with what it means. The kinds of specs are among it.
ABILITIES: Mapping[str, str] = {
    "init": "attach a fresh adapter",
    "merge": "merge into the base weights",
    "unmerge": "take a merge back",
    "train": "train",
    "inference": "compute outputs",
    "mixed_batch": "several adapters in one batch",
    "disable": "give the base model's outputs when it is switched off",
    "gradient_checkpointing": "train with gradient checkpointing",
    "sequence_classification": "train a classifier",
    "half_precision": "have parameters in bfloat16 or float16",
}


def cannot(adapter_type: AdapterType, options: Mapping[str, Any], what: str) -> str | None:
    """Why this adapter cannot do ``what`` (one of ``ABILITIES``), or None where it can.

    ``options`` are the adapter's options by PEFT's names, in which nothing stands for the default, and as far as they
    are known its surroundings (see :func:`surroundings`).
    """
    if adapter_type.unavailable_reason is not None:
        return adapter_type.unavailable_reason
    if what in adapter_type.cannot:
        return adapter_type.cannot[what]
    for case in adapter_type.cannot_when:
        if what in case.cannot and holds(options, case.when):
            return case.cannot[what]
    return None


def holds(options: Mapping[str, Any], when: Mapping[str, str]) -> bool:
    """Whether all of these conditions (see ``CannotWhen``) are met; an option that is not set meets none."""
    return all(_matches(options.get(name), wanted) for name, wanted in when.items())


def surroundings(dtype: str, adapter_dtype: str, adapted: Sequence[ModuleGroup] | None) -> dict[str, Any]:
    """What the abilities depend on beside the options: both dtypes, and whether every adapted layer has a bias.

    ``adapted`` are the groups that the adapter targets, None where they are not known.
    """
    known: dict[str, Any] = {"dtype": dtype, "adapter_dtype": adapter_dtype}
    if adapted is not None and all(group.bias is not None for group in adapted):
        known["every_layer_has_bias"] = all(group.bias for group in adapted)
    return known


def _matches(value: Any, wanted: str) -> bool:
    if value is None:
        return False
    return re.fullmatch(wanted, value if isinstance(value, str) else json.dumps(value)) is not None
