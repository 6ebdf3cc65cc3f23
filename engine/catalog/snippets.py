"""Python to use a spec's adapter and strategy in one's own code. Text only: runs nothing and imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.catalog.adapter_types import AdapterType, adapter_type, largest_fitting
from engine.catalog.architectures import models
from engine.catalog.modules import ModuleGroup
from engine.catalog.options import cpt_example
from engine.catalog.strategies import Strategy, strategy
from engine.catalog.targets import PRESETS, TargetError, Targets, names_of, resolve
from engine.spec import FreshAdapter, InferenceSpec, Measured, MergeSpec, TrainSpec

_HUB_SOURCE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/blob")
_AUTO_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}
_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}
_QUANTIZATIONS = {"int8": "load_in_8bit=True", "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4"'}
_OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "sgd": "torch.optim.SGD",
    "adafactor": "torch.optim.Adafactor",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
}


def snippet(spec: Measured, groups: Sequence[ModuleGroup] | None = None) -> str:
    """A short program that loads the model, attaches the same adapter, and does what the kind measures.

    ``groups`` are the model's modules where they are known (bundled models' always are); without them a preset other
    than all-linear is left for the reader to fill in.
    """
    bundled = models().get(spec.model)
    if groups is None and bundled is not None:
        groups = bundled.groups
    way = strategy(spec.kind, spec.strategy)
    from_config = bundled is not None and not _HUB_SOURCE.match(bundled.source)
    lines = ["import torch", *_import_lines(spec, from_config)]
    body, contexts = _work_lines(spec, way)
    contexts = [line for line in (way.snippet_context, *contexts) if line]
    if contexts:
        lines += ["", *contexts]
    lines += ["", *_model_lines(spec, from_config)]
    if isinstance(spec.adapter, FreshAdapter):
        lines += _config_lines(spec.adapter, groups, _TASK_TYPES[spec.task])
    if spec.adapter is not None:
        attach = "model = " + _attach_call(spec)
        wrapped = spec.kind == "init" and way.snippet_context
        lines += [f"with {way.id}():", f"    {attach}"] if wrapped else [attach]
    return "\n".join(lines + body) + "\n"


def _import_lines(spec: Measured, from_config: bool) -> list[str]:
    names = []
    if isinstance(spec.adapter, FreshAdapter):
        names.append(f"from peft import {adapter_type(spec.adapter.type).config_class}, get_peft_model")
    elif spec.adapter is not None:
        names.append("from peft import PeftModel")
    wanted = [_AUTO_CLASSES[spec.task]]
    wanted += ["AutoConfig"] if from_config else []
    wanted += ["BitsAndBytesConfig"] if spec.quantization else []
    return [*names, f"from transformers import {', '.join(sorted(wanted))}"]


def _model_lines(spec: Measured, from_config: bool) -> list[str]:
    bundled = models().get(spec.model)
    tail = f"dtype=torch.{spec.dtype}, attn_implementation={spec.attention!r}"
    auto = _AUTO_CLASSES[spec.task]
    lines = []
    if spec.quantization:
        lines.append(f"quantization_config = BitsAndBytesConfig({_QUANTIZATIONS[spec.quantization]})")
        tail += ", quantization_config=quantization_config"
    if from_config and bundled is not None:
        config = ", ".join(f"{name}={value!r}" for name, value in bundled.config.items() if name != "model_type")
        lines.append(f"config = AutoConfig.for_model({bundled.model_type!r}, {config})")
        lines.append(f"model = {auto}.from_config(config, {tail})")
    else:
        found = _HUB_SOURCE.match(bundled.source) if bundled is not None else None
        name = found[1] if found else spec.model
        lines.append(f"model = {auto}.from_pretrained({name!r}, {tail})")
    if spec.device != "cpu":
        lines.append(f"model = model.to({spec.device!r})")
    return lines


def _work_lines(spec: Measured, way: Strategy) -> tuple[list[str], list[str]]:
    """What the kind does with the model once the adapter is on, and the imports that it needs."""
    if isinstance(spec, MergeSpec):
        return _merge_lines(way), []
    if isinstance(spec, TrainSpec):
        return _train_lines(spec, way)
    if isinstance(spec, InferenceSpec):
        return _inference_lines(spec, way)
    return [], []


def _merge_lines(way: Strategy) -> list[str]:
    call = f"model = model.merge_and_unload({'safe_merge=True' if way.id == 'safe' else ''})"
    return [f"with {way.id}():", f"    {call}"] if way.snippet_context else [call]


def _train_lines(spec: TrainSpec, way: Strategy) -> tuple[list[str], list[str]]:
    section = spec.train
    imports, contexts = [], [f"{way.id}()"] if way.snippet_context else []
    if section.loss_chunks > 1:
        imports.append("from engine.strategies.losses import ChunkedLoss")
        contexts.append(f"ChunkedLoss(model, {section.loss_chunks})")
    if section.sequence_tiles > 1:
        imports.append("from engine.strategies.losses import TiledMlp")
        contexts.append(f"TiledMlp(model, {section.sequence_tiles})")
    imports += ["import bitsandbytes"] if section.optimizer == "adamw_8bit" else []
    lines = ["", "model.train()"]
    if section.gradient_checkpointing:
        lines.append('model.activation_checkpointing_enable({"use_reentrant": False})')
    lines += [
        "trained = [parameter for parameter in model.parameters() if parameter.requires_grad]",
        f"optimizer = {_OPTIMIZERS[section.optimizer]}(trained, lr=1e-4)",
        f"size = ({section.batch_size}, {section.context_length})",
        "input_ids = torch.randint(model.config.get_text_config().vocab_size, size, device=model.device)",
    ]
    labels = "input_ids"
    if spec.task == "sequence_classification":
        labels = "labels"
        lines.append("labels = torch.randint(2, size[:1], device=model.device)")
    name = "model"
    if way.id == "compiled":
        lines.append("compiled = torch.compile(model)")
        name = "compiled"
    scale = f" / {section.accumulation}" if section.accumulation > 1 else ""
    step = [
        f"loss = {name}(input_ids=input_ids, labels={labels}, use_cache=False).loss{scale}",
        "loss.backward()",
    ]
    if section.accumulation > 1:
        step = [f"for _ in range({section.accumulation}):", *(f"    {line}" for line in step)]
    lines += [f"with {', '.join(contexts)}:", *(f"    {line}" for line in step)] if contexts else step
    return [*lines, "optimizer.step()", "optimizer.zero_grad()"], imports


def _inference_lines(spec: InferenceSpec, way: Strategy) -> tuple[list[str], list[str]]:
    section = spec.inference
    imports, contexts = [], []
    if way.snippet_context:
        contexts.append(f"{way.id}(model)")
    if way.id == "dora_cached":
        imports.append("from peft.helpers import DoraCaching")
        contexts.append("DoraCaching()")
    lines = [
        "",
        "model.eval()",
        *(["model.forward = torch.compile(model.forward)"] if way.id == "compiled" else []),
        f"size = ({section.batch_size}, {section.prompt_tokens})",
        "input_ids = torch.randint(model.config.get_text_config().vocab_size, size, device=model.device)",
        f"with {', '.join(['torch.inference_mode()', *contexts])}:",
        f"    tokens = model.generate(input_ids=input_ids, min_new_tokens={section.new_tokens}, "
        f"max_new_tokens={section.new_tokens}, do_sample=False)",
    ]
    return lines, imports


def _config_lines(adapter: FreshAdapter, groups: Sequence[ModuleGroup] | None, task_type: str) -> list[str]:
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
    for field in entry.fields:
        if field.fields and values.get(field.name) is not None:
            # PEFT takes an empty mapping for none at all.
            values[field.name] = {nested.name: nested.default for nested in field.fields} | values[field.name]
    if entry.id == "cpt":
        values |= cpt_example(len(values["cpt_token_ids"]))
    lines = [f"config = {entry.config_class}(", f'    task_type="{task_type}",']
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


def _attach_call(spec: Measured) -> str:
    assert spec.adapter is not None
    keep = "" if spec.adapter.adapter_dtype == "float32" else ", autocast_adapter_dtype=False"
    if isinstance(spec.adapter, FreshAdapter):
        return f"get_peft_model(model, config{keep})"
    low = ", low_cpu_mem_usage=True" if spec.adapter.low_cpu_mem_usage else ""
    return f"PeftModel.from_pretrained(model, {spec.adapter.path!r}{keep}{low})"
