"""The form of the page What fits: model, methods, places and batch, all in the address, and the plan they ask for.

Looks at no database and plans nothing. What a spec cannot be is said by the spec itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app import formatting
from app.widgets import adapter_picker, address, predict_form, presenting, target_picker
from app.widgets.grid import AdapterPick
from engine import catalog
from engine.catalog import folders
from engine.catalog.targets import PRESETS
from engine.spec import THIS_MACHINE, PlanSpec, SpecError, parse_spec

DEFAULT_METHODS = (adapter_picker.BARE, "lora", "dora")
DEFAULT_PLACES = (THIS_MACHINE, "rtx-4090", "a100-80gb")
_DTYPES = ("bfloat16", "float16", "float32")
_BASES = {"as it is": None, "in int8": "int8", "in nf4": "nf4"}


@dataclass(frozen=True, slots=True)
class Form:
    """The plan that was asked for, None where something keeps it from being one; a sentence for each such thing."""

    model: str
    spec: PlanSpec | None
    problems: Sequence[str]


def place_label(name: str) -> str:
    """What a place of a plan is called."""
    return "This machine" if name == THIS_MACHINE else catalog.card(name).label


def draw() -> Form:
    """Draw the form and read it."""
    problems: list[str] = []
    with st.grid(4, min_column_width=210):
        model = predict_form.one_model()
        picks = predict_form.methods("train", DEFAULT_METHODS)
        places = address.several(
            "Where",
            [THIS_MACHINE, *catalog.cards()],
            key="places",
            default=DEFAULT_PLACES,
            text=place_label,
            help="Cards need not be here.",
            width="stretch",
        )
        context = _one_number("Context length", "context", "1024", problems, "Tokens of each sequence.")
    more = "More: batch, rank, targets, dtype, what saves memory"
    with st.container() if presenting.is_on() else st.expander(more, icon=":material/tune:"):
        shared, adapter, bases = _more(problems)
    shared["train"]["context_length"] = context
    if not picks:
        problems.append("Choose at least one method.")
    if not places:
        problems.append("Choose at least one place.")
    model = folders.expanded(model.strip())
    spec = None if problems else _plan(model, picks, places, shared, adapter, bases, problems)
    return Form(model, spec, problems)


def _more(problems: list[str]) -> tuple[dict[str, Any], dict[str, Any], list[str | None]]:
    """Fields of every spec, of every adapter, and the formats of the base."""
    with st.grid(4, min_column_width=190):
        batch = _one_number("Batch size", "batch", "1", problems, "Sequences in a step.")
        rank = _one_number("Rank", "rank", "16", problems, "Width of the adapter's matrices.")
        targets = address.one(
            "Target modules",
            PRESETS,
            key="targets",
            default=PRESETS[0],
            text=target_picker.preset_label,
            width="stretch",
        )
        dtype = address.one("Model dtype", _DTYPES, key="dtype", default=_DTYPES[0], width="stretch")
        as_model = address.one(
            "Adapter dtype", ("float32", "model's"), key="adapter_dtype", default="float32", width="stretch"
        )
        bases = address.several(
            "Base of adapters",
            list(_BASES),
            key="bases",
            default=["as it is"],
            help="Each makes a row of its own for every adapter that can work on it.",
            width="stretch",
        )
    checkpointing = address.switch("Gradient checkpointing", key="checkpointing")
    adapter = {
        "rank": rank,
        "target_modules": targets,
        "adapter_dtype": "float32" if as_model == "float32" else dtype,
    }
    shared = {"dtype": dtype, "train": {"gradient_checkpointing": checkpointing, "batch_size": batch}}
    return shared, adapter, [_BASES[name] for name in bases or ["as it is"]]


def _one_number(label: str, key: str, default: str, problems: list[str], help_text: str) -> int:
    """A field for one whole number; an empty one is the default, more than one a sentence among ``problems``."""
    values = predict_form.numbers(label, key, default, problems, help_text)
    if len(values) > 1:
        problems.append(f"{label}: give one number; how far it can go is part of the answer.")
    return int(values[0] if values else default)


def _plan(
    model: str,
    picks: Sequence[AdapterPick],
    places: Sequence[str],
    shared: dict[str, Any],
    adapter: dict[str, Any],
    bases: Sequence[str | None],
    problems: list[str],
) -> PlanSpec | None:
    """The plan; None where nothing of it is left, with a sentence for each way that cannot be."""
    specs: list[Any] = []
    for pick, base in itertools.product(picks, bases):
        if pick.is_bare and base is not None:
            continue
        document = {"kind": "train", "model": model, **shared, "adapter": None, "quantization": base}
        if not pick.is_bare:
            document["adapter"] = {**_fields_of(pick, adapter), "type": pick.type, "options": dict(pick.options)}
        try:
            specs.append(parse_spec(document).model_dump(mode="json"))
        except SpecError as error:
            problems.append(formatting.sentence(str(error)))
    try:
        found = parse_spec({"kind": "plan", "of": specs, "places": list(places)}) if specs else None
    except SpecError as error:
        problems.append(formatting.sentence(str(error)))
        return None
    assert found is None or isinstance(found, PlanSpec)
    return found


def _fields_of(pick: AdapterPick, adapter: dict[str, Any]) -> dict[str, Any]:
    """The fields that the type has."""
    entry = catalog.adapter_type(str(pick.type))
    left_out = set() if entry.common_fields.get("rank") else {"rank"}
    left_out |= set() if entry.targets_modules else {"target_modules"}
    return {name: value for name, value in adapter.items() if name not in left_out}
