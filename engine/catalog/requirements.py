"""Everything that keeps a spec from running on this machine, found before it is queued, as one sentence each.

Reads the catalog, config files and the local hub cache; what it cannot see without torch (a local model's modules) is
given to it. Builds nothing. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.catalog import sources
from engine.catalog.adapter_types import AdapterType, adapter_type, adapter_types, fits, largest_fitting
from engine.catalog.architectures import ModelEntry, models
from engine.catalog.kinds.subject import Subject
from engine.catalog.lookup import nearest
from engine.catalog.modules import ModuleGroup
from engine.catalog.strategies import strategy
from engine.catalog.targets import TargetError, Targets, resolve
from engine.result import Device
from engine.spec import FreshAdapter, InspectSpec, Measured, MergeFilesSpec, SavedAdapter, Spec, SpecError

_MODEL_TYPES_FILE = Path(__file__).parent / "model_types.json"
# LoRA's options that its wrapper of fused experts does not have, with what is wrong.
_NOT_ON_EXPERTS = (
    "use_dora",
    "lora_bias",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "alora_invocation_tokens",
)


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """A model that is not bundled, as far as its config.json tells."""

    id: str
    label: str
    config: Mapping[str, Any]
    model_type: str


def model_facts(name: str) -> ModelEntry | LocalModel:
    """What is known of a bundled model, a local folder or a hub id without building it.

    Raises:
        SourceError: one sentence, when there is no such model or no causal language model of its type can be built.
    """
    if name in models():
        return models()[name]
    config = sources.read_config(name)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise sources.SourceError(f"the config.json of {name} has no model_type")
    if model_type not in supported_model_types():
        if "auto_map" in config:
            raise sources.SourceError(
                f"{name} needs its own code (model type {model_type}), and remote code is never run"
            )
        guess = nearest(model_type, supported_model_types())
        raise sources.SourceError(
            f"{name} has model type {model_type!r}, which the installed transformers cannot build as a causal language "
            f"model; the nearest that it can is {guess}"
        )
    folder = sources.local_folder(name)
    return LocalModel(name, folder.name if folder else name, config, model_type)


@functools.cache
def supported_model_types() -> frozenset[str]:
    """The model types that the installed transformers can build as causal language models."""
    return frozenset(json.loads(_MODEL_TYPES_FILE.read_text(encoding="utf-8"))["causal_lm"])


def problems(spec: Spec, devices: Sequence[Device], groups: Sequence[ModuleGroup] | None) -> list[SpecError]:
    """All that is wrong with a spec on this machine; empty when it can run.

    Args:
        spec: a valid spec.
        devices: the devices of this machine.
        groups: the model's modules; None where they are not known yet. A bundled model's are known here.
    """
    if isinstance(spec, MergeFilesSpec):
        return list(importlib.import_module("engine.catalog.kinds.merge_files").problems(spec))
    found: list[SpecError] = []
    facts: ModelEntry | LocalModel | None = None
    try:
        facts = model_facts(spec.model)
    except sources.SourceError as error:
        found.append(SpecError("model", str(error)))
    if isinstance(spec, InspectSpec):
        return found
    if isinstance(facts, ModelEntry):
        groups = facts.groups
    found += _weight_problems(spec, facts)
    found += _device_problems(spec, devices)
    found += _attention_problems(spec, facts)
    subject, own = _subject(spec, facts, groups, devices)
    found += own
    if own and subject.adapter_type is None:
        # What the adapter is cannot be told, so nothing more can be said of what it needs.
        return found
    found += _strategy_problems(spec, subject)
    found += importlib.import_module(f"engine.catalog.kinds.{spec.kind}").problems(spec, subject)
    return found


def _subject(
    spec: Measured,
    facts: ModelEntry | LocalModel | None,
    groups: Sequence[ModuleGroup] | None,
    devices: Sequence[Device],
) -> tuple[Subject, list[SpecError]]:
    """What is known of the spec's surroundings, and what is wrong with its adapter by itself."""
    config = None if facts is None else facts.config
    adapter = spec.adapter
    if adapter is None:
        return Subject(config, groups, None, {}, devices), []
    if isinstance(adapter, FreshAdapter):
        entry = adapter_type(adapter.type)
        found = list(_fresh_problems(adapter, facts, groups)) + list(_cannot(spec, "adapter.type", entry))
        return Subject(config, groups, entry, adapter.options, devices), found
    options, broken = _read_saved(adapter)
    if broken:
        return Subject(config, groups, None, {}, devices), [broken]
    known = adapter_types().get(str(options.get("peft_type") or "").lower())
    found = list(_saved_problems(adapter, options, facts, groups))
    found += list(_cannot(spec, "adapter.path", known)) if known else []
    return Subject(config, groups, known, options, devices), found


def _cannot(spec: Measured, field: str, entry: AdapterType) -> Iterator[SpecError]:
    """What PEFT does not offer for this type."""
    reason = entry.cannot.get(spec.kind)
    if reason is not None and entry.unavailable_reason is None:
        yield SpecError(field, f"{entry.label} has no {spec.kind}: {reason}")


def _weight_problems(spec: Measured, facts: ModelEntry | LocalModel | None) -> Iterator[SpecError]:
    if spec.weights != "pretrained":
        return
    if isinstance(facts, ModelEntry):
        yield SpecError("weights", f"{facts.id} is bundled without weights; use synthetic, or a local folder or hub id")
    elif facts is not None and not sources.has_safetensors(facts.id):
        where = (
            "has no .safetensors file" if sources.local_folder(facts.id) else "has no safetensors that can be read here"
        )
        yield SpecError("weights", f"{facts.id} {where}; use synthetic")


def _device_problems(spec: Measured, devices: Sequence[Device]) -> Iterator[SpecError]:
    device = next((device for device in devices if device.id == spec.device), None)
    if device is None:
        here = ", ".join(device.id for device in devices) or "no device"
        yield SpecError("device", f"{spec.device} is not on this machine, which has {here}")
    elif spec.dtype not in device.dtypes:
        yield SpecError("dtype", f"{device.name} cannot compute in {spec.dtype}; it has {', '.join(device.dtypes)}")


def _attention_problems(spec: Measured, facts: ModelEntry | LocalModel | None) -> Iterator[SpecError]:
    if isinstance(facts, ModelEntry) and spec.attention not in facts.attention:
        yield SpecError("attention", f"{facts.label} has no {spec.attention}; it has {', '.join(facts.attention)}")
    elif spec.attention == "flash_attention_2":
        if not spec.device.startswith("cuda"):
            yield SpecError("attention", f"flash_attention_2 needs a GPU, and the device is {spec.device}; use sdpa")
        elif spec.dtype == "float32":
            yield SpecError("attention", "flash_attention_2 needs bfloat16 or float16, not float32")
        elif importlib.util.find_spec("flash_attn") is None:
            yield SpecError(
                "attention", "flash_attention_2 needs the package flash-attn, which is not installed; use sdpa"
            )


# --- fresh adapters ---------------------------------------------------------------------------------------------------


def _fresh_problems(
    adapter: FreshAdapter, facts: ModelEntry | LocalModel | None, groups: Sequence[ModuleGroup] | None
) -> Iterator[SpecError]:
    entry = adapter_type(adapter.type)
    yield from _type_problems("adapter.type", entry, facts)
    for field in entry.fields:
        value = adapter.options.get(field.name, field.default)
        if field.divides_rank and value and adapter.rank is not None and adapter.rank % value:
            yield SpecError("adapter.rank", f"{adapter.rank} must be a multiple of {field.name} ({value})")
    if adapter.options.get("use_dora") and adapter.options.get("lora_bias"):
        yield SpecError("adapter.options.lora_bias", "cannot be combined with use_dora")
    if not entry.targets_modules or groups is None or adapter.target_modules is None:
        return
    try:
        chosen = resolve(groups, adapter.target_modules, facts.label if facts else "this model")
    except TargetError as error:
        yield SpecError("adapter.target_modules", str(error))
        return
    yield from _kind_problems(adapter, entry, chosen)
    yield from _size_problems(adapter, entry, chosen)


def _type_problems(field: str, entry: AdapterType, facts: ModelEntry | LocalModel | None) -> Iterator[SpecError]:
    if entry.unavailable_reason:
        yield SpecError(field, f"{entry.label} cannot be measured here: it {entry.unavailable_reason}")
    elif facts is not None and entry.model_types and facts.model_type not in entry.model_types:
        known = ", ".join(entry.model_types)
        yield SpecError(field, f"PEFT has {entry.label} for the model types {known}, not for {facts.model_type}")


def _kind_problems(adapter: FreshAdapter, entry: AdapterType, chosen: Targets) -> Iterator[SpecError]:
    misfits = [group for group in chosen.groups if not entry.adapts(group.kind)]
    if misfits:
        names = ", ".join(group.name for group in misfits)
        what = "fused experts" if misfits[0].kind == "experts" else f"{misfits[0].kind} layers"
        yield SpecError("adapter.target_modules", f"{entry.label} cannot adapt {what} ({names})")
        return
    experts = ", ".join(group.name for group in chosen.groups if group.kind == "experts")
    if not experts:
        return
    if adapter.options.get("use_dora"):
        yield SpecError(
            "adapter.options.use_dora", f"DoRA cannot adapt fused experts ({experts}); target other modules"
        )
    if adapter.dropout:
        yield SpecError("adapter.dropout", f"must be 0 where fused experts are adapted ({experts})")
    for option in _NOT_ON_EXPERTS[1:]:
        if adapter.options.get(option):
            yield SpecError(
                f"adapter.options.{option}", f"does not work on fused experts ({experts}); target other modules"
            )


def _size_problems(adapter: FreshAdapter, entry: AdapterType, chosen: Targets) -> Iterator[SpecError]:
    smallest = min(chosen.groups, key=lambda group: min(group.in_features, group.out_features))
    limit = min(smallest.in_features, smallest.out_features)
    if adapter.rank is not None and entry.rank_bounded and adapter.rank > limit:
        yield SpecError(
            "adapter.rank",
            f"{adapter.rank} is larger than the smallest matched layer "
            f"({smallest.name}, {smallest.out_features} x {smallest.in_features}); at most {limit}",
        )
    for field in entry.fields:
        value = adapter.options.get(field.name)
        if not field.fits or not isinstance(value, int):
            continue
        misfit = next((group for group in chosen.groups if not fits(field, value, group)), None)
        if misfit is not None:
            must = "exceeds the weight of" if field.fits == "elements" else "does not divide"
            best = largest_fitting(dataclasses.replace(field, fits_up_to=value), chosen.groups)
            yield SpecError(
                f"adapter.options.{field.name}",
                f"{value} {must} {misfit.name} ({misfit.out_features} x {misfit.in_features}); {best} would fit",
            )


# --- saved adapters ---------------------------------------------------------------------------------------------------


def _read_saved(adapter: SavedAdapter) -> tuple[dict[str, Any], SpecError | None]:
    folder = Path(adapter.path)
    if not folder.is_dir():
        return {}, SpecError("adapter.path", f"{folder} is not a folder")
    path = folder / "adapter_config.json"
    if not path.is_file():
        return {}, SpecError("adapter.path", f"the folder {folder} has no adapter_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, SpecError("adapter.path", f"the adapter_config.json in {folder} cannot be read ({str(error)[:120]})")
    if not isinstance(config, dict):
        return {}, SpecError("adapter.path", f"the adapter_config.json in {folder} is not a JSON object")
    return config, None


def _saved_problems(
    adapter: SavedAdapter,
    config: Mapping[str, Any],
    facts: ModelEntry | LocalModel | None,
    groups: Sequence[ModuleGroup] | None,
) -> Iterator[SpecError]:
    kind = str(config.get("peft_type") or "").lower()
    entry = adapter_types().get(kind)
    if entry is None:
        guess = nearest(kind, adapter_types()) if kind else "LORA"
        yield SpecError(
            "adapter.path", f"{adapter.path} has the adapter type {kind.upper() or 'none'}; PEFT's nearest is {guess}"
        )
        return
    yield from _type_problems("adapter.path", entry, facts)
    if not (Path(adapter.path) / "adapter_model.safetensors").is_file():
        yield SpecError("adapter.path", f"the folder {adapter.path} has no adapter_model.safetensors")
    if config.get("tokenizer_kwargs"):
        yield SpecError("adapter.path", f"the adapter in {adapter.path} asks for a tokenizer with settings of its own")
    wanted = config.get("target_modules")
    if groups is None or not wanted or not entry.targets_modules:
        return
    try:
        # PEFT takes what matches of a saved list and ignores the rest, so one match is enough.
        names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
        alternatives = [wanted] if isinstance(wanted, str) else [(name,) for name in names]
        if not any(_matches(groups, alternative) for alternative in alternatives):
            resolve(groups, alternatives[0], facts.label if facts else "this model")
    except TargetError as error:
        yield SpecError("adapter.path", f"the saved adapter does not fit: {error}")


def _matches(groups: Sequence[ModuleGroup], wanted: str | tuple[str, ...]) -> bool:
    try:
        return bool(resolve(groups, wanted).groups)
    except TargetError:
        return False


# --- strategies -------------------------------------------------------------------------------------------------------


def _strategy_problems(spec: Measured, subject: Subject) -> Iterator[SpecError]:
    way = strategy(spec.kind, spec.strategy)
    if "lora" in way.needs and (subject.adapter_type is None or subject.adapter_type.id != "lora"):
        label = subject.adapter_type.label if subject.adapter_type else "the bare model"
        yield SpecError("strategy", f"{way.id} works on LoRA and its forms, not on {label}; use stock")
    elif "dora" in way.needs and not subject.is_dora:
        yield SpecError("strategy", f"{way.id} replaces a step that only DoRA has; use stock, or set use_dora")
    if "gpu" in way.needs and not any(device.kind == "cuda" for device in subject.devices):
        yield SpecError("strategy", f"{way.id} needs a GPU, and this machine has none")
    if "compiler" in way.needs and not has_compiler():
        yield SpecError("strategy", f"{way.id} needs a C++ compiler (g++ or clang++), and this machine has none")
    if "zero_b" in way.needs and not _leaves_b_at_zero(subject.options):
        yield SpecError(
            "strategy",
            f"{way.id} needs B to be zero, and init_lora_weights {subject.options['init_lora_weights']!r} fills it; "
            "use factored_norm",
        )


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler on this machine."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def _leaves_b_at_zero(options: Mapping[str, Any]) -> bool:
    return options.get("init_lora_weights", True) in (True, "true", "gaussian")
