"""The adapter types that the installed PEFT knows: their fields, defaults and bounds, and what each of them needs.

Reads ``adapters.json``, which ``python -m engine.generate_catalog`` writes from PEFT's config classes and the
hand-written ``adapter_facts.json``. Checks nothing, builds no PEFT object and imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from engine.catalog.lookup import look_up
from engine.catalog.modules import Kind, ModuleGroup

ADAPTERS_FILE = Path(__file__).parent / "adapters.json"

FieldType = Literal["integer", "number", "boolean", "text", "choice", "integers", "texts", "mapping"]


@dataclasses.dataclass(frozen=True)
class FieldEntry:
    """One field of an adapter type. ``default`` is PEFT's own, or the engine's where PEFT's does not work.

    ``choices`` holds a choice's values. ``pattern`` is a form that further values of a choice may have. ``refused``
    says why a value that PEFT knows cannot be used here. ``help`` is one line. A mapping goes from module names to
    numbers of the kind ``values``, or is a config of its own, whose ``fields`` these are. A list has at least ``least``
    items.
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
    values: Literal["integer", "number"] | None = None
    fields: tuple[FieldEntry, ...] = ()
    least: int = 1


@dataclasses.dataclass(frozen=True)
class CannotWhen:
    """What a type cannot do in a certain form.

    ``when`` names options (or surroundings, see :mod:`engine.catalog.abilities`), each with a regular expression that
    the whole value must match, as JSON without quotes; ``cannot`` is as in :class:`AdapterType`.
    """

    when: Mapping[str, str]
    cannot: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class AdapterType:
    """One PEFT type. ``id`` is the PEFT type in lower case, ``peft_type`` as PEFT writes it.

    ``kinds`` are the kinds of modules that it can adapt; ``model_types`` the transformers model types that it is
    written for (any when empty); ``rank_bounded`` tells whether a rank above a layer's smaller side is refused;
    ``engine_defaults`` replace defaults of PEFT's that do not work by themselves. ``cannot`` says why something is not
    to be had for this type, by the names in :data:`engine.catalog.abilities.ABILITIES`, ``cannot_when`` why not in some
    of its forms. ``data`` says what data the type or one of its forms would need, None where none.
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
    cannot_when: tuple[CannotWhen, ...] = ()
    data: str | None = None

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
    entries = {}
    for item in json.loads(ADAPTERS_FILE.read_text(encoding="utf-8")):
        entries[item["id"]] = AdapterType(
            **{
                **item,
                "kinds": tuple(item["kinds"]),
                "model_types": tuple(item["model_types"]),
                "fields": tuple(_field_entry(field) for field in item["fields"]),
                "cannot_when": tuple(CannotWhen(**case) for case in item["cannot_when"]),
            }
        )
    return entries


def _field_entry(data: Mapping[str, Any]) -> FieldEntry:
    nested = tuple(_field_entry(field) for field in data.get("fields", ()))
    return FieldEntry(**{**data, "choices": tuple(data.get("choices", ())), "fields": nested})


def adapter_type(name: str) -> AdapterType:
    """The adapter type called ``name``.

    Raises:
        UnknownEntry: naming the nearest type.
    """
    return look_up("adapter type", name, adapter_types())
