"""The fields that belong to one adapter type, generated from the catalog's entry for it.

Nothing is written per type here: a field's widget follows from its kind, and the spec checks the values.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import streamlit as st

from app.widgets import fields
from engine.catalog import AdapterType, FieldEntry


def option_fields(adapter_type: AdapterType, taken: Collection[str]) -> dict[str, list[Any]]:
    """Draw the fields of one type, essential ones first, and return the values chosen for each that was changed.

    Args:
        adapter_type: the catalog's entry.
        taken: options that the chosen adapters already fix (``use_dora`` for DoRA), left out of the form.

    Raises:
        fields.FieldError: when something typed cannot be read.
    """
    available = [field for field in adapter_type.fields if field.name not in taken]
    essential = [field for field in available if field.essential]
    others = [field for field in available if not field.essential]
    values: dict[str, list[Any]] = {}
    if essential:
        values |= _grid(adapter_type.id, essential)
    if others and st.toggle(
        f"All {len(others)} other options of {adapter_type.label}",
        key=f"all_options_{adapter_type.id}",
        persist_state="session",
    ):
        values |= _grid(adapter_type.id, others)
    return values


def _grid(type_id: str, entries: list[FieldEntry]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    with st.grid(3, min_column_width=240):
        for entry in entries:
            chosen = _field(entry, key=f"option_{type_id}_{entry.name}")
            if chosen:
                values[entry.name] = chosen
    return values


def _field(entry: FieldEntry, key: str) -> list[Any]:
    """One field; returns the values chosen, none when the default stays."""
    if entry.type == "boolean":
        return fields.chips(
            entry.name,
            [False, True],
            [],
            key=key,
            format_func=lambda value: _shown(value, entry),
            help=_help(entry),
        )
    if entry.type == "choice":
        options = [choice for choice in entry.choices if _key(choice) not in entry.refused]
        chosen = st.multiselect(
            entry.name,
            options,
            key=key,
            format_func=lambda value: _shown(value, entry),
            placeholder="PEFT's default",
            help=_help(entry),
            persist_state="session",
        )
        return list(chosen)
    if entry.type in ("integer", "number"):
        return list(fields.numbers(entry.name, "", whole=entry.type == "integer", key=key, help=_help(entry)))
    text = st.text_input(
        entry.name,
        key=key,
        help=_help(entry),
        placeholder={"mapping": "JSON object", "integers": "1, 2, 3", "texts": "a, b"}.get(
            entry.type, "PEFT's default"
        ),
        persist_state="session",
    )
    value: Any = text.strip() or None
    if entry.type == "mapping":
        value = fields.parse_mapping(entry.name, text)
    elif entry.type in ("integers", "texts"):
        value = fields.parse_list(entry.name, text, whole=entry.type == "integers")
    return [] if value is None else [value]


def _shown(value: Any, entry: FieldEntry) -> str:
    text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    return (
        f"{text} (default)"
        if value == entry.default and isinstance(value, bool) == isinstance(entry.default, bool)
        else text
    )


def _key(value: Any) -> str:
    """How the catalog writes a value that it refuses."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _help(entry: FieldEntry) -> str:
    parts = [entry.help or ""]
    if entry.minimum is not None or entry.maximum is not None:
        low = "" if entry.minimum is None else f"from {entry.minimum:g}"
        high = "" if entry.maximum is None else f"up to {entry.maximum:g}"
        parts.append(f"Values {' '.join(part for part in (low, high) if part)}.")
    if entry.default is not None:
        parts.append(f"Default: {entry.default}.")
    parts += [f"Not offered: {value} ({reason})." for value, reason in entry.refused.items()]
    return " ".join(part for part in parts if part)
