"""Add a product of two narrow matrices to a weight in place, a block of rows at a time, and scale DoRA's outputs.

Functions of tensors on any device; they change ``piece.weight`` and know no PEFT layer. No temporary is larger than a
few hundredths of the weight (or half a MiB, whichever is more), and each weight is rounded once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.strategies.row_norms import unrounded_row_norms

# A block in float32 takes at most this share of the weight. Larger blocks hide the cost of a call no better.
_BLOCK_SHARE = 0.04
_LEAST_BLOCK_BYTES = 2**19
# What factors take beside the weight, cast or split into terms: this share of it, or so many bytes if that is more.
_CAST_SHARE, _LEAST_CAST_BYTES = 0.0095, 96 * 2**10
_SPLIT_SHARE, _LEAST_SPLIT_BYTES = 0.035, 2**18
_CHUNK = 512


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A matrix and what is to be added to it: ``weight + scaling * left @ right``, all as the weight is stored.

    ``weight`` is (rows, columns), ``left`` (rows, rank), ``right`` (rank, columns). Outputs are rows, or columns where
    ``transposed`` (Conv1D and embeddings). ``magnitude`` (outputs,) is DoRA's: each output's norm after the merge.
    """

    weight: Tensor
    left: Tensor
    right: Tensor
    scaling: float
    transposed: bool = False
    magnitude: Tensor | None = None


def add_in_weight_dtype(piece: Piece, sign: float = 1.0) -> None:
    """``W.addmm_(left, right)`` with both factors rounded to W's dtype first; accumulated and rounded by the library.

    Nothing but the cast factors is kept, and of the left one only a block of rows at a time.
    """
    weight, left = piece.weight, piece.left
    right = piece.right.to(weight.dtype)
    step = weight.shape[0]
    if left.dtype != weight.dtype:
        budget = max(_LEAST_CAST_BYTES, _CAST_SHARE * weight.nbytes)
        step = _even_step(step, left.shape[1] * weight.itemsize, budget, right.nbytes)
    for rows, factors in zip(weight.split(step), left.split(step), strict=True):
        rows.addmm_(factors.to(weight.dtype), right, alpha=sign * piece.scaling)


def add_rounded_once(piece: Piece, sign: float = 1.0) -> None:
    """``W += sign * scaling * left @ right``, accumulated in float32 (or W's own wider dtype) and rounded once."""
    weight = piece.weight
    if weight.dtype in (torch.float32, torch.float64):
        weight.addmm_(piece.left.to(weight.dtype), piece.right.to(weight.dtype), alpha=sign * piece.scaling)
    elif _adds_natively(piece):
        _add_in_three_terms(piece, sign)
    else:
        right = piece.right.float()
        for rows, block, left in _blocks(piece):
            rows.copy_(block.addmm_(left, right, alpha=sign * piece.scaling))


def add_and_scale(piece: Piece) -> Tensor:
    """Merge a DoRA piece: ``W = m / |W + s·left·right| * (W + s·left·right)``, each weight rounded once.

    Returns the norms (outputs,) in the dtype they were summed in, which :func:`scale_back_and_subtract` needs.
    """
    assert piece.magnitude is not None
    if piece.transposed:
        return _add_and_scale_columns(piece, piece.magnitude)
    dtype = _block_dtype(piece.weight)
    right, magnitude = piece.right.to(dtype), piece.magnitude.to(dtype)
    norms = torch.empty_like(magnitude)
    start = 0
    for rows, block, left in _blocks(piece):
        outputs = slice(start, start := start + block.shape[0])
        torch.linalg.vector_norm(block.addmm_(left, right, alpha=piece.scaling), dim=1, out=norms[outputs])
        _store(rows, block.mul_((magnitude[outputs] / norms[outputs]).unsqueeze(1)))
    return norms


def scale_back_and_subtract(piece: Piece, norms: Tensor) -> None:
    """Undo :func:`add_and_scale`: ``W = W * norms / m - s·left·right``, each weight rounded once."""
    assert piece.magnitude is not None
    dtype = _block_dtype(piece.weight)
    right, factors = piece.right.to(dtype), (norms / piece.magnitude.to(norms.dtype)).to(dtype)
    start = 0
    for rows, block, left in _blocks(piece):
        outputs = slice(start, start := start + block.shape[0])
        chosen = factors if piece.transposed else factors[outputs].unsqueeze(1)
        _store(rows, block.mul_(chosen).addmm_(left, right, alpha=-piece.scaling))


def _add_and_scale_columns(piece: Piece, magnitude: Tensor) -> Tensor:
    """DoRA where outputs are columns: their norms need a pass of their own, since no block holds a whole one."""
    norms = unrounded_row_norms(piece.weight, piece.left.T, piece.right.T, piece.scaling, transposed=True)
    dtype = _block_dtype(piece.weight)
    right, factors = piece.right.to(dtype), (magnitude.to(norms.dtype) / norms).to(dtype)
    for rows, block, left in _blocks(piece):
        _store(rows, block.addmm_(left, right, alpha=piece.scaling).mul_(factors))
    return norms


def _blocks(piece: Piece) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of the weight, the same rows in float32 in a buffer that is used again, and the left factor's rows.

    Where the weight is float32 or wider, the block is the weight's rows themselves.
    """
    weight = piece.weight
    dtype = _block_dtype(weight)
    budget = max(_LEAST_BLOCK_BYTES, int(_BLOCK_SHARE * weight.nbytes))
    step = max(1, min(weight.shape[0], budget // (weight.shape[1] * dtype.itemsize)))
    in_place = weight.dtype == dtype
    buffer = None if in_place else torch.empty(step, weight.shape[1], dtype=dtype, device=weight.device)
    for rows, left in zip(weight.split(step), piece.left.split(step), strict=True):
        yield rows, rows if buffer is None else buffer[: rows.shape[0]].copy_(rows), left.to(dtype)


def _even_step(rows: int, row_bytes: int, budget: float, taken: int) -> int:
    """Rows of a factor to handle at a time, in blocks of one size, in what is left of a budget of bytes."""
    free = max(budget - taken, budget / 10)
    return -(-rows // math.ceil(rows * row_bytes / free))


def _block_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _store(rows: Tensor, block: Tensor) -> None:
    if block is not rows:
        rows.copy_(block)


def _adds_natively(piece: Piece) -> bool:
    """Whether the CPU multiplies bfloat16 itself, and the split factors would be small beside the weight."""
    weight = piece.weight
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and 3 * piece.right.numel() * 2 <= max(_LEAST_BLOCK_BYTES, _SPLIT_SHARE * weight.nbytes)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _add_in_three_terms(piece: Piece, sign: float) -> None:
    """The sum in float32 without a float32 copy of any weight, by bfloat16 products that add up in float32.

    Each factor is split into its bfloat16 rounding and the rest, so ``L·R = L₁R₁ + L₁R₂ + L₂R₁`` up to 2⁻¹⁶ of itself
    (a bfloat16 weight keeps 2⁻⁹), and the three are one product over three times the rank.
    """
    weight, left, right = piece.weight, piece.left, piece.right
    rank = right.shape[0]
    if left.dtype == right.dtype == weight.dtype:
        weight.addmm_(left, right, alpha=sign * piece.scaling)
        return
    packed = weight.new_empty(3 * rank, right.shape[1])
    for columns in _chunks(right.shape[1]):
        high, low = _split(right[:, columns])
        packed[:rank, columns], packed[rank : 2 * rank, columns], packed[2 * rank :, columns] = high, low, high
    budget = max(_LEAST_SPLIT_BYTES, _SPLIT_SHARE * weight.nbytes)
    step = _even_step(left.shape[0], 3 * rank * weight.itemsize, budget, packed.nbytes)
    buffer = weight.new_empty(step, 3 * rank)
    for rows, factors in zip(weight.split(step), left.split(step), strict=True):
        for chunk in _chunks(rows.shape[0]):
            high, low = _split(factors[chunk])
            buffer[chunk, :rank], buffer[chunk, rank : 2 * rank], buffer[chunk, 2 * rank :] = high, high, low
        rows.addmm_(buffer[: rows.shape[0]], packed, alpha=sign * piece.scaling)


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def _split(factor: Tensor) -> tuple[Tensor, Tensor]:
    """A factor's bfloat16 rounding, and the rest rounded to bfloat16."""
    high = factor.bfloat16()
    return high, (factor.float() - high.float()).bfloat16()
