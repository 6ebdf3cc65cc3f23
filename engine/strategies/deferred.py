"""DoRA layers whose magnitude is computed when it is first read, instead of when the adapter is attached.

Until then the parameter exists, with its shape and dtype, and holds NaN. Reading it (a forward pass, merging, saving)
computes it; loading a state dict or writing values into it makes the computation unnecessary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.dora import DoraEmbeddingLayer, DoraLinearLayer
from torch import Tensor, nn

Norm = Callable[[Tensor, Tensor | None, Tensor | None, float, bool], Tensor]


class _Deferred:
    """What both kinds of deferred layer share. ``_pending`` holds a function's arguments; it goes with the class."""

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "_pending" in self.__dict__:
            compute(self)
        return nn.Module.__getattr__(self, name)  # type: ignore[arg-type]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Put another parameter in the magnitude's place, as a cast does, without reading the old one."""
        if name == "weight" and "_pending" in self.__dict__:
            self.__dict__["_parameters"][name] = param
        else:
            nn.Module.register_parameter(self, name, param)  # type: ignore[arg-type]

    def _save_to_state_dict(self, *arguments: Any, **named: Any) -> None:
        compute(self)
        nn.Module._save_to_state_dict(self, *arguments, **named)  # type: ignore[arg-type]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **named: Any) -> None:
        if f"{prefix}weight" in state_dict:
            _settle(self)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *arguments, **named)  # type: ignore[arg-type]


class DeferredDoraLinearLayer(_Deferred, DoraLinearLayer):
    """A linear or Conv1D DoRA layer without a magnitude yet; becomes a plain ``DoraLinearLayer``."""


class DeferredDoraEmbeddingLayer(_Deferred, DoraEmbeddingLayer):
    """An embedding's DoRA layer without a magnitude yet; becomes a plain ``DoraEmbeddingLayer``."""


_DEFERRED: dict[type, type] = {
    DoraLinearLayer: DeferredDoraLinearLayer,
    DoraEmbeddingLayer: DeferredDoraEmbeddingLayer,
}
_PLAIN = {deferred: plain for plain, deferred in _DEFERRED.items()}


def defer(
    layer: DoraLinearLayer, norm: Norm, base_layer: nn.Module, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> None:
    """Give a layer an empty magnitude and remember how to compute it from the base weight as it will be then.

    A and B are copied unless their product is zero, because training may change them before the first forward pass.
    """
    weight: Tensor = base_layer.weight  # type: ignore[assignment]
    changes = bool(lora_b.any()) and bool(lora_a.any())
    factors = (lora_a.detach().clone(), lora_b.detach().clone()) if changes else (None, None)
    outputs = weight.shape[1] if layer.fan_in_fan_out else weight.shape[0]
    placeholder = torch.full((outputs,), torch.nan, dtype=weight.dtype, device=weight.device)
    layer.weight = nn.Parameter(placeholder, requires_grad=True)
    # In a tuple: as an attribute of its own the base layer would become a submodule, and be saved twice.
    layer.__dict__["_pending"] = (norm, (base_layer,), *factors, scaling)
    layer.__class__ = _DEFERRED[type(layer)]


def is_pending(layer: nn.Module) -> bool:
    """Whether a DoRA layer still waits for its magnitude."""
    return "_pending" in layer.__dict__


def compute(layer: Any) -> None:
    """Compute a deferred magnitude now, unless values were written into it meanwhile."""
    pending = layer.__dict__.get("_pending")
    if pending is None:
        return
    norm, (base_layer,), lora_a, lora_b, scaling = pending
    _settle(layer)
    with torch.no_grad():
        if bool(layer.weight.isnan().all()):
            layer.weight.copy_(norm(base_layer.weight.detach(), lora_a, lora_b, scaling, layer.fan_in_fan_out))


def _settle(layer: Any) -> None:
    layer.__dict__.pop("_pending", None)
    layer.__class__ = _PLAIN.get(type(layer), type(layer))
