"""What a model offers to adapt: groups of modules that share a name and a shape.

Holds no model and finds no modules (``engine.adapters`` does). Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Kind = Literal["Linear", "Conv1D", "Embedding", "experts"]
Role = Literal[
    "query", "key", "value", "qkv", "attention_out", "mlp", "lm_head", "embedding", "router", "experts", "other"
]


@dataclasses.dataclass(frozen=True)
class ModuleGroup:
    """Modules of one name and shape.

    ``name`` is the shortest dotted ending that tells the group from the model's other groups ("q_proj"; GPT-2 has
    "attn.c_proj" and "mlp.c_proj"). ``path`` is the full module name with "{}" in place of the layer's index, and of
    the expert's where experts are modules of their own (``inner``). A group of kind "experts" stands for one 3-D
    parameter that holds all ``experts`` matrices of a layer; its path ends in the parameter's name. ``bias`` says
    whether the modules have a bias, None where that is not known.
    """

    name: str
    kind: Kind
    role: Role
    in_features: int
    out_features: int
    path: str
    layers: tuple[int, ...] = ()
    inner: tuple[int, ...] = ()
    experts: int = 1
    tied: bool = False
    bias: bool | None = None

    @property
    def count(self) -> int:
        """Number of modules (of parameters, for fused experts)."""
        return max(1, len(self.layers)) * max(1, len(self.inner))

    @property
    def weight_elements(self) -> int:
        """Elements of all weights of the group together."""
        return self.in_features * self.out_features * self.experts * self.count

    def module_names(self) -> list[str]:
        """Full names of all modules of the group, in layer order."""
        if not self.layers:
            return [self.path]
        if not self.inner:
            return [self.path.format(layer) for layer in self.layers]
        return [self.path.format(layer, inner) for layer in self.layers for inner in self.inner]

    def added_parameters(self, rank: int) -> int:
        """Parameters that LoRA of this rank adds to all modules of the group together."""
        return rank * (self.in_features + self.out_features) * self.experts * self.count

    def narrowed(self, names: Iterable[str]) -> list[ModuleGroup]:
        """The part of this group whose full names are in ``names``, as few groups as can hold it."""
        wanted = set(names)
        if not self.layers:
            return [self] if self.path in wanted else []
        if not self.inner:
            layers = tuple(layer for layer in self.layers if self.path.format(layer) in wanted)
            return [dataclasses.replace(self, layers=layers)] if layers else []
        by_inner: dict[tuple[int, ...], list[int]] = {}
        for layer in self.layers:
            inner = tuple(index for index in self.inner if self.path.format(layer, index) in wanted)
            if inner:
                by_inner.setdefault(inner, []).append(layer)
        return [dataclasses.replace(self, layers=tuple(layers), inner=inner) for inner, layers in by_inner.items()]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; ``count`` is in it for readers, and ignored by :meth:`from_json`."""
        return {**dataclasses.asdict(self), "layers": list(self.layers), "inner": list(self.inner), "count": self.count}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModuleGroup:
        """The inverse of :meth:`to_json`; keys that are not fields are ignored."""
        names = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in data.items() if key in names}
        values["layers"] = tuple(values.get("layers", ()))
        values["inner"] = tuple(values.get("inner", ()))
        return cls(**values)


def all_module_names(groups: Sequence[ModuleGroup]) -> list[str]:
    """Full names of the modules of all groups."""
    return [name for group in groups for name in group.module_names()]
