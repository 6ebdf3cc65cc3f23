"""Which kernel PyTorch 2.13 runs for ``scaled_dot_product_attention`` on a CUDA device. A pure rule, without PyTorch.

The rule is that of ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` with default settings and dense tensors.
Memory-efficient attention takes no grouped heads there; versions after 2.13 let it (pytorch/pytorch#191085).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

Kernel = Literal["cudnn", "flash", "efficient", "math"]
Capability = tuple[int, int]
_HALF = ("float16", "bfloat16")
_CUDNN_HEAD_DIM = 128
_FLASH_HEAD_DIM = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """One call: the heads, lengths and dtype of its tensors, and what comes with them.

    ``grouped`` is ``enable_gqa``: fewer heads of keys and values than of queries.
    """

    dtype: str
    query_heads: int
    key_heads: int
    query_length: int
    key_length: int
    head_dim: int
    value_dim: int
    has_mask: bool = False
    is_causal: bool = False
    grouped: bool = False
    dropout: float = 0.0
    needs_gradient: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The kernel, and for each one that would be preferred what keeps it from running."""

    kernel: Kernel
    refused: tuple[tuple[Kernel, str], ...]


def choose(call: Attention, capability: Capability) -> Choice:
    """The first kernel in PyTorch's order that can run the call on a device of that compute capability."""
    refused: list[tuple[Kernel, str]] = []
    for kernel, refusal in _order(capability):
        reason = refusal(call, capability)
        if reason is None:
            return Choice(kernel, tuple(refused))
        refused.append((kernel, reason))
    return Choice("math", tuple(refused))


Refusal = Callable[[Attention, Capability], str | None]


def _order(capability: Capability) -> list[tuple[Kernel, Refusal]]:
    # cuDNN comes first on Hopper and Blackwell (with its version 9.15.1 or later, as PyTorch 2.13 brings it).
    first: list[tuple[Kernel, Refusal]] = [("cudnn", _no_cudnn)] if capability[0] in (9, 10) else []
    return [*first, ("flash", _no_flash), ("efficient", _no_efficient)]


def _no_cudnn(call: Attention, capability: Capability) -> str | None:
    if call.dtype not in _HALF:
        return f"cuDNN's kernel has no {call.dtype}"
    if max(call.head_dim, call.value_dim) > _CUDNN_HEAD_DIM or call.head_dim % 8 or call.value_dim % 8:
        return f"cuDNN's kernel needs heads of a multiple of 8 up to {_CUDNN_HEAD_DIM}"
    if (call.dropout * 16) % 1:
        return "cuDNN's dropout is a multiple of 1/16"
    if call.key_length == 1:
        return "cuDNN's kernel needs more than one key"
    return _heads_differ(call, takes_groups=True)


def _no_flash(call: Attention, capability: Capability) -> str | None:
    if capability < (8, 0):
        return f"flash attention needs compute capability 8.0, not {capability[0]}.{capability[1]}"
    if call.dtype not in _HALF:
        return f"flash attention has no {call.dtype}"
    if call.has_mask:
        return "flash attention takes no mask"
    if call.head_dim != call.value_dim or call.head_dim > _FLASH_HEAD_DIM:
        return f"flash attention needs heads of one size up to {_FLASH_HEAD_DIM}"
    if call.is_causal and call.query_length != call.key_length:
        return "flash attention needs as many keys as queries where it is causal"
    has_little_room = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    is_too_large = 192 < call.head_dim <= 224 or (call.head_dim > 224 and call.dropout > 0)
    if call.needs_gradient and has_little_room and is_too_large:
        return "flash attention has no gradient for heads this large on this card"
    return _heads_differ(call, takes_groups=True)


def _no_efficient(call: Attention, capability: Capability) -> str | None:
    if call.dtype == "bfloat16" and capability < (8, 0):
        return "memory-efficient attention has no bfloat16 before compute capability 8.0"
    multiple = _alignment(call.dtype in _HALF, capability)
    if call.head_dim % multiple or call.value_dim % multiple:
        return f"memory-efficient attention needs heads of a multiple of {multiple}"
    return _heads_differ(call, takes_groups=False)


def _alignment(is_half: bool, capability: Capability) -> int:
    on_tensor_cores = capability >= (8, 0) or (capability >= (7, 0) and is_half)
    if on_tensor_cores:
        return 8 if is_half else 4
    return 1


def _heads_differ(call: Attention, takes_groups: bool) -> str | None:
    if call.query_heads == call.key_heads:
        return None
    if not (call.grouped and takes_groups):
        return "the kernel needs as many heads of keys as of queries"
    return "the heads of queries are no multiple of those of keys" if call.query_heads % call.key_heads else None
