"""Whether the tensors of a saved adapter belong to a model, from names and shapes alone. Reads one header; no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from engine.catalog.modules import ModuleGroup
from engine.merging.weight_file import WeightFileError, read_header

_PREFIX = "base_model.model."
# LoRA's factors of linear layers: (rank, in) and (out, rank).
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def first_mismatch(folder: str, groups: Sequence[ModuleGroup]) -> str | None:
    """The first tensor of a saved LoRA that has no place in a model with these groups, as part of a sentence.

    None where all fit, or where nothing can be told: other types' tensors have shapes that depend on their fields.
    Fused experts, whose factors PEFT names after the module and not after the parameter, are left out.
    """
    try:
        tensors = read_header(Path(folder) / "adapter_model.safetensors").tensors
    except WeightFileError as error:
        return str(error)
    by_name = {name: group for group in groups if group.kind != "experts" for name in group.module_names()}
    experts = tuple(
        name.rpartition(".")[0] for group in groups if group.kind == "experts" for name in group.module_names()
    )
    for name, entry in sorted(tensors.items()):
        found = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if found is None or len(entry.shape) != 2 or found["module"].startswith(experts or ("\0",)):
            continue
        group = by_name.get(found["module"])
        if group is None:
            return f"it adapts {found['module']}, which this model does not have"
        size, wanted, what = (
            (entry.shape[1], group.in_features, "inputs")
            if found["side"] == "A"
            else (entry.shape[0], group.out_features, "outputs")
        )
        if size != wanted:
            return f"its {found['module']}.lora_{found['side']} has {size} {what} and this model's layer {wanted}"
    return None
