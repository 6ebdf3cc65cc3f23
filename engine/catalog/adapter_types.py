"""The adapter types that the installed PEFT knows: their fields, defaults and bounds, and what each of them needs.

Reads ``adapters.json``, which ``python -m engine.generate_catalog`` writes from PEFT's config classes and the
hand-written ``adapter_facts.json``. Checks options against it. Builds no PEFT object and imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.catalog.lookup import look_up, nearest
from engine.catalog.modules import Kind, ModuleGroup

ADAPTERS_FILE = Path(__file__).parent / "adapters.json"

FieldType = Literal["integer", "number", "boolean", "text", "choice", "integers", "texts", "mapping"]
# Names of modules, or the start of them: letters, digits, underscores, dots. Never an expression.
_PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)


class FieldError(Protocol):
    """An exception class that takes a field's name and a sentence on it."""

    def __call__(self, field: str, sentence: str) -> Exception:
        """Build the exception."""


@dataclasses.dataclass(frozen=True)
class FieldEntry:
    """One field of an adapter type. ``default`` is PEFT's own, or the engine's where PEFT's does not work.

    ``choices`` holds a choice's values, or the keys that a mapping may have (any when empty). ``pattern`` is a form
    that further values of a choice may have. ``refused`` says why a value that PEFT knows cannot be used here.
    ``fits`` says what the value must divide on every adapted layer ("in", "out" or "both" of its features), or that it
    may not exceed the layer's weight ("elements"); null then means the largest value up to ``fits_up_to`` that does.
    ``divides_rank`` says that it must divide the rank.
    """

    name: str
    type: FieldType
    default: Any
    help: str
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    essential: bool = False
    fits: Literal["in", "out", "both", "elements"] | None = None
    fits_up_to: int | None = None
    divides_rank: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AdapterType:
    """One PEFT type. ``id`` is the PEFT type in lower case, ``peft_type`` as PEFT writes it.

    ``kinds`` are the kinds of modules that it can adapt; ``model_types`` the transformers model types that it is
    written for (any when empty); ``rank_bounded`` tells whether a rank above a layer's smaller side is refused;
    ``engine_defaults`` replace defaults of PEFT's that do not work by themselves. ``cannot`` says why something is not
    to be had for this type, by kind of spec or "unmerge" or "mixed_batch" (several adapters in one batch).
    """

    id: str
    peft_type: str
    config_class: str
    label: str
    summary: str
    common_fields: Mapping[str, str]
    targets_modules: bool
    kinds: tuple[Kind, ...]
    fields: tuple[FieldEntry, ...]
    refused_fields: Mapping[str, str]
    engine_defaults: Mapping[str, Any]
    model_types: tuple[str, ...] = ()
    rank_bounded: bool = True
    unavailable_reason: str | None = None
    cannot: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def adapts(self, kind: str) -> bool:
        """Whether this type can adapt modules of that kind."""
        return kind in self.kinds

    def field(self, name: str) -> FieldEntry | None:
        """The field of that name, or None where the type has none."""
        return next((field for field in self.fields if field.name == name), None)


def largest_fitting(field: FieldEntry, groups: Sequence[ModuleGroup]) -> int:
    """The largest value up to ``field.fits_up_to`` that suits every one of these groups."""
    limit = field.fits_up_to or 1
    return next((value for value in range(limit, 1, -1) if all(fits(field, value, group) for group in groups)), 1)


def fits(field: FieldEntry, value: int, group: ModuleGroup) -> bool:
    """Whether a value of this field suits the layers of a group."""
    if field.fits == "elements":
        return value <= group.in_features * group.out_features
    sides = {"in": (group.in_features,), "out": (group.out_features,)}.get(
        field.fits or "both", (group.in_features, group.out_features)
    )
    return all(side % value == 0 for side in sides)


@functools.cache
def adapter_types() -> Mapping[str, AdapterType]:
    """All adapter types by id: LoRA first, then by label."""
    data = json.loads(ADAPTERS_FILE.read_text(encoding="utf-8"))
    entries = {}
    for item in data:
        fields = tuple(
            FieldEntry(**{**field, "choices": tuple(field.get("choices", ()))}) for field in item.pop("fields")
        )
        entries[item["id"]] = AdapterType(
            **{**item, "kinds": tuple(item["kinds"]), "model_types": tuple(item["model_types"]), "fields": fields}
        )
    return entries


def adapter_type(name: str) -> AdapterType:
    """The adapter type called ``name``.

    Raises:
        UnknownEntry: naming the nearest type.
    """
    return look_up("adapter type", name, adapter_types())


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
    if not isinstance(value, list | tuple) or not value:
        return f"must be a list of at least one whole number, not {str(value)[:80]!r}", value
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
    for key, item in value.items():
        if field.choices and key not in field.choices:
            return f"has no field {key!r}; the nearest is {nearest(str(key), map(str, field.choices))}", value
        if not field.choices and (not isinstance(key, str) or not _PLAIN_NAME.fullmatch(key)):
            return f"takes plain module names as keys, not {str(key)[:80]!r}", value
        if isinstance(item, float) and not math.isfinite(item):
            return f"{key} must be a finite number, not {item}", value
        if not field.choices and _bad_pattern_value(field, item):
            return f"{key} must be a number of at least 1, not {str(item)[:80]!r}", value
    return None, dict(value)


def _bad_pattern_value(field: FieldEntry, item: Any) -> bool:
    """Values of rank, alpha and frequency patterns are positive numbers."""
    if not field.name.endswith("_pattern"):
        return False
    return isinstance(item, bool) or not isinstance(item, int | float) or item <= 0
