"""Norms of the rows of ``W`` and of ``W + s·B·A`` without full-size temporaries, in the arithmetic that PEFT rounds to.

Pure functions of tensors on any device. ``weight`` is (out, in), or (in, out) where ``transposed`` (Conv1D and
embeddings); ``lora_a`` is (rank, in), ``lora_b`` (out, rank). Results are (out,) in the weight's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Blocks are sized in bytes of the accumulation dtype: large enough to hide the cost of a call, small enough to stay in
# a core's cache and under 5 % of the weight.
_BLOCK_BYTES = 4 * 2**20
_LEAST_BLOCK_BYTES = 2**19
_BLOCK_SHARE = 0.025
# Below this share of |W|², what is left of W + s·B·A after cancellation is too little for the factored sum.
_CANCELLATION = 1 / 64
# What is taken in bfloat16 is rounded: norms of segments of a row, where the errors of a row's segments average out,
# and W·Aᵀ. A row is computed again in float32 where few segments hold most of it (the share of the squares' own
# squares), or where the cross terms are more than this share of it: together some tenths of a unit in the last place.
_SEGMENT = 128
_LARGEST_CONCENTRATION = 1 / 4
_LARGEST_CROSS_SHARE = 1 / 8


def row_norms(weight: Tensor, transposed: bool = False) -> Tensor:
    """The norm of each output's weights: PEFT's magnitude while B is zero, by the same kernel where that is fast."""
    if transposed:
        return _square_sums(weight).sqrt_().to(weight.dtype)
    if weight.dtype != torch.float16 or weight.device.type != "cpu":
        return torch.linalg.vector_norm(weight, dim=1)
    # On a CPU, PyTorch's own kernel takes float16 one element at a time (8x slower than through float32).
    norms = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    buffer = _block_buffer(weight, torch.float32)
    size = buffer.shape[0]
    for rows, part in zip(weight.split(size), norms.split(size), strict=True):
        torch.linalg.vector_norm(buffer[: rows.shape[0]].copy_(rows), dim=1, out=part)
    return norms.to(weight.dtype)


def shifted_row_norms(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, transposed: bool = False
) -> Tensor:
    """The norm of each output's weights in ``W + s·B·A`` from rank-sized products.

    ``|W|² + 2s·rowsum((W·Aᵀ)∘B) + s²·rowsum((B·A·Aᵀ)∘B)``, summed in float32 (float64 for float32 weights); where the
    CPU multiplies bfloat16 natively and it is accurate enough for a row, W is read as it is.
    Rows where the terms nearly cancel are computed again in float64, from ``W + s·B·A`` itself.
    """
    return unrounded_row_norms(weight, lora_a, lora_b, scaling, transposed).to(weight.dtype)


def unrounded_row_norms(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, transposed: bool = False
) -> Tensor:
    """The same in the dtype it is summed in."""
    dtype = torch.float64 if weight.dtype == torch.float32 else torch.float32
    # The product with a contiguous Aᵀ is a tenth faster than with a transposed view.
    a_columns = lora_a.to(dtype).T.contiguous()
    if transposed or not _fits_bfloat16_products(weight, lora_a):
        return _accumulated_norms(weight, a_columns, lora_a, lora_b, scaling, transposed)
    norms, unsure = _bfloat16_norms(weight, a_columns, lora_a, lora_b, scaling)
    size = max(1, _LEAST_BLOCK_BYTES // (weight.shape[1] * weight.itemsize))
    for rows in unsure.split(size) if unsure.numel() else ():
        norms[rows] = _accumulated_norms(weight[rows], a_columns, lora_a, lora_b[rows], scaling, transposed)
    return norms


def reference_row_norms(
    weight: Tensor,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scaling: float = 1.0,
    transposed: bool = False,
) -> Tensor:
    """The norms in float64, from ``W + s·B·A`` itself in blocks of rows: what the others are judged by."""
    outputs = weight.shape[1] if transposed else weight.shape[0]
    every = torch.arange(outputs, device=weight.device)
    return _exact_rows(weight, lora_a, lora_b, scaling, transposed, every)


def _block_buffer(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised block of a few of the weight's rows in another dtype."""
    budget = min(_BLOCK_BYTES, max(_LEAST_BLOCK_BYTES, int(_BLOCK_SHARE * weight.nbytes)))
    rows = max(1, min(weight.shape[0], budget // (weight.shape[1] * dtype.itemsize)))
    return torch.empty(rows, weight.shape[1], dtype=dtype, device=weight.device)


def _slices(rows: int, row_bytes: int) -> Iterator[slice]:
    """Consecutive slices of at most ``_LEAST_BLOCK_BYTES``."""
    step = max(1, _LEAST_BLOCK_BYTES // row_bytes)
    return (slice(start, start + step) for start in range(0, rows, step))


def _fits_bfloat16_products(weight: Tensor, lora_a: Tensor) -> bool:
    """Whether the CPU multiplies bfloat16 natively (without, PyTorch's product is slower than through float32)."""
    return (
        weight.dtype == lora_a.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.shape[1] % _SEGMENT == 0
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _bfloat16_norms(
    weight: Tensor, a_columns: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Norms (out,) in float32 without a float32 copy of any weight, and the rows where bfloat16 was too coarse."""
    parts = torch.linalg.vector_norm(weight.unflatten(1, (-1, _SEGMENT)), dim=2).float().square_()
    squares = parts.sum(1)
    unsure = ~(parts.square_().sum(1) <= squares.square() * _LARGEST_CONCENTRATION)
    del parts
    products = torch.mm(lora_a, weight.T).T
    gram = a_columns.T @ a_columns
    for rows in _slices(lora_b.shape[0], lora_b.shape[1] * 8):
        b = lora_b[rows].float()
        total = (b @ gram).mul_(b).sum(1).mul_(scaling**2).add_(squares[rows])
        cross = b.mul_(products[rows])
        total += cross.sum(1).mul_(2 * scaling)
        # Written so that it holds for NaN too, which infinite terms of either sign leave behind.
        unsure[rows] |= ~(cross.abs_().sum(1).mul_(abs(scaling)) <= total * _LARGEST_CROSS_SHARE)
        unsure[rows] |= ~(total >= squares[rows] * _CANCELLATION)
        squares[rows] = total
    return squares.clamp_(min=0).sqrt_(), unsure.nonzero().flatten()


def _accumulated_norms(
    weight: Tensor, a_columns: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, transposed: bool
) -> Tensor:
    """Norms (out,) in the dtype of ``a_columns``, through blocks of the weight in that dtype."""
    dtype = a_columns.dtype
    accumulate = _columns_with_products if transposed else _rows_with_products
    squares, products = accumulate(weight, a_columns)
    gram = a_columns.T @ a_columns
    suspects = []
    for rows in _slices(lora_b.shape[0], lora_b.shape[1] * dtype.itemsize):
        b = lora_b[rows].to(dtype)
        shift = products[rows].mul_(2 * scaling).addmm_(b, gram, alpha=scaling**2).mul_(b).sum(1)
        total = squares[rows] + shift
        # Written so that it holds for NaN too, which infinite terms of either sign leave behind.
        suspects.append((~(total >= squares[rows] * _CANCELLATION)).nonzero().flatten() + rows.start)
        squares[rows] = total
    norms = squares.clamp_(min=0).sqrt_()
    exact = torch.cat(suspects)
    if exact.numel():
        norms[exact] = _exact_rows(weight, lora_a, lora_b, scaling, transposed, exact).to(dtype)
    return norms


def _square_sums(weight: Tensor) -> Tensor:
    """Sums of squares down the columns; float32, or float64 for float32 weights."""
    # Reducing down the columns of a row-major matrix in one call is scalar code in PyTorch: 20x slower than this.
    dtype = torch.float64 if weight.dtype == torch.float32 else torch.float32
    sums = torch.zeros(weight.shape[1], dtype=dtype, device=weight.device)
    buffer = _block_buffer(weight, dtype)
    for rows in weight.split(buffer.shape[0]):
        sums += buffer[: rows.shape[0]].copy_(rows).square_().sum(0)
    return sums


def _rows_with_products(weight: Tensor, a_columns: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of W its sum of squares, and ``W·Aᵀ`` (out, rank); ``a_columns`` is Aᵀ in the dtype to sum in."""
    squares = weight.new_empty(weight.shape[0], dtype=a_columns.dtype)
    products = weight.new_empty(weight.shape[0], a_columns.shape[1], dtype=a_columns.dtype)
    buffer = _block_buffer(weight, a_columns.dtype)
    size = buffer.shape[0]
    for rows, norms, product in zip(weight.split(size), squares.split(size), products.split(size), strict=True):
        block = buffer[: rows.shape[0]].copy_(rows)
        torch.linalg.vector_norm(block, dim=1, out=norms)
        torch.mm(block, a_columns, out=product)
    return squares.square_(), products


def _columns_with_products(weight: Tensor, a_columns: Tensor) -> tuple[Tensor, Tensor]:
    """For each column of a transposed W its sum of squares, and ``(A·W)ᵀ`` (out, rank)."""
    squares = weight.new_zeros(weight.shape[1], dtype=a_columns.dtype)
    products = weight.new_zeros(a_columns.shape[1], weight.shape[1], dtype=a_columns.dtype)
    buffer = _block_buffer(weight, a_columns.dtype)
    size = buffer.shape[0]
    for rows, factors in zip(weight.split(size), a_columns.split(size), strict=True):
        block = buffer[: rows.shape[0]].copy_(rows)
        products.addmm_(factors.T, block)
        squares += block.square_().sum(0)
    return squares, products.T


def _exact_rows(
    weight: Tensor, lora_a: Tensor | None, lora_b: Tensor | None, scaling: float, transposed: bool, rows: Tensor
) -> Tensor:
    """Norms of the chosen outputs of ``W + s·B·A`` in float64, a block at a time."""
    inputs = weight.shape[0] if transposed else weight.shape[1]
    norms = torch.empty(rows.numel(), dtype=torch.float64, device=weight.device)
    step = max(1, _LEAST_BLOCK_BYTES // (inputs * 8))
    a = None if lora_a is None else lora_a.double()
    for start in range(0, rows.numel(), step):
        chosen = rows[start : start + step]
        block = (weight[:, chosen].T if transposed else weight[chosen]).double()
        if a is not None and lora_b is not None:
            block = block.addmm(lora_b[chosen].double(), a, alpha=scaling)
        norms[start : start + step] = torch.linalg.vector_norm(block, dim=1)
    return norms
