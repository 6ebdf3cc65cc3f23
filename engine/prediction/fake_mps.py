"""A job for an Apple GPU under fake tensors of the CPU, with the attention that PyTorch runs there.

Metal's heaps are not followed: only what tensors take is predicted for these devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from engine.strategies.patching import replaced

_ATEN = torch.ops.aten


class FakeMps:
    """An Apple GPU that jobs run on under fake tensors."""

    def __init__(self) -> None:
        self._attended = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run what is chosen by device as on this one, for as long as the block lasts."""
        with replaced(functional, "scaled_dot_product_attention", self._attend):
            yield

    def notes(self) -> list[str]:
        """What was chosen and what is not followed, a sentence each."""
        chosen = ["on an Apple GPU PyTorch runs plain attention with the whole matrix of scores"]
        return [*(chosen if self._attended else ()), "what Metal takes beside the tensors is not predicted"]

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
        self._attended = True
        needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        # aten/src/ATen/native/transformers/attention.cpp: Metal's own kernel has no gradient and no dropout.
        plain = needs_gradient or dropout_p > 0
        kernel = _ATEN._scaled_dot_product_attention_math
        found = (kernel if plain else _ATEN._scaled_dot_product_attention_math_for_mps)(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )
        output: Tensor = found[0]
        return output
