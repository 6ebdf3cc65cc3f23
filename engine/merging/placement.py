"""Which parameter of the model each checkpoint tensor becomes, and where in it; which parameters are one and the same.

Asks transformers itself: the model is built on the ``meta`` device, and names go through the renamings and
conversions that ``from_pretrained`` applies (``transformers.core_model_loading``). Reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D

from engine.models import build_meta
from engine.spec import SpecError

Shape = tuple[int, ...]
#: Whether a module's weight is (out, in), (in, out), or the module has parameters of its own making.
Layout = Literal["rows", "columns", "own"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a checkpoint tensor goes.

    The whole ``parameter``, or of its ``expert`` the rows from ``first_row`` on. ``conversion`` names operations
    between file and parameter that cannot be followed; such a tensor can be copied, not merged into.
    """

    parameter: str
    expert: int | None = None
    first_row: int = 0
    conversion: str | None = None


class Architecture:
    """A model's parameters by name, without weights."""

    def __init__(self, base: Path) -> None:
        """Build the model of a folder on ``meta``.

        Raises:
            SpecError: one sentence on ``base``, when transformers cannot build it.
        """
        try:
            self._model: PreTrainedModel = build_meta(str(base))
        except SpecError as error:
            raise SpecError("base", error.sentence) from None
        self._modules = dict(self._model.named_modules())
        self._state = dict(self._model.state_dict())
        by_identity: dict[int, list[str]] = {}
        for name, value in self._model.named_parameters(remove_duplicate=False):
            by_identity.setdefault(id(value), []).append(name)
        self._ties = {name: tuple(names) for names in by_identity.values() for name in names}

    def module(self, name: str) -> nn.Module | None:
        """A module by name, None where there is none."""
        return self._modules.get(name)

    def shape(self, parameter: str) -> Shape | None:
        """A parameter's shape, None where there is none of this name."""
        found = self._state.get(parameter)
        return None if found is None else tuple(found.shape)

    def layout(self, module: nn.Module) -> Layout:
        """How a module's ``weight`` is stored."""
        if isinstance(module, nn.Linear):
            return "rows"
        return "columns" if isinstance(module, Conv1D | nn.Embedding) else "own"

    def tied_to(self, parameter: str) -> tuple[str, ...]:
        """All names of the parameter that has this name, itself included, in the model's order."""
        return self._ties.get(parameter, (parameter,))

    def embedding_weights(self) -> frozenset[str]:
        """The names of the input and output embeddings' weights."""
        ends = (self._model.get_input_embeddings(), self._model.get_output_embeddings())
        return frozenset(f"{name}.weight" for name, module in self._modules.items() if module in ends)

    def place(self, tensors: Mapping[str, Shape]) -> dict[str, Placement]:
        """Where each checkpoint tensor goes, given their shapes; tensors that the model ignores are left out."""
        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = self._model.base_model_prefix
        found: dict[str, Placement] = {}
        # The tensors that are made into one parameter, by the pattern that they matched.
        parts: dict[str, dict[str, list[str]]] = {}
        for name in sorted(tensors, key=dot_natural_key):
            # As transformers' convert_and_load_state_dict_in_model does, in its order.
            parameter, pattern = rename_source_key(name, renamings, converters, prefix, self._state)
            if parameter not in self._state and name in self._state:
                parameter, pattern = rename_source_key(name, [], [], prefix, self._state)
            if parameter not in self._state:
                continue
            if pattern is None:
                found[name] = Placement(parameter)
            else:
                parts.setdefault(parameter, {}).setdefault(pattern, []).append(name)
        for parameter, names in parts.items():
            converter = by_pattern[next(iter(names))]
            found.update(_place_parts(parameter, converter, names, tensors))
        return found


def _place_parts(
    parameter: str, converter: WeightConverter, names: Mapping[str, list[str]], shapes: Mapping[str, Shape]
) -> Iterable[tuple[str, Placement]]:
    """Experts that are stacked along the first dimension, and matrices that are put below each other."""
    stacks = isinstance(converter.operations[0], MergeModulelist) and converter.operations[0].dim == 0
    rest = converter.operations[1:]
    joins = len(rest) == 1 and isinstance(rest[0], Concatenate) and rest[0].dim == 1
    if not stacks or not (joins or not rest):
        operations = " and ".join(type(operation).__name__ for operation in converter.operations)
        yield from ((name, Placement(parameter, conversion=operations)) for each in names.values() for name in each)
        return
    first_row = 0
    for pattern in converter.source_patterns:
        for expert, name in enumerate(names.get(pattern, ())):
            yield name, Placement(parameter, expert, first_row)
        first_row += shapes[names[pattern][0]][0] if pattern in names else 0
