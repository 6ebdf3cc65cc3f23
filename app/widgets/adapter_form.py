"""The fields that belong to one adapter type, generated from the catalog's entry for it.

Nothing is written per type here: a field's widget follows from its kind, and the spec checks the values.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import fields
from engine.catalog import AdapterType, FieldEntry

_PLACEHOLDERS = {"integers": "1, 2, 3", "texts": "a, b"}
_PLAIN_NAME = r"^[A-Za-z0-9_.]+$"


def option_fields(adapter_type: AdapterType, taken: Collection[str]) -> dict[str, list[Any]]:
    """Draw the fields of one type, and return the values chosen for each that was changed.

    The essential ones come first, with their help below them; the rest is behind a switch.

    Args:
        adapter_type: the catalog's entry.
        taken: options that the chosen adapters already fix (``use_dora`` for DoRA), left out of the form.

    Raises:
        fields.FieldError: when something typed cannot be read.
    """
    available = [field for field in adapter_type.fields if field.name not in taken and _has_a_choice(field)]
    essential = [field for field in available if field.essential]
    others = [field for field in available if not field.essential]
    values = _fields(adapter_type.id, essential, captions=True)
    if others and st.toggle(
        f"More options of {adapter_type.label} ({len(others)})",
        key=f"all_options_{adapter_type.id}",
        persist_state="session",
    ):
        values |= _fields(adapter_type.id, others, captions=False)
    return values


def _has_a_choice(field: FieldEntry) -> bool:
    """Whether there is anything to choose: PEFT has fields with a single value that can be used."""
    return field.type != "choice" or len(_offered(field)) + bool(field.pattern) > 1 or field.nullable


def _fields(prefix: str, entries: list[FieldEntry], captions: bool) -> dict[str, list[Any]]:
    """Small fields in a grid, then tables and configs of their own below it."""
    small = [entry for entry in entries if entry.type != "mapping"]
    values: dict[str, list[Any]] = {}
    if small:
        with st.grid(3, min_column_width=240):
            for entry in small:
                with st.container(gap="xxsmall"):
                    values[entry.name] = _field(entry, key=f"option_{prefix}_{entry.name}")
                    if captions:
                        st.caption(entry.help)
    for entry in entries:
        key = f"option_{prefix}_{entry.name}"
        if entry.type == "mapping":
            values[entry.name] = _config(entry, key) if entry.fields else _table(entry, key)
    return {name: chosen for name, chosen in values.items() if chosen}


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
        chosen = st.multiselect(
            entry.name,
            _offered(entry),
            key=key,
            format_func=lambda value: _shown(value, entry),
            placeholder="PEFT's default",
            help=_help(entry),
            accept_new_options=entry.pattern is not None,
            persist_state="session",
        )
        return list(chosen)
    if entry.type in ("integer", "number"):
        return list(fields.numbers(entry.name, "", whole=entry.type == "integer", key=key, help=_help(entry)))
    text = st.text_input(
        entry.name,
        key=key,
        help=_help(entry),
        placeholder=_PLACEHOLDERS.get(entry.type, "PEFT's default"),
        persist_state="session",
    )
    value: Any = text.strip() or None
    if entry.type in ("integers", "texts"):
        value = fields.parse_list(entry.name, text, whole=entry.type == "integers")
    return [] if value is None else [value]


def _config(entry: FieldEntry, key: str) -> list[Any]:
    """A config of its own: off, or on with its fields; several values in them are several configs."""
    if not st.toggle(entry.name, key=key, help=_help(entry), persist_state="session"):
        return []
    chosen = _fields(key, list(entry.fields), captions=False)
    return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]


def _table(entry: FieldEntry, key: str) -> list[Any]:
    """A small table of module names and numbers; what is in it survives a visit to another page."""
    kept, shown = f"{key}_rows", f"{key}_shown"
    if key not in st.session_state:
        # The editor holds changes to what it was given, so that must stay the same as long as the editor is there.
        st.session_state[shown] = st.session_state.get(kept, [])
    frame = pd.DataFrame(st.session_state[shown], columns=["module", "value"])
    st.caption(f"**{entry.name}**: {_help(entry)}")
    edited = st.data_editor(
        frame.astype({"module": "object", "value": "float64"}),
        key=key,
        num_rows="dynamic",
        hide_index=True,
        width=420,
        column_config={
            "module": st.column_config.TextColumn("Module", help="A module's name, as q_proj", validate=_PLAIN_NAME),
            "value": st.column_config.NumberColumn(
                "Value",
                min_value=1 if entry.values == "integer" else 0,
                step=1 if entry.values == "integer" else None,
            ),
        },
        alt=f"Modules with a value of their own for {entry.name}",
    )
    rows = [
        {name: None if pd.isna(value) else value for name, value in row.items()} for row in edited.to_dict("records")
    ]
    st.session_state[kept] = rows
    mapping = numbers_by_module(entry.name, rows)
    return [mapping] if mapping else []


def numbers_by_module(label: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, float | int]:
    """The table's rows as a mapping; rows without anything in them do not count.

    Raises:
        fields.FieldError: one sentence on a row that lacks a name or a number, or that repeats a name.
    """
    found: dict[str, float | int] = {}
    for row in rows:
        module, value = str(row.get("module") or "").strip(), row.get("value")
        if not module and value is None:
            continue
        if not re.fullmatch(_PLAIN_NAME, module):
            raise fields.FieldError(f"{label}: {module[:40]!r} is not a module's name")
        if value is None:
            raise fields.FieldError(f"{label}: {module} has no value")
        if module in found:
            raise fields.FieldError(f"{label}: {module} is there twice")
        number = float(value)
        found[module] = int(number) if number.is_integer() else number
    return found


def _offered(entry: FieldEntry) -> list[Any]:
    return [choice for choice in entry.choices if _key(choice) not in entry.refused]


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
    parts = [f"{entry.help}."]
    if entry.minimum is not None or entry.maximum is not None:
        low = "" if entry.minimum is None else f"from {entry.minimum:g}"
        high = "" if entry.maximum is None else f"up to {entry.maximum:g}"
        parts.append(f"Values {' '.join(part for part in (low, high) if part)}.")
    if entry.default is not None and entry.type != "mapping":
        parts.append(f"Default: {entry.default}.")
    parts += [f"Not offered: {value} ({reason})." for value, reason in entry.refused.items()]
    return " ".join(parts)
