"""Attach adapters to a model on PyTorch's ``meta`` device, with the shapes and dtypes that they have elsewhere.

``get_peft_model`` fails under fake tensors. On ``meta`` some of PEFT's types ask for values to know how much there is
of something; where their config says how much, it is answered here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from peft import peft_model
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.shira.layer import ShiraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from engine.prediction.fake import Numbers
from engine.strategies.patching import replaced

try:
    from peft.tuners.unilora import model as unilora
except ImportError:  # a type that came later than the oldest PEFT
    unilora = None  # type: ignore[assignment]


@contextlib.contextmanager
def attaching() -> Iterator[None]:
    """Attach, load and merge adapters on the ``meta`` device in the block.

    A saved adapter is attached by its config alone: its numbers decide no memory.
    """
    with contextlib.ExitStack() as stack:
        for context in (
            torch.device("meta"),
            Numbers(),
            replaced(BaseTunerLayer, "_move_adapter_to_device_of_base_layer", _in_the_dtype_of_the_base),
            replaced(torch, "randperm", _any_order),
            replaced(ShiraLayer, "update_layer", _without_mask(ShiraLayer.update_layer)),
            replaced(peft_model, "load_peft_weights", lambda *_, **__: {}),
            replaced(peft_model, "set_peft_model_state_dict", _nothing_to_load),
        ):
            stack.enter_context(context)
        if unilora is not None:
            stack.enter_context(replaced(unilora.UniLoraModel, "_assign_unilora_indices_and_scales", _uni_lora_scales))
        yield


def _in_the_dtype_of_the_base(self: BaseTunerLayer, adapter_name: str, device: torch.device | None = None) -> None:
    """PEFT gives a new adapter the base layer's dtype while it moves it to the base's device, but not on ``meta``."""
    _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
    for name in (*self.adapter_layer_names, *self.other_param_names):
        holder = getattr(self, name, None)
        if not isinstance(holder, nn.ModuleDict | nn.ParameterDict | BufferDict) or adapter_name not in holder:
            continue
        item = holder[adapter_name]
        own = getattr(item, "dtype", None)
        if dtype is not None and dtype.is_floating_point and (own is None or own.is_floating_point):
            holder[adapter_name] = item.to(dtype=dtype)


def _any_order(number: int, **_: Any) -> Tensor:
    """Which places SHiRA and WaveFT choose is random; how many is in their configs."""
    return torch.empty(number, dtype=torch.long)


def _without_mask(original: Any) -> Any:
    """SHiRA keeps the places of the ones in a mask: as many as it has weights."""

    def update_layer(self: ShiraLayer, adapter_name: str, mask: Tensor | None, *arguments: Any, **named: Any) -> None:
        original(self, adapter_name, None, *arguments, **named)
        if mask is not None:
            number = self.shira_weight[adapter_name].numel()
            self.shira_indices[adapter_name] = torch.empty(2, number, dtype=torch.int)

    return update_layer


def _uni_lora_scales(self: Any, adapter_name: str) -> None:
    """Uni-LoRA counts how often each entry of its vector is used; a scale for each place comes of it in any case."""
    for layer in self._iter_unilora_layers():
        if adapter_name in layer.unilora_indices_A:
            indices = layer.unilora_indices_A[adapter_name], layer.unilora_indices_B[adapter_name]
            layer.update_scaling(adapter_name, *(torch.empty(places.shape) for places in indices))


def _nothing_to_load(*_: Any, **__: Any) -> SimpleNamespace:
    return SimpleNamespace(missing_keys=[], unexpected_keys=[])
