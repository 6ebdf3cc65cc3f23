"""List what a model offers to adapt: its modules, grouped by name and shape. Changes nothing and needs no weights."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engine.catalog.modules import Kind, ModuleGroup
from engine.catalog.roles import role_of


@dataclasses.dataclass(frozen=True)
class _Found:
    """One adaptable module, before modules are grouped."""

    name: str
    kind: Kind
    in_features: int
    out_features: int
    experts: int
    tied: bool
    bias: bool
    is_head: bool

    @property
    def template(self) -> str:
        """The name with its first two numeric parts replaced by "{}"."""
        return _template(self.name)

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.name.split(".") if part.isdecimal())[:2]


def _template(name: str) -> str:
    parts = name.split(".")
    for position in [place for place, part in enumerate(parts) if part.isdecimal()][:2]:
        parts[position] = "{}"
    return ".".join(parts)


def list_groups(model: PreTrainedModel) -> list[ModuleGroup]:
    """The model's adaptable modules, grouped by name and shape, in the order of the model's own modules.

    Linear, Conv1D and embedding layers, and the 3-D parameters of fused experts. Works on ``meta`` as on real weights.
    """
    by_key: dict[tuple[Any, ...], list[_Found]] = {}
    for module in _adaptable(model):
        key = (
            module.template,
            module.kind,
            module.in_features,
            module.out_features,
            module.experts,
            module.tied,
            module.bias,
            module.is_head,
        )
        by_key.setdefault(key, []).append(module)
    every_template = {_template(name) for name, _ in model.named_modules()} | {key[0] for key in by_key}
    groups = []
    for modules in by_key.values():
        first = modules[0]
        name = _short_name(first.template, every_template, least_parts=2 if first.kind == "experts" else 1)
        role = "lm_head" if first.is_head else role_of(first.template, first.kind, first.out_features)
        for path, layers, inner in _index_sets(modules):
            groups.append(
                ModuleGroup(
                    name=name,
                    kind=first.kind,
                    role=role,
                    in_features=first.in_features,
                    out_features=first.out_features,
                    path=path,
                    layers=layers,
                    inner=inner,
                    experts=first.experts,
                    tied=first.tied,
                    bias=first.bias,
                )
            )
    return groups


def _adaptable(model: PreTrainedModel) -> Iterator[_Found]:
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            tied = uses[id(module.weight)] > 1
            if isinstance(module, nn.Linear):
                kind, sizes = "Linear", (module.in_features, module.out_features)
            elif isinstance(module, nn.Embedding):
                kind, sizes = "Embedding", (module.num_embeddings, module.embedding_dim)
            else:
                kind, sizes = "Conv1D", (module.weight.shape[0], module.weight.shape[1])
            bias = getattr(module, "bias", None) is not None
            yield _Found(name, typing.cast(Kind, kind), *sizes, experts=1, tied=tied, bias=bias, is_head=module is head)
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    sizes = (parameter.shape[1], parameter.shape[2])
                    # As PEFT reads it: (experts, out, in) unless the module says that it is transposed.
                    if not getattr(module, "is_transposed", False):
                        sizes = sizes[::-1]
                    yield _Found(
                        f"{name}.{parameter_name}",
                        "experts",
                        *sizes,
                        experts=parameter.shape[0],
                        tied=False,
                        bias=False,
                        is_head=False,
                    )


def _short_name(template: str, every_template: set[str], least_parts: int) -> str:
    """The shortest ending without a layer index that no other module's name has, else the longest ending there is."""
    parts = template.split(".")
    usable = parts[max((place + 1 for place, part in enumerate(parts) if part == "{}"), default=0) :]
    for length in range(min(least_parts, len(usable)), len(usable) + 1):
        name = ".".join(usable[-length:])
        if not any(other != template and (other == name or other.endswith(f".{name}")) for other in every_template):
            return name
    return ".".join(usable)


def _index_sets(modules: Sequence[_Found]) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Path template, layers and inner indices such that each yield names exactly layers x inner."""
    depth = len(modules[0].indices)
    if depth == 0:
        yield modules[0].name, (), ()
    elif depth == 1:
        yield modules[0].template, tuple(module.indices[0] for module in modules), ()
    else:
        inner_of: dict[int, list[int]] = {}
        for module in modules:
            inner_of.setdefault(module.indices[0], []).append(module.indices[1])
        layers_of: dict[tuple[int, ...], list[int]] = {}
        for layer, inner in inner_of.items():
            layers_of.setdefault(tuple(inner), []).append(layer)
        for inner_indices, layers in layers_of.items():
            yield modules[0].template, tuple(layers), inner_indices
