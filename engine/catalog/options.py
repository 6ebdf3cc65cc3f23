"""Checking an adapter's options against the catalog: unknown fields, wrong types, values out of bounds.

Plain values in, plain values out. Builds no PEFT object and imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Protocol

from engine.catalog.adapter_types import AdapterType, FieldEntry
from engine.catalog.lookup import nearest

# Names of modules, or the start of them: letters, digits, underscores, dots. Never an expression.
_PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)


class FieldError(Protocol):
    """An exception class that takes a field's name and a sentence on it."""

    def __call__(self, field: str, sentence: str) -> Exception:
        """Build the exception."""


def check_options(entry: AdapterType, options: Mapping[str, Any], error: FieldError) -> dict[str, Any]:
    """The options as plain JSON values, sorted by name, without those that equal the default.

    Raises:
        error("adapter.options.<name>", sentence): for an unknown field, a wrong type, a value out of bounds or one that
            cannot be used here.
    """
    if not isinstance(options, Mapping):
        raise error("adapter.options", "must be a JSON object of field names and values")
    checked = {}
    for name in sorted(options, key=str):
        place = f"adapter.options.{name}"
        field = entry.field(name)
        if field is None:
            raise error(place, _why_not_a_field(entry, name))
        problem, value = _check_value(field, options[name])
        if problem:
            raise error(place, problem)
        if value != field.default or type(value) is not type(field.default):
            checked[name] = value
    return checked


def cpt_example(tokens: int) -> dict[str, Any]:
    """What CPT has to be told of its tokens: they are one example, whose last token is the answer.

    With PEFT's own defaults the loss of CPT counts no token at all and is NaN.
    """
    return {"cpt_mask": [1] * tokens, "cpt_tokens_type_mask": [2] * (tokens - 1) + [4]}


def _why_not_a_field(entry: AdapterType, name: Any) -> str:
    common = {peft_name: ours for ours, peft_name in entry.common_fields.items()}
    if name in common:
        return f"use adapter.{common[name]}"
    if name in entry.refused_fields:
        return entry.refused_fields[name]
    guess = nearest(str(name), (field.name for field in entry.fields))
    return f"is not a field of {entry.label}" + (f"; the nearest is {guess}" if guess else "")


def _check_value(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    """What is wrong with a value (None where nothing is), and the value as plain JSON."""
    key = json.dumps(value) if isinstance(value, bool) else value
    if isinstance(key, str) and key in field.refused:
        return f"{key!r} cannot be used here: {field.refused[key]}", value
    if value is None:
        return (None, None) if field.nullable or field.default is None else ("must not be null", value)
    checkers = {
        "integer": _check_integer,
        "number": _check_number,
        "boolean": _check_boolean,
        "text": _check_text,
        "choice": _check_choice,
        "integers": _check_integers,
        "texts": _check_texts,
        "mapping": _check_mapping,
    }
    return checkers[field.type](field, value)


def _bounds(field: FieldEntry, value: float) -> str | None:
    if field.minimum is not None and value < field.minimum:
        return f"must be at least {field.minimum:g}, not {value:g}"
    if field.maximum is not None and value > field.maximum:
        return f"must be at most {field.maximum:g}, not {value:g}"
    return None


def _check_integer(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return f"must be a whole number, not {value!r}", value
    return _bounds(field, value), int(value)


def _check_number(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"must be a finite number, not {value!r}", value
    return _bounds(field, value), float(value)


def _check_boolean(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    return (None, value) if isinstance(value, bool) else (f"must be true or false, not {value!r}", value)


def _check_text(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    return (None, value) if isinstance(value, str) else (f"must be a text, not {value!r}", value)


def _check_choice(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    # By type as well: in Python True equals 1, and "true" is a text.
    if any(value == choice and type(value) is type(choice) for choice in field.choices):
        return None, value
    if field.pattern and isinstance(value, str) and re.fullmatch(field.pattern, value):
        return None, value
    shown = ", ".join(json.dumps(choice) for choice in field.choices if str(choice) not in field.refused)
    return f"must be one of {shown}, not {json.dumps(value, default=str)[:80]}", value


def _check_integers(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    if not isinstance(value, list | tuple) or len(value) < field.least:
        least = "one whole number" if field.least == 1 else f"{field.least} whole numbers"
        return f"must be a list of at least {least}, not {str(value)[:80]!r}", value
    checked = []
    for item in value:
        problem, whole = _check_integer(field, item)
        if problem:
            return problem, value
        checked.append(whole)
    return None, checked


def _check_texts(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return f"must be a list of names, not {str(value)[:80]!r}", value
    wrong = next((item for item in items if not _PLAIN_NAME.fullmatch(item)), None)
    if wrong is not None:
        return f"takes plain module names, not {wrong[:80]!r}", value
    return None, sorted(set(items))


def _check_mapping(field: FieldEntry, value: Any) -> tuple[str | None, Any]:
    if not isinstance(value, Mapping):
        return f"must be a JSON object, not {str(value)[:80]!r}", value
    return _check_config(field, value) if field.fields else _check_numbers_by_module(field, value)


def _check_config(field: FieldEntry, value: Mapping[Any, Any]) -> tuple[str | None, Any]:
    """A config of its own, less the fields that have their defaults."""
    known = {nested.name: nested for nested in field.fields}
    checked = {}
    for key in sorted(value, key=str):
        if key not in known:
            return f"has no field {key!r}; the nearest is {nearest(str(key), known)}", value
        problem, item = _check_value(known[key], value[key])
        if problem:
            return f"{key} {problem}", value
        if item != known[key].default or type(item) is not type(known[key].default):
            checked[key] = item
    return None, checked


def _check_numbers_by_module(field: FieldEntry, value: Mapping[Any, Any]) -> tuple[str | None, Any]:
    """Ranks, alphas and the like by module name: positive numbers, whole where they count something."""
    checked: dict[str, float | int] = {}
    for key in sorted(value, key=str):
        item = value[key]
        if not isinstance(key, str) or not _PLAIN_NAME.fullmatch(key):
            return f"takes plain module names as keys, not {str(key)[:80]!r}", value
        if isinstance(item, bool) or not isinstance(item, int | float):
            return f"{key} must be a number of at least 1, not {str(item)[:80]!r}", value
        if not math.isfinite(item):
            return f"{key} must be a finite number, not {item}", value
        if field.values == "integer" and (item < 1 or item != int(item)):
            return f"{key} must be a number of at least 1 without decimals, not {item:g}", value
        if item <= 0:
            return f"{key} must be a number above 0, not {item:g}", value
        checked[key] = int(item) if item == int(item) else float(item)
    return None, checked
