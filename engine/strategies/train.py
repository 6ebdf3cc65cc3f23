"""LoRA layers that train with fewer kernels and keep less for the backward pass. Measures nothing itself.

``with fused(): loss = model(**batch).loss; loss.backward()``. Changes PEFT for the time of the block only. What it does
not know how to do faster (DoRA and other variants, quantised layers, embeddings, several adapters at once) is left to
PEFT. The proof that gradients are the same is in ``engine.jobs.train_proof``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from engine.strategies.patching import replaced

# Quantised weights are tensors of other types; a fake one stands for a plain one.
_PLAIN_TENSORS = (nn.Parameter, Tensor, FakeTensor)


@contextlib.contextmanager
def stock() -> Iterator[None]:
    """PEFT as it comes."""
    yield


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """Every plain LoRA layer of any model as one autograd function.

    Forward: the base product, ``x Aᵀ``, and one product that is added onto the base's result where it lies. PEFT casts
    x to the adapter's dtype, keeps that copy for the backward pass, and adds in float32. Here x itself is kept, once
    for all layers that read it, and no float32 tensor of the result's size is ever made.
    """

    def forward(self: Linear, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        name = _fusible(self, x, arguments, named)
        if name is None:
            result: Tensor = original(self, x, *arguments, **named)
            return result
        base = self.get_base_layer()
        dropped = self.lora_dropout[name](x)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _FusedLora.apply(x, dropped, base.weight, base.bias, a, b, float(self.scaling[name]))

    with replaced(Linear, "forward", forward) as original:
        yield


class _FusedLora(torch.autograd.Function):
    """``x Wᵀ + bias + s·(d Aᵀ) Bᵀ``; x and d (..., in), W (out, in) frozen, A (r, in), B (out, r).

    d is x after dropout, or x itself.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        result = nn.functional.linear(x, weight, bias)
        low = dropped.reshape(-1, dropped.shape[-1]).to(a.dtype) @ a.T
        left, right, low = (low, b, low) if a.dtype == x.dtype else _in_halves(low, b, x.dtype)
        result.view(-1, result.shape[-1]).addmm_(left, right.T, alpha=scaling)
        ctx.scaling, ctx.no_dropout = scaling, dropped is x
        ctx.save_for_backward(dropped, low, weight, a, b)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dropped, low, weight, a, b = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        scaled = (rows @ b.to(rows.dtype)).mul_(ctx.scaling)
        of_a = of_b = of_x = of_dropped = None
        if ctx.needs_input_grad[4]:
            of_a = (scaled.T @ dropped.reshape(-1, dropped.shape[-1])).to(a.dtype)
        if ctx.needs_input_grad[5]:
            of_b = (rows.T @ low).mul_(ctx.scaling).to(b.dtype)
        narrow = a.to(rows.dtype)
        if ctx.needs_input_grad[0]:
            of_x = rows @ weight
            if ctx.no_dropout:
                of_x.addmm_(scaled, narrow)
            of_x = of_x.view(dropped.shape)
        if ctx.needs_input_grad[1] and not ctx.no_dropout:
            of_dropped = (scaled @ narrow).view(dropped.shape)
        return of_x, of_dropped, None, None, of_a, of_b, None


def _in_halves(low: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Factors in half precision whose product is as good as that of two in float32, and ``low`` rounded.

    Each is the sum of its rounded value and its rounded rest; of the four products the smallest is left out. Three
    times the rank costs little where reading and writing the result is what takes the time.
    """
    low_high, b_high = low.to(dtype), b.to(dtype)
    low_rest, b_rest = (low - low_high).to(dtype), (b - b_high).to(dtype)
    return torch.cat((low_high, low_rest, low_high), 1), torch.cat((b_high, b_high, b_rest), 1), low_high


def _fusible(layer: Linear, x: Tensor, arguments: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    """The one adapter of a layer that can be computed here; None where PEFT has to."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if arguments or named or len(active) != 1 or layer.disable_adapters or layer.merged:
        return None
    base, name = layer.get_base_layer(), active[0]
    plain = (
        type(base) is nn.Linear
        and type(base.weight) in _PLAIN_TENSORS
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and base.weight.dtype == x.dtype
        and layer.lora_B[name].bias is None
        and name not in layer.lora_variant
    )
    return name if plain else None
