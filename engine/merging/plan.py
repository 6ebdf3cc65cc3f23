"""What becomes of each tensor: copied, replaced, or merged into; every mismatch is found before anything runs.

Reads headers and builds the model without weights. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.merging.adapter_folder import AdaptedModule, AdapterFolder
from engine.merging.base_folder import BaseFolder
from engine.merging.placement import Architecture, Placement
from engine.merging.weight_file import TensorEntry, WeightFile
from engine.spec import SpecError

MERGEABLE = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class LowRank:
    """``s·B·A`` for one parameter, as its tensors in the adapter's file.

    ``by_columns`` where the weight is (in, out), so that ``Aᵀ·Bᵀ`` is added and DoRA scales columns. With ``experts``
    the factors of all experts lie in one tensor: A is (experts · rank, in), B is (out, rank · experts).
    """

    a: TensorEntry
    b: TensorEntry
    scaling: float
    magnitude: TensorEntry | None = None
    by_columns: bool = False
    experts: int | None = None


@dataclass(frozen=True)
class Change:
    """What is added to one checkpoint tensor: all of a low-rank product, or one expert's rows from ``first_row`` on."""

    low_rank: LowRank | None = None
    expert: int | None = None
    first_row: int = 0
    bias: TensorEntry | None = None
    bias_scaling: float = 1.0


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to write (the position in ``entry`` does not matter), where its values are, and what is added."""

    entry: TensorEntry
    file: WeightFile
    source: TensorEntry
    change: Change | None = None


@dataclass(frozen=True)
class OutputShard:
    """One file to write."""

    name: str
    tensors: tuple[OutputTensor, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """Everything that will be written."""

    shards: tuple[OutputShard, ...]
    config: Mapping[str, Any] | None
    index: Mapping[str, Any] | None
    merged: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()

    @property
    def tensors(self) -> Iterator[OutputTensor]:
        """Every tensor in the order of writing."""
        return (tensor for shard in self.shards for tensor in shard.tensors)


@dataclass
class _Wanted:
    """What the adapter asks for, by parameter of the model (or by checkpoint tensor where those names were used)."""

    changes: dict[str, Change] = field(default_factory=dict)
    replaced: dict[str, TensorEntry] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return self.changes.keys() | self.replaced.keys()


def make_plan(base: BaseFolder, adapter: AdapterFolder) -> Plan:
    """Decide what is written for each tensor.

    Raises:
        SpecError: one sentence naming the first thing of the adapter that the base does not have, or does not have in
            this shape; or a base weight that cannot be merged into.
    """
    architecture = Architecture(base.path)
    tensors = base.tensors
    places = architecture.place({name: entry.shape for name, (_, entry) in tensors.items()})
    wanted = _wanted(adapter, architecture, {name: entry.shape for name, (_, entry) in tensors.items()})
    untied = _untied(adapter, architecture, wanted)
    added = _added_names(untied, places)
    shards = []
    for shard in base.shards:
        outputs = []
        for name, entry in shard.tensors.items():
            place = places.get(name)
            outputs.append(_output(name, entry, shard, place, wanted, adapter))
            if outputs[-1].change is not None and place is not None:
                _refuse_misfit(entry, place, architecture)
            for other in added.pop(place.parameter, ()) if place else ():
                outputs.append(_output(other, entry, shard, Placement(other), wanted, adapter))
        shards.append(OutputShard(shard.path.name, tuple(outputs), shard.metadata))
    plan = Plan(
        tuple(shards),
        _config(base.config, untied),
        _index(base.index, shards),
        merged=tuple(t.entry.name for s in shards for t in s.tensors if t.change is not None),
        replaced=tuple(t.entry.name for s in shards for t in s.tensors if t.file is adapter.weights),
        untied=untied,
    )
    _refuse_unused(wanted, places, set(tensors) | set(untied))
    return plan


# --- what the adapter asks for ------------------------------------------------------------------------------------


def _wanted(adapter: AdapterFolder, architecture: Architecture, tensors: Mapping[str, tuple[int, ...]]) -> _Wanted:
    wanted = _Wanted()
    for name, entry in adapter.replaced.items():
        shape = architecture.shape(name) or tensors.get(name)
        if shape is None:
            raise _mismatch(adapter, f"it holds a whole {name}, which the base does not have")
        if shape != entry.shape:
            raise _mismatch(adapter, f"its {name} is {_size(entry.shape)} and the base's is {_size(shape)}")
        wanted.replaced[name] = entry
    for module in adapter.modules.values():
        parameter, target, by_columns = _target(module, adapter, architecture, tensors)
        shape = architecture.shape(parameter) or tensors[parameter]
        low_rank = _low_rank(module, adapter, target, shape, by_columns, _is_transposed(architecture, parameter))
        wanted.changes[parameter] = Change(low_rank)
        if module.bias is not None:
            bias = parameter.removesuffix("weight") + "bias"
            if (architecture.shape(bias) or tensors.get(bias)) != module.bias.shape:
                raise _mismatch(adapter, f"{module.name} has a lora_B.bias, and the base has no such bias")
            wanted.changes[bias] = Change(bias=module.bias, bias_scaling=low_rank.scaling)
    return wanted


def _target(
    module: AdaptedModule, adapter: AdapterFolder, architecture: Architecture, tensors: Mapping[str, tuple[int, ...]]
) -> tuple[str, str, bool]:
    """The parameter that a module's factors change, the name that PEFT's patterns match, whether it is (in, out)."""
    name = module.name.replace(".base_layer", "")
    found = architecture.module(name)
    if found is not None:
        # PEFT wraps the parameters of one module around each other in their order, so the first is the innermost.
        own = [key for key, _ in found.named_parameters(recurse=False) if _is_targeted(adapter, f"{name}.{key}")]
        position = len(own) - 1 - module.name.count(".base_layer")
        if 0 <= position < len(own):
            return f"{name}.{own[position]}", f"{name}.{own[position]}", False
        layout = architecture.layout(found)
        if layout != "own":
            return f"{name}.weight", name, layout == "columns"
        raise _mismatch(adapter, f"it adapts {name}, a {type(found).__name__}, whose parameters it does not name")
    # Adapters from before experts were fused use the names that the checkpoint still has.
    if f"{name}.weight" in tensors:
        return f"{name}.weight", name, False
    raise _mismatch(adapter, f"it adapts {name}, which the base does not have")


def _is_targeted(adapter: AdapterFolder, parameter: str) -> bool:
    targets = adapter.config.get("target_parameters") or ()
    return any(parameter == target or parameter.endswith(f".{target}") for target in targets)


def _is_transposed(architecture: Architecture, parameter: str) -> bool:
    return bool(getattr(architecture.module(parameter.rpartition(".")[0]), "is_transposed", False))


def _low_rank(
    module: AdaptedModule,
    adapter: AdapterFolder,
    target: str,
    shape: tuple[int, ...],
    by_columns: bool,
    is_transposed: bool,
) -> LowRank:
    assert module.a is not None
    assert module.b is not None
    if len(shape) not in (2, 3) or len(module.a.shape) != 2 or len(module.b.shape) != 2:
        raise _mismatch(adapter, f"{module.name} is {_size(shape)} in the base, which LoRA does not adapt")
    experts = shape[0] if len(shape) == 3 else 1
    by_columns = by_columns or (len(shape) == 3 and is_transposed)
    outputs, inputs = shape[-2:][::-1] if by_columns else shape[-2:]
    rank = module.a.shape[0] // experts
    if rank == 0 or module.a.shape != (rank * experts, inputs) or module.b.shape != (outputs, rank * experts):
        raise _mismatch(
            adapter,
            f"{module.name} has A of {_size(module.a.shape)} and B of {_size(module.b.shape)}, which do not fit the "
            f"base's weight of {_size(shape)}",
        )
    if module.magnitude is not None and module.magnitude.shape != (outputs,):
        raise _mismatch(adapter, f"{module.name} has a magnitude of {_size(module.magnitude.shape)}, not of {outputs}")
    return LowRank(
        module.a,
        module.b,
        adapter.scaling(target, rank),
        module.magnitude,
        by_columns,
        experts if len(shape) == 3 else None,
    )


# --- tied weights -------------------------------------------------------------------------------------------------


def _untied(adapter: AdapterFolder, architecture: Architecture, wanted: _Wanted) -> tuple[str, ...]:
    """The names of tied parameters that must have weights of their own, because the adapter changes one of them."""
    found: list[str] = []
    for parameter in wanted.names:
        names = architecture.tied_to(parameter)
        if len(names) > 1 and names[0] not in found:
            if not set(names) <= architecture.embedding_weights():
                raise SpecError(
                    "base", f"{' and '.join(names)} are one weight in the model's code and cannot be parted"
                )
            if adapter.config.get("ensure_weight_tying"):
                raise SpecError(
                    "adapter", f"ensure_weight_tying is set and {parameter} is a tied weight; merge it with PEFT"
                )
            found += names
    return tuple(found)


def _added_names(untied: tuple[str, ...], places: Mapping[str, Placement]) -> dict[str, list[str]]:
    """For each untied parameter that has a tensor, the names that have none and get a copy of it."""
    held = {place.parameter for place in places.values()}
    present = [name for name in untied if name in held]
    missing = [name for name in untied if name not in held]
    return {present[0]: missing} if present and missing else {}


def _config(config: Mapping[str, Any], untied: tuple[str, ...]) -> dict[str, Any] | None:
    """The config to write, None where the base's own serves."""
    if not untied:
        return None
    changed = {**config, "tie_word_embeddings": False}
    for name, value in config.items():
        if isinstance(value, Mapping) and "tie_word_embeddings" in value:
            changed[name] = {**value, "tie_word_embeddings": False}
    return changed


# --- what is written ----------------------------------------------------------------------------------------------


def _output(
    name: str,
    entry: TensorEntry,
    shard: WeightFile,
    place: Placement | None,
    wanted: _Wanted,
    adapter: AdapterFolder,
) -> OutputTensor:
    """One tensor of the output: base values or replaced ones, with or without a change."""
    source, entry = entry, replace(entry, name=name)
    parameter = place.parameter if place else name
    change = wanted.changes.get(name) or wanted.changes.get(parameter)
    replacement = wanted.replaced.get(name) or wanted.replaced.get(parameter)
    if change is None and replacement is None:
        return OutputTensor(entry, shard, source)
    if place is not None and place.conversion is not None:
        raise SpecError(
            "base", f"{name} reaches the model through {place.conversion}, which merging files does not know"
        )
    if entry.dtype not in MERGEABLE:
        raise SpecError("base", f"{name} is {entry.dtype}, and merging needs float32, bfloat16 or float16")
    if replacement is not None and replacement.shape != entry.shape:
        raise SpecError("adapter", f"a whole {parameter} cannot be put into {name}, which is only a part of it")
    # A change found under the checkpoint's own name is for the whole tensor.
    if change is not None and place is not None and name not in wanted.changes:
        change = replace(change, expert=place.expert, first_row=place.first_row)
    if replacement is not None:
        return OutputTensor(entry, adapter.weights, replacement, change)
    return OutputTensor(entry, shard, source, change)


def _refuse_misfit(entry: TensorEntry, place: Placement, architecture: Architecture) -> None:
    """The weights are those that config.json describes, or what was checked against it does not hold for them."""
    shape = architecture.shape(place.parameter) or entry.shape
    is_part = place.expert is not None
    if (entry.shape[-1] if is_part else entry.shape) != (shape[-1] if is_part else shape):
        raise SpecError(
            "base", f"{entry.name} is {_size(entry.shape)}, and by its config.json {place.parameter} is {_size(shape)}"
        )


def _index(index: Mapping[str, Any] | None, shards: list[OutputShard]) -> dict[str, Any] | None:
    if index is None:
        return None
    total = sum(tensor.entry.size_bytes for shard in shards for tensor in shard.tensors)
    names = {tensor.entry.name: shard.name for shard in shards for tensor in shard.tensors}
    return {**index, "metadata": {**(index.get("metadata") or {}), "total_size": total}, "weight_map": names}


def _refuse_unused(wanted: _Wanted, places: Mapping[str, Placement], names: set[str]) -> None:
    reached = names | {place.parameter for place in places.values()}
    lost = next((name for name in sorted(wanted.names) if name not in reached), None)
    if lost is not None:
        raise SpecError("base", f"no shard holds {lost}, which the adapter changes")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _mismatch(adapter: AdapterFolder, sentence: str) -> SpecError:
    return SpecError("adapter", f"{adapter.path.name} does not belong to this base: {sentence}")
