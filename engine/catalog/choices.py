"""The adapters that people choose from: PEFT's types, and the well-known forms of LoRA that are options of one type.

Names and colours only; what a type's fields are is in ``adapter_types``. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from engine.catalog.adapter_types import adapter_types


@dataclasses.dataclass(frozen=True)
class AdapterChoice:
    """One entry of the adapter picker: a type with the options that make it what its label says.

    ``color_index`` is the place in the palette, None for adapters beyond it.
    """

    id: str
    label: str
    type: str
    options: Mapping[str, Any]
    summary: str
    color_index: int | None


FULL_FINE_TUNING = "Full fine-tuning"
"""What a training run without an adapter is called."""

_COLOURS = 6
_FORMS_OF_LORA: tuple[tuple[str, str, Mapping[str, Any], str], ...] = (
    ("dora", "DoRA", {"use_dora": True}, "LoRA on the direction of each weight, with its length trained apart"),
    ("rslora", "rsLoRA", {"use_rslora": True}, "LoRA scaled by the square root of its rank, for higher ranks"),
    (
        "pissa",
        "PiSSA",
        {"init_lora_weights": "pissa"},
        "LoRA that starts from each weight's largest singular directions",
    ),
    ("olora", "OLoRA", {"init_lora_weights": "olora"}, "LoRA that starts from an orthonormal basis of each weight"),
)
_RARER_FORMS_OF_LORA: tuple[tuple[str, str, Mapping[str, Any], str], ...] = (
    ("mica", "MiCA", {"init_lora_weights": "mica"}, "LoRA that trains A only, on each weight's smallest directions"),
    ("kasa", "KaSA", {"kasa_config": {}}, "LoRA in singular-value form on a weight without its smallest directions"),
    ("velora", "VeLoRA", {"velora_config": {}}, "LoRA that keeps compressed inputs for the backward pass"),
    ("monteclora", "MonteCLoRA", {"monteclora_config": {}}, "LoRA with a trained distribution that is sampled"),
)
_NEXT_TYPES = ("adalora", "vera", "ia3", "loha", "lokr", "oft", "boft", "fourierft")


@functools.cache
def adapter_choices() -> tuple[AdapterChoice, ...]:
    """All adapters that can be measured: LoRA and its well-known forms, then the other types, well-known ones first."""
    types = adapter_types()
    available = [name for name, entry in types.items() if entry.unavailable_reason is None and name != "lora"]
    ordered = [name for name in _NEXT_TYPES if name in available]
    ordered += [name for name in available if name not in ordered]
    lora = types["lora"]
    rows: list[tuple[str, str, str, Mapping[str, Any], str]] = [("lora", lora.label, "lora", {}, lora.summary)]
    rows += [(name, label, "lora", options, summary) for name, label, options, summary in _FORMS_OF_LORA]
    others = [(name, types[name].label, name, dict[str, Any](), types[name].summary) for name in ordered]
    well_known = sum(name in _NEXT_TYPES for name in ordered)
    rows += others[:well_known]
    rows += [(name, label, "lora", options, summary) for name, label, options, summary in _RARER_FORMS_OF_LORA]
    rows += others[well_known:]
    return tuple(
        AdapterChoice(name, label, kind, options, summary, place if place < _COLOURS else None)
        for place, (name, label, kind, options, summary) in enumerate(rows)
    )


def adapter_label(adapter: Mapping[str, Any]) -> str:
    """What a spec's adapter is called; "Saved adapter" for one in a folder, whose config the caller can read."""
    if "path" in adapter:
        return "Saved adapter"
    kind = str(adapter.get("type") or "")
    options = adapter.get("options") or {}
    for form in reversed(adapter_choices()):
        if form.type == kind and all(_holds(options, name, value) for name, value in form.options.items()):
            # The forms of LoRA come after plain LoRA, which every LoRA matches; DoRA names a mixture of several.
            return "DoRA" if kind == "lora" and options.get("use_dora") is True else form.label
    entry = adapter_types().get(kind)
    return entry.label if entry is not None else kind or "Saved adapter"


def _holds(options: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether the options have that value; of a config of its own, whether it is there at all."""
    return options.get(name) is not None if isinstance(value, Mapping) else options.get(name) == value
