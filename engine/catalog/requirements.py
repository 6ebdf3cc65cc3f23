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
from engine.catalog.adapter_requirements import ability_problems, adapter_problems, saved_options
from engine.catalog.adapter_types import adapter_types
from engine.catalog.architectures import ModelEntry, models
from engine.catalog.kinds.subject import Subject
from engine.catalog.lookup import nearest
from engine.catalog.modules import ModuleGroup
from engine.catalog.strategies import strategy
from engine.result import Device
from engine.spec import (
    FreshAdapter,
    InspectSpec,
    Measured,
    MergeFilesSpec,
    NotHere,
    PlanSpec,
    PredictSpec,
    Spec,
    SpecError,
)

_MODEL_TYPES_FILE = Path(__file__).parent / "model_types.json"


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
    if isinstance(spec, PredictSpec | PlanSpec):
        # What keeps one of its specs from being predicted is said of that one, and the others are predicted.
        return []
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
        field, name, options = "adapter.type", adapter.type, dict(adapter.options)
    else:
        options, broken = saved_options(adapter)
        if broken:
            return Subject(config, groups, None, {}, devices), broken
        field, name = "adapter.path", str(options.get("peft_type") or "").lower()
    entry = adapter_types().get(name)
    found = list(adapter_problems(adapter, options, facts, groups))
    if entry is not None and not found:
        found = list(ability_problems(spec, field, entry, options, groups))
    return Subject(config, groups, entry, options, devices), found


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
            yield NotHere(
                "attention", "flash_attention_2 needs the package flash-attn, which is not installed; use sdpa"
            )


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
        yield NotHere("strategy", f"{way.id} needs a C++ compiler (g++ or clang++), and this machine has none")
    if "zero_b" in way.needs and not leaves_b_at_zero(subject.options):
        yield SpecError(
            "strategy",
            f"{way.id} needs B to be zero, and init_lora_weights {subject.options['init_lora_weights']!r} fills it; "
            "use factored_norm",
        )


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler on this machine."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def leaves_b_at_zero(options: Mapping[str, Any]) -> bool:
    """Whether LoRA with these options begins with a B of zeros."""
    return options.get("init_lora_weights", True) in (True, "true", "gaussian")
