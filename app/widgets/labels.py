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
from engine import catalog


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


def variant_label(kind: str, adapter: str | None, strategy: str | None) -> str:
    """What is compared in the charts: "DoRA · Zero-B norm"."""
    return f"{adapter or 'No adapter'} · {strategy_label(kind, strategy)}"


def adapter_label(adapter: Mapping[str, Any]) -> str:
    """The label of a spec's adapter; for a saved one, of what its own config says it is."""
    if "path" not in adapter:
        return catalog.adapter_label(adapter)
    config = saved_config(str(adapter["path"])) or {}
    return catalog.adapter_label({"type": str(config.get("peft_type") or "").lower(), "options": config})


def saved_config(folder: str) -> dict[str, Any] | None:
    """A saved adapter's ``adapter_config.json``, None where it is missing or no JSON object."""
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def targets_label(spec: Mapping[str, Any]) -> str:
    """The target modules of a spec, or where its saved adapter lies."""
    adapter = spec.get("adapter") or {}
    if "path" in adapter:
        return Path(str(adapter["path"])).name
    return formatting.targets_text(adapter.get("target_modules"))


def setting_label(spec: Mapping[str, Any]) -> str:
    """Everything beside adapter type and strategy that moves the numbers: only runs of one setting are compared.

    Fields at their usual value are left out to keep it short.
    """
    adapter = spec.get("adapter") or {}
    parts = [str(spec.get("device", "")), str(spec.get("dtype", ""))]
    if "path" in adapter:
        parts.append(f"saved in {Path(str(adapter['path'])).name}")
        parts += ["low CPU memory usage"] if adapter.get("low_cpu_mem_usage") else []
    else:
        parts.append(targets_label(spec))
        parts += [f"rank {adapter['rank']}"] if adapter.get("rank") is not None else []
        parts += [f"dropout {adapter['dropout']:g}"] if adapter.get("dropout") else []
    if adapter.get("adapter_dtype") not in (None, "float32"):
        parts.append(f"adapter in {adapter['adapter_dtype']}")
    if spec.get("threads") is not None:
        parts.append(formatting.plural(int(spec["threads"]), "thread"))
    if spec.get("attention") not in (None, "sdpa"):
        parts.append(str(spec["attention"]))
    if spec.get("weights") not in (None, "synthetic"):
        parts.append(f"{spec['weights']} weights")
    return ", ".join(part for part in parts if part)


def run_title(kind: str, model: str, adapter: str | None, strategy: str | None, name: str | None) -> str:
    """A run's own name if it has one, else what it measures."""
    if name:
        return name
    if kind == "inspect":
        return f"Inspect {model_label(model)}"
    return f"{variant_label(kind, adapter, strategy)} on {model_label(model)}"
