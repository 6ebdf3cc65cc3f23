"""Tensors out of safetensors files by ranges of rows, through plain reads: no mapping, no memory beyond the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import FileIO

import torch
from torch import Tensor

from engine.merging.weight_file import TensorEntry, read_into

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared with it."""
    return tensor.detach().flatten().view(torch.uint8).numpy().data


def row_bytes(entry: TensorEntry) -> int:
    """Bytes of one row: of the last dimension."""
    return entry.size_bytes // max(1, math.prod(entry.shape[:-1]))


def read_rows(file: FileIO, entry: TensorEntry, first: int, rows: Tensor) -> None:
    """Fill ``rows`` (n, columns) from row ``first`` of the tensor seen as one matrix, casting where dtypes differ."""
    dtype = DTYPES[entry.dtype]
    position = entry.start + first * row_bytes(entry)
    if rows.dtype == dtype:
        read_into(file, position, memory_of(rows))
        return
    stored = torch.empty(rows.shape, dtype=dtype)
    read_into(file, position, memory_of(stored))
    rows.copy_(stored)


def read_float32(file: FileIO, entry: TensorEntry, first: int = 0, count: int | None = None) -> Tensor:
    """A tensor, or ``count`` rows of it from ``first`` on, in float32."""
    shape = entry.shape if count is None else (count, *entry.shape[1:])
    rows = torch.empty(shape, dtype=torch.float32)
    read_rows(file, entry, first, rows.view(-1, shape[-1]))
    return rows
