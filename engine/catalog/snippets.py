"""Python to use a spec's adapter and strategy in one's own code. Text only: runs nothing and imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.catalog.adapter_types import AdapterType, adapter_type, largest_fitting
from engine.catalog.architectures import models
from engine.catalog.modules import ModuleGroup
from engine.catalog.strategies import strategy
from engine.catalog.targets import PRESETS, TargetError, Targets, names_of, resolve
from engine.spec import FreshAdapter, InitSpec

_HUB_SOURCE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/blob")


def snippet(spec: InitSpec, groups: Sequence[ModuleGroup] | None = None) -> str:
    """A short program that loads the model and attaches the same adapter by the same strategy.

    ``groups`` are the model's modules where they are known (bundled models' always are); without them a preset other
    than all-linear is left for the reader to fill in.
    """
    bundled = models().get(spec.model)
    if groups is None and bundled is not None:
        groups = bundled.groups
    way = strategy(spec.kind, spec.strategy)
    fresh = isinstance(spec.adapter, FreshAdapter)
    lines = ["import torch"]
    if fresh:
        entry = adapter_type(spec.adapter.type)  # type: ignore[union-attr]
        lines.append(f"from peft import {entry.config_class}, get_peft_model")
    else:
        lines.append("from peft import PeftModel")
    from_config = bundled is not None and not _HUB_SOURCE.match(bundled.source)
    lines.append(f"from transformers import {'AutoConfig, ' if from_config else ''}AutoModelForCausalLM")
    if way.snippet_context:
        lines += ["", way.snippet_context]
    lines += ["", *_model_lines(spec, from_config)]
    if fresh:
        lines += _config_lines(spec.adapter, groups)  # type: ignore[arg-type]
    attach = "model = " + _attach_call(spec)
    lines += [f"with {way.id}():", f"    {attach}"] if way.snippet_context else [attach]
    return "\n".join(lines) + "\n"


def _model_lines(spec: InitSpec, from_config: bool) -> list[str]:
    bundled = models().get(spec.model)
    tail = f"dtype=torch.{spec.dtype}, attn_implementation={spec.attention!r}"
    if from_config and bundled is not None:
        config = ", ".join(f"{name}={value!r}" for name, value in bundled.config.items() if name != "model_type")
        lines = [f"config = AutoConfig.for_model({bundled.model_type!r}, {config})"]
        lines.append(f"model = AutoModelForCausalLM.from_config(config, {tail})")
    else:
        found = _HUB_SOURCE.match(bundled.source) if bundled is not None else None
        name = found[1] if found else spec.model
        lines = [f"model = AutoModelForCausalLM.from_pretrained({name!r}, {tail})"]
    if spec.device != "cpu":
        lines.append(f"model = model.to({spec.device!r})")
    return lines


def _config_lines(adapter: FreshAdapter, groups: Sequence[ModuleGroup] | None) -> list[str]:
    entry = adapter_type(adapter.type)
    values: dict[str, Any] = dict(entry.engine_defaults)
    common = {"rank": adapter.rank, "alpha": adapter.alpha, "dropout": adapter.dropout}
    for name, peft_name in entry.common_fields.items():
        value = common[name]
        values[peft_name] = int(value) if isinstance(value, float) and value.is_integer() and name == "alpha" else value
    note = ""
    if entry.targets_modules:
        fields, note = _target_fields(adapter, entry, groups)
        values |= fields
    values |= adapter.options
    lines = [f"config = {entry.config_class}(", '    task_type="CAUSAL_LM",']
    lines += [f"    {name}={value!r}," + (note if name == "target_modules" else "") for name, value in values.items()]
    return [*lines, ")"]


def _target_fields(
    adapter: FreshAdapter, entry: AdapterType, groups: Sequence[ModuleGroup] | None
) -> tuple[Mapping[str, Any], str]:
    """The config's fields that depend on the model, and a comment where they could not be worked out."""
    wanted = adapter.target_modules or ()
    if groups is not None:
        try:
            chosen = resolve(groups, wanted)
        except TargetError:
            return {"target_modules": []}, "  # these targets match nothing in this model"
        return _resolved_fields(adapter, entry, groups, chosen), ""
    if wanted in PRESETS and wanted != "all-linear":
        return {"target_modules": []}, f"  # the module names that are {wanted} in this model"
    return {"target_modules": wanted if isinstance(wanted, str) else list(wanted)}, ""


def _resolved_fields(
    adapter: FreshAdapter, entry: AdapterType, groups: Sequence[ModuleGroup], chosen: Targets
) -> dict[str, Any]:
    values: dict[str, Any] = {"target_modules": list(chosen.names)}
    if chosen.parameters:
        values["target_parameters"] = list(chosen.parameters)
    if entry.id == "ia3":
        values["feedforward_modules"] = list(names_of(groups, [g for g in chosen.groups if g.role == "mlp"]).names)
    for field in entry.fields:
        if field.fits and adapter.options.get(field.name) is None:
            values[field.name] = largest_fitting(field, chosen.groups)
    return values


def _attach_call(spec: InitSpec) -> str:
    keep = "" if spec.adapter.adapter_dtype == "float32" else ", autocast_adapter_dtype=False"
    if isinstance(spec.adapter, FreshAdapter):
        return f"get_peft_model(model, config{keep})"
    low = ", low_cpu_mem_usage=True" if spec.adapter.low_cpu_mem_usage else ""
    return f"PeftModel.from_pretrained(model, {spec.adapter.path!r}{keep}{low})"
