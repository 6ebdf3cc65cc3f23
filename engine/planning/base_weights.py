"""What a model's weights take in bfloat16, int8 and nf4, and whether they go into a memory. Attaches nothing.

The formats are those of ``engine.quantization``: every linear layer but the head is quantised, embeddings, norms and
biases stay as they are. Counted from the model's own layers on ``meta``.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from engine.models import build_meta
from engine.spec import Task

Format = Literal["bfloat16", "int8", "nf4"]
FORMATS: tuple[Format, ...] = ("bfloat16", "int8", "nf4")
_HALF_BYTES = 2
_SCALE_BYTES = 4
_NF4_BLOCK = 64
# Sixteen float32 values that the four bits stand for.
_NF4_CODE_BYTES = 64


@dataclasses.dataclass(frozen=True, slots=True)
class BaseWeights:
    """Bytes of all weights in one format, the largest single module's, and what stays in bfloat16."""

    format: Format
    bytes: int
    largest_module: str
    largest_module_bytes: int
    unquantised_bytes: int


def base_weights(model: str, task: Task = "causal_lm") -> list[BaseWeights]:
    """A model's weights in each format.

    Raises:
        SpecError: one sentence, when the model cannot be built.
    """
    built = build_meta(model, task=task)
    head = built.get_output_embeddings() if hasattr(built, "get_output_embeddings") else None
    found = []
    for name in FORMATS:
        sizes: dict[str, int] = {}
        kept_bytes, seen = 0, set[int]()
        for path, module in built.named_modules():
            quantised = type(module) is nn.Linear and module is not head and path.rpartition(".")[2] != "score"
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                if quantised and parameter_name == "weight":
                    size = _quantised_bytes(name, *parameter.shape)
                else:
                    size = _HALF_BYTES * parameter.numel()
                    kept_bytes += size
                sizes[path] = sizes.get(path, 0) + size
        largest = max(sizes, key=lambda path: sizes[path])
        total_bytes = sum(sizes.values())
        kept_bytes = total_bytes if name == "bfloat16" else kept_bytes
        found.append(BaseWeights(name, total_bytes, largest, sizes[largest], kept_bytes))
    return found


def _quantised_bytes(name: Format, rows: int, columns: int) -> int:
    elements = rows * columns
    if name == "int8":
        return elements + _SCALE_BYTES * rows
    if name == "nf4":
        return -(-elements // 2) + _SCALE_BYTES * -(-elements // _NF4_BLOCK) + _NF4_CODE_BYTES
    return _HALF_BYTES * elements
