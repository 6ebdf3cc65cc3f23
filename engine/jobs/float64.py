"""Run a model in float64, one module's weights at a time: what results in any other dtype are judged by.

Never holds all weights in float64. What the model's own code computes in float32 (the norms of most) stays float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

Exact = Callable[[str, Tensor], Tensor]
"""A parameter's name in its module and its values in float64 -> the values to compute with."""


def logits(model: nn.Module, input_ids: Tensor, exact: Mapping[int, Exact] | None = None) -> Tensor:
    """A forward pass's logits (tokens, vocabulary) in float64 on the CPU; virtual tokens are left out.

    ``exact`` changes the weights of some modules (by ``id``) for their call alone.
    """
    with torch.inference_mode(), _plain_experts(model), _widened(model, exact or {}):
        result: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return result[0, -input_ids.shape[1] :].double().cpu()


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a module's call reads: its own, and those of the module that a PEFT layer wraps."""
    return module.named_parameters(recurse=isinstance(module, BaseTunerLayer))


@contextlib.contextmanager
def _plain_experts(model: nn.Module) -> Iterator[None]:
    """Fused experts one after another: the grouped product that transformers prefers knows no float64."""
    name = "_experts_implementation_internal"
    configs = {
        id(found): found for module in model.modules() if hasattr(found := getattr(module, "config", None), name)
    }
    before = [(config, getattr(config, name)) for config in configs.values()]
    try:
        for config, _ in before:
            setattr(config, name, "eager")
        yield
    finally:
        for config, implementation in before:
            setattr(config, name, implementation)


@contextlib.contextmanager
def _widened(model: nn.Module, exact: Mapping[int, Exact]) -> Iterator[None]:
    kept: list[tuple[nn.Parameter, Tensor]] = []
    handles = []

    def widen(module: nn.Module, _: object) -> None:
        change = exact.get(id(module))
        for name, parameter in _weights(module):
            if parameter.is_floating_point():
                kept.append((parameter, parameter.data))
                wide = parameter.data.double()
                parameter.data = wide if change is None else change(name, wide)

    def put_back(module: nn.Module, _: object, __: object) -> None:
        own = {id(parameter) for _, parameter in _weights(module)}
        while kept and id(kept[-1][0]) in own:
            parameter, data = kept.pop()
            parameter.data = data

    for module in model.modules():
        if next(_weights(module), None) is not None:
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(put_back))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        while kept:
            parameter, data = kept.pop()
            parameter.data = data
