"""Faster ways to run a model with an unmerged adapter: context managers to put around generating, in anyone's code.

``with fused(model): model.generate(...)``. Weights are not changed and nothing is merged; training, merged, disabled or
several active adapters, and layers that ``fused`` does not know (quantised, experts, embeddings) are left to PEFT.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.strategies.row_norms import unrounded_row_norms

_HALF = (torch.bfloat16, torch.float16)
Forward = Callable[..., Tensor]
# Rows (n, in) to rows (n, out).
Product = Callable[[Tensor], Tensor]
# A layer's input to its rows (n, in) and their ``x Aᵀ`` (n, rank).
Down = Callable[[Tensor], tuple[Tensor, Tensor]]


@contextlib.contextmanager
def fused(model: nn.Module, adapter_name: str | None = None) -> Iterator[int]:
    """LoRA and DoRA in inference with two small kernels per adapted module instead of PEFT's five or more.

    ``x Aᵀ`` is one product for all modules that read the same input (q, k and v; gate and up), the scaling is folded
    into B, and DoRA's norms are computed once. Computes in the adapter's dtype as PEFT does, in float32 for half
    precision on a CPU. The adapter's values are copied when the block is entered: changes to them inside are not seen.

    Args:
        model: a PEFT model, or a transformers model with LoRA layers in it, in eval mode.
        adapter_name: which adapter; the one active in each layer if not given.

    Yields:
        How many modules were patched.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    folded = [part for part in (_fold(layer, adapter_name) for layer in layers) if part is not None]
    patched = []
    try:
        for group in _shared_inputs(model, folded):
            for part, forward in zip(group, _forwards(group), strict=True):
                part.layer.forward = forward  # type: ignore[method-assign]
                patched.append(part.layer)
        yield len(patched)
    finally:
        for layer in patched:
            # Deleting the instance's attribute brings the class's own method back.
            layer.__dict__.pop("forward", None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Folded:
    """One LoRA layer as what it computes: ``base(x) · row_scale + x Aᵀ Bᵀ + shift``.

    ``a`` is (rank, in), ``b_rows`` is Bᵀ (rank, out) with all scalings in it, both in the dtype to compute in;
    ``row_scale`` (out,) is DoRA's, ``shift`` (out,) what biases leave; None where there is none.
    """

    layer: LoraLinear
    name: str
    base: Product
    a: Tensor
    b_rows: Tensor
    row_scale: Tensor | None
    shift: Tensor | None


def _fold(layer: Any, adapter_name: str | None) -> _Folded | None:
    """The layer with its constants worked out, or None where PEFT has to run it."""
    active = layer.active_adapters
    if layer.training or layer.merged or layer.disable_adapters or len(active) != 1 or "forward" in layer.__dict__:
        return None
    name = active[0]
    if name not in layer.lora_A or adapter_name not in (None, name):
        return None
    variant = layer.lora_variant.get(name)
    base = layer.base_layer
    if not (variant is None or isinstance(variant, DoraLinearVariant)) or not _is_plain(base):
        return None
    a, b, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    weight, bias = base.weight, base.bias
    if not isinstance(a, nn.Linear) or not isinstance(b, nn.Linear) or a.weight.device != weight.device:
        return None
    with torch.no_grad():
        dtype = torch.float32 if weight.device.type == "cpu" and weight.dtype in _HALF else a.weight.dtype
        folded_b = b.weight.float() * scaling
        shift = None if b.bias is None else b.bias.float() * scaling
        row_scale = None
        if variant is not None:
            norms = unrounded_row_norms(
                weight.detach(), a.weight.detach(), b.weight.detach(), scaling, layer.fan_in_fan_out
            )
            row_scale = (layer.lora_magnitude_vector[name].weight / norms).float()
            folded_b = folded_b * row_scale[:, None]
            shift = None if bias is None else bias.float() * (1 - row_scale)
    return _Folded(
        layer=layer,
        name=name,
        base=_base_product(base),
        a=a.weight.detach().to(dtype),
        # A product of one row with a contiguous Bᵀ takes half as long on a CPU as with B as PEFT keeps it.
        b_rows=folded_b.to(dtype).T.contiguous(),
        row_scale=None if row_scale is None else row_scale.to(dtype),
        shift=None if shift is None else shift.to(dtype),
    )


def _is_plain(base: Any) -> bool:
    """Whether a layer multiplies by a weight in memory and does nothing else: no quantisation, hooks or subclasses."""
    plain = type(base) in (nn.Linear, Conv1D) and base.weight.dtype in (torch.float32, *_HALF)
    return plain and not base._forward_hooks and not base._forward_pre_hooks and "forward" not in base.__dict__


def _base_product(base: Any) -> Product:
    """The base layer on rows (n, in). A plain product of matrices: what nn.Linear does for batches of sequences, and a
    call of the module itself, cost as much as the product of a small layer."""
    weight, bias = (base.weight.T if isinstance(base, nn.Linear) else base.weight), base.bias
    if bias is None:
        return lambda rows: torch.mm(rows, weight)
    return lambda rows: torch.addmm(bias, rows, weight)


def _shared_inputs(model: nn.Module, parts: Sequence[_Folded]) -> Iterable[list[_Folded]]:
    """The layers in the order they run in, those together that were given one and the same tensor.

    Found by watching a forward pass over two tokens. A layer that takes no part in it stands alone.
    """
    seen: dict[tuple[Any, ...], list[_Folded]] = {}
    inputs: list[Tensor] = []
    calls: dict[int, int] = {}

    def watch(part: _Folded) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0]
            inputs.append(x)  # kept, so that no later tensor can have the same id
            calls[id(part)] = calls.get(id(part), 0) + 1
            seen.setdefault((id(x), x._version, part.a.dtype, part.a.device), []).append(part)

        return hook

    handles = [part.layer.register_forward_pre_hook(watch(part)) for part in parts]
    try:
        if parts:
            embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
            tokens = torch.zeros(1, 2, dtype=torch.long, device=embedding.weight.device)
            # Tensors of inference mode would not tell whether the model changed them in place between two layers.
            with torch.inference_mode(False), torch.no_grad():
                _transformers_model(model)(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    once = [[part for part in group if calls[id(part)] == 1] for group in seen.values()]
    together = {id(part) for group in once for part in group}
    return [*(group for group in once if group), *([part] for part in parts if id(part) not in together)]


def _transformers_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forwards(group: Sequence[_Folded]) -> list[Forward]:
    """A forward function for each layer of a group; the first one's product serves all the others."""
    ranks = [part.a.shape[0] for part in group]
    stacked = torch.cat([part.a for part in group]).T
    shared = _Shared()
    return [_guarded(part, _up(part, _down(stacked, ranks, position, shared))) for position, part in enumerate(group)]


@dataclasses.dataclass(slots=True)
class _Shared:
    """The input that the first layer of a group saw last, and what came of it for each; cleared by the last one."""

    x: Tensor | None = None
    rows: Tensor | None = None
    products: Sequence[Tensor] = ()


def _down(stacked: Tensor, ranks: Sequence[int], position: int, shared: _Shared) -> Down:
    """``x Aᵀ`` of one layer of a group; ``stacked`` is (in, all ranks)."""
    inputs, dtype = stacked.shape[0], stacked.dtype
    last = position == len(ranks) - 1
    # Columns of the stacked matrix, so that a layer called with another input needs no copy of A.
    own = stacked.split(list(ranks), 1)[position]

    def alone(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, inputs)
        return rows, torch.mm(rows.to(dtype), own)

    def leader(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, inputs)
        products = torch.mm(rows.to(dtype), stacked).split(ranks, 1)
        shared.x, shared.rows, shared.products = x, rows, products
        return rows, products[0]

    def follower(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = shared.rows
        if x is not shared.x or rows is None:
            return alone(x)
        product = shared.products[position]
        if last:
            shared.x, shared.rows, shared.products = None, None, ()
        return rows, product

    if len(ranks) == 1:
        return alone
    return leader if position == 0 else follower


def _up(part: _Folded, down: Down) -> Forward:
    """The whole layer: its base product, and what the adapter adds to it."""
    base, b_rows, row_scale, shift = part.base, part.b_rows, part.row_scale, part.shift
    weight: Any = part.layer.base_layer.weight
    dtype, outputs = weight.dtype, b_rows.shape[1]

    def change(low: Tensor) -> Tensor:
        return torch.mm(low, b_rows) if shift is None else torch.addmm(shift, low, b_rows)

    def scaled(x: Tensor) -> Tensor:
        rows, low = down(x)
        changed = change(low)
        summed = torch.addcmul(changed, base(rows).to(changed.dtype), row_scale)  # type: ignore[arg-type]
        return summed.to(dtype).view(*x.shape[:-1], outputs)

    def added(x: Tensor) -> Tensor:
        rows, low = down(x)
        # Adding in place rounds the sum once, as PEFT does, and needs no third tensor.
        return base(rows).add_(change(low)).view(*x.shape[:-1], outputs)

    def accumulated(x: Tensor) -> Tensor:
        rows, low = down(x)
        return base(rows).addmm_(low, b_rows).view(*x.shape[:-1], outputs)

    if row_scale is not None:
        return scaled
    return added if shift is not None or b_rows.dtype != dtype else accumulated


def _guarded(part: _Folded, quick: Forward) -> Forward:
    """The quick function while the adapter is as it was when it was folded, PEFT's own forward otherwise."""
    layer, name, active = part.layer, part.name, part.layer._active_adapter
    stock = layer.forward

    def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if (
            arguments
            or named
            or layer._disable_adapters
            or layer.merged_adapters
            or (layer._active_adapter is not active and layer.active_adapters != [name])
            or torch.is_grad_enabled()
        ):
            return stock(x, *arguments, **named)
        return quick(x)

    return forward
