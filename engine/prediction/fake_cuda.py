"""A job for a CUDA device under fake tensors of the CPU, with the kernels and defaults that PyTorch chooses on CUDA.

Fake tensors of a CUDA device end the process where PyTorch is built without CUDA, as soon as a gradient is wanted; what
tensors take is the same on both but for what is chosen by device: attention, dropout, the optimizers' updates. Which
attention kernel runs is decided by ``attention``; here it is run, with the memory that its own code takes for a while.
Libraries' workspaces and the allocator come later, in ``cuda_memory``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.optim import optimizer
from transformers import PreTrainedModel, modeling_utils
from transformers.integrations import flash_attention

from engine.prediction.attention import Attention, Capability, Choice, Kernel, choose
from engine.strategies.patching import replaced

_ATEN = torch.ops.aten
_NAMES: dict[Kernel, str] = {
    "cudnn": "cuDNN's attention kernel",
    "flash": "flash attention",
    "efficient": "memory-efficient attention",
    "math": "plain attention with the whole matrix of scores",
}
# What flash attention's code rounds lengths and heads up to.
_ROWS, _COLUMNS, _FULL_HEAD = 128, 32, 256
_ALIGNED_HEAD, _ALIGNED_MASK = 8, 16
# Larger heads do not fit memory-efficient attention's registers.
_HEAD_IN_REGISTERS = 128


class FakeCuda:
    """A device of a compute capability that jobs run on under fake tensors.

    ``calls`` are the calls of attention that it met, and the kernel that it chose for each.
    """

    def __init__(self, capability: Capability) -> None:
        self.capability = capability
        self.calls: dict[Attention, Choice] = {}
        self._uses_library = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run what is chosen by device as on this one, for as long as the block lasts."""
        optimizer._foreach_supported_types.append(FakeTensor)
        try:
            with (
                replaced(functional, "scaled_dot_product_attention", self._attend),
                replaced(functional, "dropout", _dropout),
                replaced(optimizer, "_get_foreach_kernels_supported_devices", lambda: ["cpu"]),
                # The package flash-attn need not be here.
                replaced(PreTrainedModel, "_flash_attn_can_dispatch", _supports_flash),
                replaced(modeling_utils, "is_kernels_available", lambda *_, **__: False),
                replaced(modeling_utils, "lazy_import_flash_attention", lambda *_, **__: None),
                replaced(flash_attention, "_flash_attention_forward", self._attend_by_library),
            ):
                yield
        finally:
            optimizer._foreach_supported_types.remove(FakeTensor)

    def notes(self) -> list[str]:
        """What was chosen and why, a sentence each."""
        major, minor = self.capability
        found = []
        for choice in dict.fromkeys(self.calls.values()):
            reasons = "; ".join(dict.fromkeys(reason for _, reason in choice.refused))
            why = f", because {reasons}" if reasons else ""
            found.append(f"on compute capability {major}.{minor} PyTorch runs {_NAMES[choice.kernel]}{why}")
        if self._uses_library:
            found.append("attention of the package flash-attn takes what PyTorch's own, made from it, takes")
        return found

    def _attend_by_library(self, *arguments: Any, **named: Any) -> Tensor:
        self._uses_library = True
        return _flash_library(*arguments, **named)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = _described(query, key, value, attn_mask is not None, dropout_p, is_causal, enable_gqa)
        choice = self.calls[call] = choose(call, self.capability)
        mask = _additive(attn_mask, query)
        scale = 1 / math.sqrt(call.head_dim) if scale is None else scale
        if choice.kernel == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale)
        if choice.kernel == "cudnn":
            return _ATEN._scaled_dot_product_cudnn_attention(
                query, key, value, mask, call.needs_gradient, dropout_p, is_causal, False, scale=scale
            )[0]
        if choice.kernel == "efficient":
            mask = None if mask is None else _aligned(mask, call, query.shape[0])
            output: Tensor = _Efficient.apply(query, key, value, mask, dropout_p, is_causal, scale)
            return output
        return _ATEN._scaled_dot_product_attention_math(
            query, key, value, mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]


class _Flash(torch.autograd.Function):
    """Flash attention, whose backward pass takes memory of its own (``flash_api.cpp``) while it runs."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float, is_causal: bool, scale: float
    ) -> Tensor:
        output, sums, _, _, rows, columns, seed, offset, _ = _ATEN._scaled_dot_product_flash_attention(
            query, key, value, dropout, is_causal, False, scale=scale
        )
        ctx.save_for_backward(query, key, value, output, sums, seed, offset)
        ctx.numbers = (rows, columns, dropout, is_causal, scale)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, output, sums, seed, offset = ctx.saved_tensors
        rows, columns, dropout, is_causal, scale = ctx.numbers
        own = _flash_backward_memory(query, key, value)
        found = _ATEN._scaled_dot_product_flash_attention_backward(
            gradient, query, key, value, output, sums, None, None, rows, columns, dropout, is_causal, seed, offset,
            scale=scale,
        )  # fmt: skip
        del own
        return *found, None, None, None


class _Efficient(torch.autograd.Function):
    """Memory-efficient attention, whose backward pass takes memory of its own (``attention_backward.cu``)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        output, sums, seed, offset = _ATEN._scaled_dot_product_efficient_attention(
            query, key, value, mask, needs_gradient, dropout, is_causal, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, output, sums, seed, offset)
        ctx.numbers = (dropout, is_causal, scale)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, mask, output, sums, seed, offset = ctx.saved_tensors
        dropout, is_causal, scale = ctx.numbers
        own = _efficient_backward_memory(query, key, value)
        found = _ATEN._scaled_dot_product_efficient_attention_backward(
            gradient, query, key, value, mask, output, sums, seed, offset, dropout, [True, True, True, False],
            is_causal, scale=scale,
        )  # fmt: skip
        del own
        return *found[:3], None, None, None, None


def _flash_backward_memory(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Sums of rows and a float32 gradient of the queries; of keys and values one for each head of the queries."""
    batch, heads, rows, head = query.shape
    rows = -(-rows // _ROWS) * _ROWS
    wide = -(-head // _COLUMNS) * _COLUMNS if head <= 192 else _FULL_HEAD
    found = [query.new_empty(batch, heads, rows, dtype=torch.float32)]
    found.append(query.new_empty(batch, rows, heads, wide, dtype=torch.float32))
    if key.shape[1] != heads:
        found += [other.new_empty(batch, other.shape[2], heads, head) for other in (key, value)]
    return found


def _efficient_backward_memory(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Sums of rows and a float32 gradient of the queries; where heads are large and half, of keys and values too."""
    batch, heads, rows, _ = query.shape
    found = [torch.empty_like(query, dtype=torch.float32), query.new_empty(batch, heads, rows, dtype=torch.float32)]
    if query.dtype != torch.float32 and max(query.shape[-1], value.shape[-1]) > _HEAD_IN_REGISTERS:
        found += [torch.empty_like(other, dtype=torch.float32) for other in (key, value)]
    return found


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """CUDA's own dropout, which keeps a mask of yes and no; the CPU's keeps one of the input's dtype."""
    return torch.native_dropout(input, p, True)[0] if training and p else input


def _described(
    query: Tensor, key: Tensor, value: Tensor, has_mask: bool, dropout: float, is_causal: bool, grouped: bool
) -> Attention:
    return Attention(
        dtype=str(query.dtype).removeprefix("torch."),
        query_heads=query.shape[-3],
        key_heads=key.shape[-3],
        query_length=query.shape[-2],
        key_length=key.shape[-2],
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        has_mask=has_mask,
        is_causal=is_causal,
        grouped=grouped,
        dropout=dropout,
        needs_gradient=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)),
    )


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float, is_causal: bool, scale: float) -> Tensor:
    """Flash attention, over heads padded to a multiple of 8."""
    head = query.shape[-1]
    missing = -head % _ALIGNED_HEAD
    if missing:
        query, key, value = (functional.pad(tensor, (0, missing)) for tensor in (query, key, value))
    output: Tensor = _Flash.apply(query, key, value, dropout, is_causal, scale)
    return output[..., :head] if missing else output


def _flash_library(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    dropout: float = 0.0,
    softmax_scale: float | None = None,
    target_dtype: torch.dtype | None = None,
    **_: Any,
) -> Tensor:
    """The package flash-attn in the place where transformers calls it: heads come after positions; no padding."""
    if target_dtype is not None and query.dtype == torch.float32:
        query, key, value = (tensor.to(target_dtype) for tensor in (query, key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if softmax_scale is None else softmax_scale
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return _flash(query, key, value, dropout, is_causal, scale).transpose(1, 2)


def _supports_flash(self: PreTrainedModel, flash_attn_version: int, *_: Any, **__: Any) -> bool:
    if not self._supports_flash_attn:
        raise ValueError(f"attention implementation flash_attention_{flash_attn_version} is not supported")
    return True


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask of yes and no as one to add to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -math.inf)


def _aligned(mask: Tensor, call: Attention, batch: int) -> Tensor:
    """A mask as memory-efficient attention takes it: for every head, its rows aligned."""
    mask = mask.expand(batch, call.query_heads, call.query_length, call.key_length)
    missing = -call.key_length % _ALIGNED_MASK
    if missing:
        return functional.pad(mask, (0, missing))[..., : call.key_length]
    return mask.contiguous() if any(step % _ALIGNED_MASK for step in mask.stride()[:3]) else mask
