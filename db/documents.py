"""Checks result documents (the JSON of one finished run) before anything of them is stored.

Turns a mapping into typed, finite, storable values or refuses it with one sentence that names the field. Knows the
shape only: whether a spec makes sense is the engine's to say. Touches no database.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

from db.downsampling import Sample

FORMAT = 1
"""Version of the documents. A reader refuses a higher one: it may mean something else by the same names."""

FINAL_STATES = ("succeeded", "failed", "out_of_memory", "cancelled", "timed_out", "lost")
TIMING_FIELDS = ("created_at", "claimed_at", "started_at", "finished_at")
LONGEST_LABEL = 200
"""Characters of a name, a tag or an adapter's label; longer ones are not imported, so none may be typed."""
LONGEST_NOTE = 20_000
_MAX_INTEGER = 2**63 - 1
# Dates end with the year 9999.
_MAX_TIME_S = 250_000_000_000
_MAX_DEPTH = 20
_Text = TypeVar("_Text", str, str | None)


class DocumentRefused(ValueError):
    """A mapping that is not a result document. The text is one sentence that starts with the field at fault."""


class MetricValues(NamedTuple):
    """One measured number, as ``engine.result.Metric`` has it."""

    name: str
    unit: str
    variant: str | None
    x: float | None
    repeat: int
    value: float


@dataclass(frozen=True, slots=True)
class ParsedResult:
    """What was measured and how the run ended."""

    state: str
    metrics: tuple[MetricValues, ...]
    samples: Sequence[Sample]
    checks: list[dict[str, Any]]
    environment: dict[str, Any]
    inspection: dict[str, Any] | None
    error_kind: str | None
    error_text: str | None


@dataclass(frozen=True, slots=True)
class ParsedRun:
    """A result with the run it belongs to, as ``import`` needs it. ``adapter`` is the label that charts show."""

    uid: str
    spec: dict[str, Any]
    spec_hash: str
    kind: str
    model: str
    adapter: str | None
    adapter_type: str | None
    strategy: str | None
    dtype: str | None
    device: str
    timing: dict[str, float]
    name: str | None
    note: str | None
    tags: tuple[str, ...]
    result: ParsedResult


def parse_result(document: Mapping[str, Any]) -> ParsedResult:
    """Check the measured part of a document. What is absent is empty; ``state`` must be there.

    Raises:
        DocumentRefused: naming the field at fault.
    """
    _mapping("document", document)
    state = document.get("state")
    if state not in FINAL_STATES:
        _refuse("state", f"must be one of {', '.join(FINAL_STATES)}, not {_shown(state)}")
    error = _object(document, "error") or {}
    inspection = _object(document, "inspection")
    return ParsedResult(
        state=state,
        metrics=tuple(_metric(f"metrics[{index}]", item) for index, item in enumerate(_list(document, "metrics"))),
        samples=_samples(_list(document, "samples")),
        checks=[_check(f"checks[{index}]", item) for index, item in enumerate(_list(document, "checks"))],
        environment=_json("environment", _object(document, "environment") or {}),
        inspection=None if inspection is None else _json("inspection", inspection),
        error_kind=_optional_text(error, "kind", "error.kind"),
        error_text=_optional_text(error, "text", "error.text"),
    )


def parse_run(found: object) -> ParsedRun:
    """Check a whole document: the result, its spec, and the identity that keeps it from being stored twice.

    Raises:
        DocumentRefused: naming the field at fault.
    """
    document = _ours(found)
    result = parse_result(document)
    _check_environment(result.environment)
    if document.get("spec") is None:
        _refuse("spec", "is missing")
    spec = _json("spec", _mapping("spec", document["spec"]))
    adapter = _object(spec, "adapter", "spec.adapter") or {}
    return ParsedRun(
        spec=spec,
        spec_hash=_spec_hash(document, spec),
        kind=_text(spec, "kind", "spec.kind"),
        model=_text(spec, "model", "spec.model"),
        adapter=_label(document, "adapter"),
        adapter_type=_label(document, "adapter_type") or _optional_text(adapter, "type", "spec.adapter.type"),
        strategy=_optional_text(spec, "strategy", "spec.strategy"),
        dtype=_optional_text(spec, "dtype", "spec.dtype"),
        device=_text(spec, "device", "spec.device"),
        timing=_timing(document),
        name=_label(document, "name"),
        note=_short(_optional_text(document, "note", "note"), "note", LONGEST_NOTE),
        tags=_tags(document),
        result=result,
        # Last, because it is the hash of everything where there is none: what is at fault was named by then.
        uid=_uid(document),
    )


def canonical_sha256(value: object) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces), as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _ours(found: object) -> Mapping[str, Any]:
    """The document as it is; refuses what is no result, and one of a version that is not known here."""
    document = _mapping("document", found)
    if not {"state", "spec"} & document.keys():
        _refuse("document", "must be a result of PEFT Lab, with a state and a spec")
    version = document.get("format", FORMAT)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        _refuse("format", f"must be a whole number of at least 1, not {_shown(version)}")
    if version > FORMAT:
        _refuse("format", f"{_shown(version)} is of a newer PEFT Lab; this one reads {FORMAT}, so update it")
    return document


def _check_environment(environment: Mapping[str, Any]) -> None:
    """Refuse an environment whose parts are not what pages take them for. Everything in it is optional."""
    for part in ("packages", "variables"):
        for name in _object(environment, part, f"environment.{part}") or {}:
            _optional_text(environment[part], name, f"environment.{part}.{ascii(name)[1:-1][:60]}")
    for index, item in enumerate(_list(environment, "gpus", "environment.gpus")):
        gpu = _mapping(f"environment.gpus[{index}]", item)
        _text(gpu, "id", f"environment.gpus[{index}].id")
        if gpu.get("memory_bytes") is not None:
            _number(gpu, "memory_bytes", f"environment.gpus[{index}].memory_bytes")


def _tags(document: Mapping[str, Any]) -> tuple[str, ...]:
    named = [(f"tags[{index}]", tag) for index, tag in enumerate(_list(document, "tags"))]
    return tuple(_short(_text({"tag": tag}, "tag", field), field, LONGEST_LABEL) for field, tag in named)


def _label(document: Mapping[str, Any], key: str) -> str | None:
    return _short(_optional_text(document, key, key), key, LONGEST_LABEL)


def _short(text: _Text, field: str, longest: int) -> _Text:
    if text is not None and len(text) > longest:
        _refuse(field, f"must have at most {longest} characters, not {len(text)}")
    return text


def _uid(document: Mapping[str, Any]) -> str:
    uid = document.get("uid")
    if uid is None:
        try:
            return canonical_sha256(document)
        except (ValueError, TypeError, RecursionError):
            _refuse("document", "must be plain JSON with finite numbers")
    # The uid also names the run's folder: nothing but digits may ever get there.
    if not isinstance(uid, str) or not re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", uid):
        _refuse("uid", f"must be 32 or 64 hexadecimal digits, not {_shown(uid)}")
    return uid


def _spec_hash(document: Mapping[str, Any], spec: dict[str, Any]) -> str:
    given = document.get("spec_hash")
    if given is None:
        return canonical_sha256(spec)
    if not isinstance(given, str) or not re.fullmatch(r"[0-9a-f]{64}", given):
        _refuse("spec_hash", f"must be 64 hexadecimal digits, not {_shown(given)}")
    return given


def _timing(document: Mapping[str, Any]) -> dict[str, float]:
    timing = _object(document, "timing") or {}
    moments = {name: _number(timing, name, f"timing.{name}") for name in TIMING_FIELDS if timing.get(name) is not None}
    for name, moment in moments.items():
        if not 0 <= moment <= _MAX_TIME_S:
            _refuse(f"timing.{name}", f"must be seconds since 1970, not {_shown(moment)}")
    return moments


def _metric(field: str, item: object) -> MetricValues:
    metric = _mapping(field, item)
    return MetricValues(
        name=_text(metric, "name", f"{field}.name"),
        unit=_text(metric, "unit", f"{field}.unit"),
        variant=_optional_text(metric, "variant", f"{field}.variant"),
        x=None if metric.get("x") is None else _number(metric, "x", f"{field}.x"),
        repeat=_integer(metric, "repeat", f"{field}.repeat", 2**31 - 1) if "repeat" in metric else 0,
        value=_number(metric, "value", f"{field}.value"),
    )


def _samples(items: Sequence[object]) -> list[Sample]:
    """The samples of one run. There are thousands, with the same few labels: those are looked at once."""
    samples: list[Sample] = []
    known: set[tuple[str, str, str]] = set()
    for index, item in enumerate(items):
        if isinstance(item, dict):
            source, phase, category = item.get("source"), item.get("phase"), item.get("category")
            time_s, size = item.get("time_s"), item.get("bytes")
            if (
                type(source) is str
                and type(phase) is str
                and type(category) is str
                and (source, phase, category) in known
                and type(time_s) is float
                and math.isfinite(time_s)
                and type(size) is int
                and 0 <= size <= _MAX_INTEGER
            ):
                samples.append(Sample(source, time_s, phase, category, size))
                continue
        sample = _sample(f"samples[{index}]", item)
        known.add((sample.source, sample.phase, sample.category))
        samples.append(sample)
    return samples


def _sample(field: str, item: object) -> Sample:
    sample = _mapping(field, item)
    return Sample(
        source=_text(sample, "source", f"{field}.source"),
        time_s=_number(sample, "time_s", f"{field}.time_s"),
        phase=_text(sample, "phase", f"{field}.phase"),
        category=_text(sample, "category", f"{field}.category"),
        bytes=_integer(sample, "bytes", f"{field}.bytes", _MAX_INTEGER),
    )


def _check(field: str, item: object) -> dict[str, Any]:
    check = _mapping(field, item)
    passed = check.get("passed")
    if not isinstance(passed, bool):
        _refuse(f"{field}.passed", f"must be true or false, not {_shown(passed)}")
    name = _text(check, "name", f"{field}.name")
    return {"name": name, "passed": passed, "detail": _optional_text(check, "detail", f"{field}.detail") or ""}


def _text(parent: Mapping[str, Any], key: str, field: str) -> str:
    value = _optional_text(parent, key, field)
    if not value:
        _refuse(field, f"must be a text, not {_shown(parent.get(key))}")
    return value


def _optional_text(parent: Mapping[str, Any], key: str, field: str) -> str | None:
    value = parent.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        _refuse(field, f"must be a text, not {_shown(value)}")
    _storable(field, value)
    return value


def _number(parent: Mapping[str, Any], key: str, field: str) -> float:
    value = parent.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(field, f"must be a finite number, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _refuse(field, f"must be a finite number, not {_shown(value)}")
    return number


def _integer(parent: Mapping[str, Any], key: str, field: str, largest: int) -> int:
    value = parent.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        _refuse(field, f"must be a whole number of at least 0, not {_shown(value)}")
    return value


def _list(parent: Mapping[str, Any], key: str, field: str | None = None) -> Sequence[object]:
    value = parent.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        _refuse(field or key, f"must be a list, not {_shown(value)}")
    return value


def _object(parent: Mapping[str, Any], key: str, field: str | None = None) -> Mapping[str, Any] | None:
    value = parent.get(key)
    return None if value is None else _mapping(field or key, value)


def _mapping(field: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _refuse(field, f"must be a JSON object, not {_shown(value)}")
    return value


def _json(field: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as plain JSON (tuples become lists), which is how it would come back from the database."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        plain: dict[str, Any] = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        _refuse(field, "must be plain JSON with finite numbers and valid text")
    if _is_deeper(plain, _MAX_DEPTH):
        _refuse(field, f"must have at most {_MAX_DEPTH} levels")
    if not _is_readable(plain):
        _refuse(field, "holds characters or numbers that cannot be stored")
    return plain


def _is_deeper(value: object, levels: int) -> bool:
    """Whether lists and objects are nested more than ``levels`` deep."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in items if isinstance(item, dict | list))


def _is_readable(value: object) -> bool:
    """Whether every database can look into this JSON: no NUL character, and no number beyond a float's range."""
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    if isinstance(value, dict):
        return all(_is_readable(name) and _is_readable(item) for name, item in value.items())
    return all(map(_is_readable, value)) if isinstance(value, list) else True


def _storable(field: str, value: str) -> None:
    """Refuse text that no database stores: halves of surrogate pairs, and the NUL character."""
    if "\0" in value or (not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)):
        _refuse(field, "holds characters that cannot be stored")


def _shown(value: object) -> str:
    """A value in a message: short, and in JSON's words."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else ascii(value)[:60]


def _refuse(field: str, sentence: str) -> NoReturn:
    raise DocumentRefused(f"{field}: {sentence}")
