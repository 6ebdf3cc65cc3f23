"""``W + s·B·A`` and DoRA's scaling for one matrix on its way from a file to a file, some rows of it at a time.

The sums are those of the ``row_blocks`` strategy (accumulated in float32, rounded once); here is what belongs to
files: how many rows at once, and that nothing broken is written. Where rows come from and go to is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.strategies.merge_blocks import Piece, add_and_scale, add_rounded_once

#: Bytes of the matrix in memory at once. Larger slabs are not faster, as ``row_blocks`` works in blocks of them.
SLAB_BYTES = 64 * 2**20
_CHECKED_ELEMENTS = 2**20
#: Fills a slab (rows, columns) of the matrix's dtype from the given row on.
ReadRows = Callable[[int, Tensor], None]


class NotFiniteError(ValueError):
    """What was merged is infinite or not a number."""


@dataclass(frozen=True)
class Addition:
    """What is added to a matrix (rows, columns) as it is stored: ``scaling * left @ right``, factors in float32.

    ``left`` is (rows, rank), ``right`` (rank, columns). With a ``magnitude``, rows are scaled to it as in DoRA, or
    columns where ``by_columns``.
    """

    left: Tensor
    right: Tensor
    scaling: float
    magnitude: Tensor | None = None
    by_columns: bool = False


def merged_slabs(
    read: ReadRows, rows: int, columns: int, dtype: torch.dtype, addition: Addition | None
) -> Iterator[Tensor]:
    """The merged matrix as consecutive slabs (n, columns) in its own dtype. A slab is overwritten by the next one.

    Raises:
        NotFiniteError: when a merged value is not finite.
    """
    step = max(1, min(rows, SLAB_BYTES // max(1, columns * dtype.itemsize)))
    if addition is not None and addition.magnitude is not None and addition.by_columns:
        # The norm of a column is known only when all rows were seen.
        step = rows
    memory = torch.empty(step, columns, dtype=dtype)
    for first in range(0, rows, step):
        slab = memory[: min(step, rows - first)]
        read(first, slab)
        if addition is not None:
            _merge(slab, addition, slice(first, first + len(slab)))
            _refuse_infinite(slab)
        yield slab


def _merge(slab: Tensor, addition: Addition, rows: slice) -> None:
    magnitude = addition.magnitude
    if magnitude is not None and not addition.by_columns:
        magnitude = magnitude[rows]
    piece = Piece(slab, addition.left[rows], addition.right, addition.scaling, addition.by_columns, magnitude)
    if magnitude is None:
        add_rounded_once(piece)
    else:
        add_and_scale(piece)


def _refuse_infinite(slab: Tensor) -> None:
    for part in slab.flatten().split(_CHECKED_ELEMENTS):
        # One value that is not finite makes the sum so, and a sum is cheaper; but it may overflow, too.
        if not bool(part.sum().isfinite()) and not bool(part.isfinite().all()):
            raise NotFiniteError
