"""The page on adapter types as text: what each can do, from the catalog, and what each costs, from measured figures.

Measures nothing and imports no torch; ``engine.generate_adapter_table`` measures and writes the page.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from engine.catalog.abilities import cannot, holds
from engine.catalog.adapter_types import CannotWhen, adapter_type, adapter_types
from engine.catalog.choices import AdapterChoice, adapter_choices

COLUMNS: Mapping[str, str] = {
    "train": "Train",
    "merge": "Merge",
    "unmerge": "Unmerge",
    "mixed_batch": "Several in one batch",
    "disable": "Off = base",
    "gradient_checkpointing": "Gradient checkpointing",
    "sequence_classification": "Classifier",
    "half_precision": "Half precision",
}
# What the conditions of the catalog's ``cannot_when`` are called where they are not options.
_CONDITIONS = {
    "dtype": "model in {}",
    "adapter_dtype": "adapter in {}",
    "every_layer_has_bias": "a layer without bias",
}
FIGURES: Mapping[str, str] = {
    "trainable_parameters": "Trainable parameters",
    "init_time_s": "Init, ms",
    "step_time_s": "Train step, ms",
    "merge_time_s": "Merge, ms",
    "overhead_ratio": "Decode, of base",
}


def page(figures: Mapping[str, Mapping[str, Sequence[float]]], setting: Sequence[str]) -> str:
    """The whole page as Markdown.

    Args:
        figures: measured values (seconds, counts, ratios) by adapter choice and by the names in ``FIGURES``.
        setting: lines on what was measured on what.
    """
    parts = [
        "# Adapter types",
        "What each adapter type of the installed PEFT can do on a causal language model, and what it costs. Written by "
        "`make adapter-table`; the first part comes from the catalog, and `tests/engine/test_adapter_matrix.py` tries "
        "every yes and every no on a small model.",
        capabilities(),
        costs(figures, setting),
    ]
    return "\n\n".join(parts) + "\n"


# --- what they can do -------------------------------------------------------------------------------------------------


def capabilities() -> str:
    """The table of what each adapter can do, its footnotes, and the types that cannot be measured at all."""
    notes: list[str] = []
    header = ["Adapter", *COLUMNS.values(), "What it is"]
    rows = [
        [choice.label, *(_ability(choice, what, notes) for what in COLUMNS), choice.summary]
        for choice in adapter_choices()
    ]
    lines = ["## What they can do", "", *_table(header, rows), ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    lines += ["", "A form or option of a type can do less than the type:", ""]
    lines += [f"- {line}" for line in _conditions()]
    lines += ["", "## What they need", ""]
    lines += [f"- **{entry.label}**: {entry.data}." for entry in adapter_types().values() if entry.data]
    lines += ["", "Not to be measured here:", ""]
    lines += [
        f"- **{entry.label}** (`{entry.id}`): {entry.unavailable_reason}."
        for entry in adapter_types().values()
        if entry.unavailable_reason
    ]
    return "\n".join(lines)


def _ability(choice: AdapterChoice, what: str, notes: list[str]) -> str:
    entry = adapter_type(choice.type)
    reason = cannot(entry, choice.options, what)
    if reason is not None:
        return f"no{_note(reason, notes)}"
    for case in entry.cannot_when:
        of_form = {name: wanted for name, wanted in case.when.items() if name not in _CONDITIONS}
        if what in case.cannot and holds(choice.options, of_form):
            return f"in part{_note(f'Not with {_when(case)}: {case.cannot[what]}', notes)}"
    return "yes"


def _note(reason: str, notes: list[str]) -> str:
    sentence = _sentence(reason)
    if sentence not in notes:
        notes.append(sentence)
    return f"<sup>{notes.index(sentence) + 1}</sup>"


def _conditions() -> list[str]:
    found = []
    for entry in adapter_types().values():
        for case in entry.cannot_when:
            what = "”, “".join(COLUMNS.get(name, name).lower() for name in case.cannot)
            reasons = "; ".join(dict.fromkeys(case.cannot.values()))
            found.append(f"**{entry.label}** with {_when(case)}: not “{what}”. {_sentence(reasons)}")
    return found


def _sentence(text: str) -> str:
    return f"{text}." if text.startswith("aLoRA") else f"{text[0].upper()}{text[1:]}."


def _when(case: CannotWhen) -> str:
    parts = []
    for name, wanted in case.when.items():
        values = wanted.replace("|", " or ").replace(".*", "…").strip("…")
        if name in _CONDITIONS:
            parts.append(_CONDITIONS[name].format(values))
        else:
            parts.append(f"`{name}`" if values in ("true", "") else f"`{name}` {values}")
    return " and ".join(parts)


# --- what they cost ---------------------------------------------------------------------------------------------------


def costs(figures: Mapping[str, Mapping[str, Sequence[float]]], setting: Sequence[str]) -> str:
    """The table of what each adapter costs, medians with the number of repeats, and what was measured on what."""
    rows = [
        [choice.label, *(_figure(name, figures.get(choice.id, {}).get(name, ())) for name in FIGURES)]
        for choice in adapter_choices()
    ]
    return "\n".join(["## What they cost", "", *setting, "", *_table(["Adapter", *FIGURES.values()], rows)])


def _figure(name: str, values: Sequence[float]) -> str:
    """The median, to three significant digits; a dash where there is nothing."""
    if not values:
        return "–"
    median = statistics.median(values)
    if name == "trainable_parameters":
        return f"{median:,.0f}"
    return _three_digits(median * 1000 if name.endswith("_s") else median)


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
