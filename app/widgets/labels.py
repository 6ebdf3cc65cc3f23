"""Names of runs for people: adapter, strategy, setting, target modules; and the colour of each adapter.

Pure functions on stored columns and spec JSON. Draws nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from app import formatting
from db.runs import RunRow
from engine import catalog
from engine.catalog import folders

FULL = catalog.FULL_FINE_TUNING
BASE = "Base model"
#: The origin of the runs that come with the project.
SAMPLE = "sample"
_KINDS = {
    "init": "Init",
    "merge": "Merge",
    "train": "Train",
    "inference": "Inference",
    "inspect": "Inspect",
    "predict": "Predict",
    "plan": "Plan",
    "merge_files": "Merge files",
}


def kind_label(kind: str) -> str:
    """ "merge_files" -> "Merge files"."""
    return _KINDS.get(kind, kind)


@cache
def adapter_colours() -> dict[str, str]:
    """Colour of each adapter by its label, the same on every page; adapters beyond the palette are grey."""
    palette = formatting.PALETTE
    return {
        choice.label: palette[choice.color_index]
        for choice in catalog.adapter_choices()
        if choice.color_index is not None and choice.color_index < len(palette)
    }


def adapter_colour(label: str | None) -> str:
    """Colour of one adapter, grey where it has none of its own."""
    return adapter_colours().get(label or "", formatting.GREY)


def adapter_option_label(kind: str, adapter: Mapping[str, Any] | None) -> str:
    """The label of a spec's adapter, also where there is none."""
    return bare_label(kind) if adapter is None else adapter_label(adapter)


@cache
def model_label(model: str) -> str:
    """A bundled model's label, the last part of a folder, or the hub id as it is."""
    try:
        return catalog.model(model).label
    except catalog.UnknownEntry:
        return Path(model).name if Path(model).is_absolute() else model


@cache
def strategy_label(kind: str, strategy: str | None) -> str:
    """A strategy's label, or its id where the catalog does not know it any more."""
    if strategy is None:
        return formatting.DASH
    try:
        return catalog.strategy(kind, strategy).label
    except catalog.UnknownEntry:
        return strategy


def variant_label(row: RunRow) -> str:
    """What is compared in the charts: "DoRA · Zero-B norm", "LoRA · Stock PEFT, checkpointing", "Full fine-tuning"."""
    name = row.adapter or bare_label(row.kind)
    plain = row.adapter is None or row.adapter == FULL
    way = name if plain and row.strategy == "stock" else f"{name} · {strategy_label(row.kind, row.strategy)}"
    return ", ".join([way, *savings(row.spec)])


def origin_label(origin: str) -> str:
    """Where a run that was not measured here comes from, empty for those that were."""
    return {"local": "", "import": "Imported", SAMPLE: "Sample data"}.get(origin, origin)


def bare_label(kind: str) -> str:
    """What a run without an adapter is called."""
    return FULL if kind == "train" else BASE


def savings(spec: Mapping[str, Any]) -> list[str]:
    """The fields of a train spec that save memory, as far as they are on."""
    section = spec.get("train") or {}
    parts = ["checkpointing"] if section.get("gradient_checkpointing") else []
    for field, noun in (("loss_chunks", "loss chunk"), ("sequence_tiles", "sequence tile")):
        parts += [formatting.plural(section[field], noun)] if section.get(field, 1) > 1 else []
    return parts + ([f"{spec['quantization']} base"] if spec.get("quantization") else [])


def adapter_label(adapter: Mapping[str, Any]) -> str:
    """The label of a spec's adapter; for a saved one, of what its own config says it is."""
    if "path" not in adapter:
        return catalog.adapter_label(adapter)
    config = saved_config(str(adapter["path"])) or {}
    return catalog.adapter_label({"type": str(config.get("peft_type") or "").lower(), "options": config})


def saved_config(folder: str) -> dict[str, Any] | None:
    """A saved adapter's ``adapter_config.json``, None where it is missing, no JSON object, or out of the roots."""
    try:
        config = json.loads((folders.inside(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def targets_label(spec: Mapping[str, Any]) -> str:
    """The target modules of a spec, or where its saved adapter lies."""
    adapter = spec.get("adapter")
    if not isinstance(adapter, Mapping):
        return formatting.DASH
    if "path" in adapter:
        return Path(str(adapter["path"])).name
    return formatting.targets_text(adapter.get("target_modules"))


def setting_label(spec: Mapping[str, Any]) -> str:
    """Everything beside adapter type and strategy that moves the numbers: only runs of one setting are compared.

    Fields at their usual value are left out to keep it short.
    """
    return ", ".join([*_machine_parts(spec), *_adapter_parts(spec.get("adapter") or {}), *work_parts(spec)])


def bare_setting_label(spec: Mapping[str, Any]) -> str:
    """The setting without what belongs to the adapter: what a run without one has in common with those that have."""
    return ", ".join([*_machine_parts(spec), *work_parts(spec)])


def _machine_parts(spec: Mapping[str, Any]) -> list[str]:
    return [part for part in (str(spec.get("device", "")), str(spec.get("dtype", ""))) if part]


def _adapter_parts(adapter: Mapping[str, Any]) -> list[str]:
    if "path" in adapter:
        parts = [f"saved in {Path(str(adapter['path'])).name}"]
        parts += ["low CPU memory usage"] if adapter.get("low_cpu_mem_usage") else []
    else:
        parts = [formatting.targets_text(adapter["target_modules"])] if adapter.get("target_modules") else []
        parts += [f"rank {adapter['rank']}"] if adapter.get("rank") is not None else []
        parts += [f"dropout {adapter['dropout']:g}"] if adapter.get("dropout") else []
    if adapter.get("adapter_dtype") not in (None, "float32"):
        parts.append(f"adapter in {adapter['adapter_dtype']}")
    return parts


def work_parts(spec: Mapping[str, Any]) -> list[str]:
    """What a spec asks for beside model and adapter, as far as it is not the usual."""
    parts = []
    if train := spec.get("train"):
        parts.append(f"context {train['context_length']}")
        parts += [f"{train['accumulation']}× accumulated"] if train.get("accumulation", 1) > 1 else []
        parts += [str(train["optimizer"])] if train.get("optimizer", "adamw") != "adamw" else []
        parts += ["sequence classification"] if spec.get("task") == "sequence_classification" else []
    if inference := spec.get("inference"):
        parts.append(f"{inference['prompt_tokens']} + {inference['new_tokens']} tokens")
        parts += [f"{inference['adapters']} adapters"] if inference.get("adapters", 1) > 1 else []
    section = train or inference or {}
    parts += [f"batch {section['batch_size']}"] if section.get("batch_size", 1) > 1 else []
    if spec.get("threads") is not None:
        parts.append(formatting.plural(int(spec["threads"]), "thread"))
    if spec.get("attention") not in (None, "sdpa"):
        parts.append(str(spec["attention"]))
    if spec.get("weights") not in (None, "synthetic"):
        parts.append(f"{spec['weights']} weights")
    return parts


def run_title(row: RunRow) -> str:
    """A run's own name if it has one, else what it measures."""
    if row.name:
        return row.name
    if row.kind == "inspect":
        return f"Inspect {model_label(row.model)}"
    if row.kind == "predict":
        peaks = formatting.plural(len(row.spec.get("of", ())), "peak")
        return f"Predict {peaks} of {model_label(row.model)}"
    if row.kind == "plan":
        return f"Plan what fits of {model_label(row.model)}"
    if row.kind == "merge_files":
        adapter = Path(str(row.spec.get("adapter", ""))).name
        return f"Merge files of {adapter} into {model_label(row.model)}"
    return f"{kind_label(row.kind)}: {variant_label(row)} on {model_label(row.model)}"
