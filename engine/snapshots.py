"""Remember a model as it was before an adapter was attached, and put it back. Attaches nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from engine.spec import FreshAdapter, SavedAdapter


class Snapshot:
    """A model's module tree, flags, hooks and configs as they were.

    No weight is copied, but each parameter's storage is kept alive, so that initialisations which replace a base weight
    (PiSSA) can be undone. Only where the adapter writes into the base weights themselves are they copied. Without
    ``keep_weights`` no storage is kept alive, and whoever replaces one puts it back.
    """

    def __init__(
        self, model: PreTrainedModel, adapter: FreshAdapter | SavedAdapter | None = None, keep_weights: bool = True
    ) -> None:
        self._modules = [(module, _contents(module.__dict__)) for module in model.modules()]
        self._parameters = [
            (parameter, parameter.data if keep_weights else None, parameter.requires_grad)
            for parameter in model.parameters()
        ]
        self._copies = (
            [parameter.data.clone() for parameter in model.parameters()] if _writes_into_weights(model, adapter) else []
        )
        configs: dict[int, PretrainedConfig] = {}
        for module in model.modules():
            _collect_configs(module.__dict__, configs)
        self._configs = [(config, _contents(config.__dict__)) for config in configs.values()]

    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for module, contents in self._modules:
            _put_back(module.__dict__, contents)
        for config, contents in self._configs:
            _put_back(config.__dict__, contents)
        for parameter, data, requires_grad in self._parameters:
            if data is not None:
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for (_, data, _), copy in zip(self._parameters, self._copies, strict=bool(self._copies)):
            if data is not None:
                data.copy_(copy)


def snapshot(model: PreTrainedModel, adapter: FreshAdapter | SavedAdapter | None = None) -> Snapshot:
    """Remember a model before ``adapter`` is attached; :meth:`Snapshot.restore` undoes the attaching."""
    return Snapshot(model, adapter)


def _writes_into_weights(model: PreTrainedModel, adapter: FreshAdapter | SavedAdapter | None) -> bool:
    """OLoRA subtracts its start from the weight itself where the weight is float32, and from a new tensor elsewhere."""
    if not isinstance(adapter, FreshAdapter) or model.dtype != torch.float32:
        return False
    return adapter.options.get("init_lora_weights") in ("olora", "orthogonal")


_Contents = dict[str, tuple[Any, Any]]


def _contents(attributes: Mapping[str, Any]) -> _Contents:
    """Each attribute with a shallow copy of it where it is a container that could be changed in place."""
    return {
        name: (value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    }


def _put_back(attributes: dict[str, Any], contents: _Contents) -> None:
    for name in attributes.keys() - contents.keys():
        del attributes[name]
    for name, (value, copy) in contents.items():
        attributes[name] = value
        if isinstance(value, list):
            value[:] = copy
        elif isinstance(value, dict | set):
            value.clear()
            value.update(copy)


def _collect_configs(attributes: Mapping[str, Any], found: dict[int, PretrainedConfig]) -> None:
    for value in attributes.values():
        if isinstance(value, PretrainedConfig) and id(value) not in found:
            found[id(value)] = value
            _collect_configs(value.__dict__, found)
