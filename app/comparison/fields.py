"""A run's configuration as flat, dotted fields, and which of them differ among several runs.

The names are those that the filter of the Runs page knows: a column (``strategy``), a part of the spec
(``adapter.options.use_dora``) or of the environment (``environment.packages.peft``). What a run measured is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app import formatting
from app.widgets import labels
from db.runs import RunRow

Value = str | int | float | bool | None
Flat = dict[str, Value]

#: Fields that say how a run went or when, not what was asked for: they never count as a difference.
OUTCOMES = frozenset({"state", "failed_checks", "background_cpu_share", "replica"})
#: Fields that repeat another one: the label of the adapter says its type.
_REPEATED = frozenset({"adapter_type", "adapter.type"})
_ENVIRONMENT = "environment."
_COLUMNS = (
    "kind",
    "model",
    "adapter",
    "adapter_type",
    "strategy",
    "dtype",
    "device",
    "state",
    "origin",
    "name",
    "note",
    "replica",
    "failed_checks",
    "background_cpu_share",
)


def flat(row: RunRow, environment: Mapping[str, Any] | None) -> Flat:
    """Every field of one run. Lists become one text; an empty or missing environment gives no field.

    ``environment.gpu_memory_bytes`` is the memory of the GPU that the run was measured on.
    """
    fields: Flat = {name: getattr(row, name) for name in _COLUMNS}
    fields["sweep"] = row.sweep_name
    fields["tag"] = ", ".join(row.tags) or None
    for prefix, part in (("", row.spec), (_ENVIRONMENT, environment or {})):
        for name, value in leaves(part, prefix):
            fields.setdefault(name, value)
    for gpu in (environment or {}).get("gpus") or []:
        if gpu.get("id") == row.device:
            fields["environment.gpu_memory_bytes"] = gpu.get("memory_bytes")
    return fields


def leaves(part: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Value]]:
    """The values of nested objects by dotted name; a list is one value."""
    found: list[tuple[str, Value]] = []
    for name, value in part.items():
        if isinstance(value, Mapping):
            found += leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            found.append((f"{prefix}{name}", _list_text(value)))
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _list_text(values: Sequence[Any]) -> str | None:
    """ "q_proj, v_proj"; of a list of objects (GPUs) their names."""
    parts = [str(value.get("name", value)) if isinstance(value, Mapping) else str(value) for value in values]
    return ", ".join(parts) or None


def differing(flats: Mapping[int, Mapping[str, Value]]) -> list[str]:
    """The fields that do not have one value in all of these runs, in the order in which runs have them.

    A field that only some runs have differs, too, but a run that recorded no environment at all differs in nothing of
    that. What a run measured and how it went does not count.
    """
    names = dict.fromkeys(name for fields in flats.values() for name in fields)
    every = list(flats.values())
    recorded = [fields for fields in every if any(name.startswith(_ENVIRONMENT) for name in fields)]
    return [
        name
        for name in names
        if name not in OUTCOMES
        and name not in _REPEATED
        and len({distinct(fields.get(name)) for fields in (recorded if name.startswith(_ENVIRONMENT) else every)}) > 1
    ]


def distinct(value: Value) -> tuple[bool, Value]:
    """A value that tells ``True`` from ``1``, which Python does not."""
    return isinstance(value, bool), value


def text(name: str, value: Value) -> str:
    """A field's value for people."""
    if value is None:
        return formatting.DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and not isinstance(value, str):
        return formatting.size(float(value))
    if name == "model":
        return labels.model_label(str(value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def short(name: str, value: Value) -> str:
    """A field with its value in as few words as make sense alone: "rank 8", "context 512", "peft 0.19.0"."""
    shown = text(name, value)
    if name in _OWN_WORDS:
        return shown
    if isinstance(value, bool):
        word = _word(name)
        return word if value else f"no {word}"
    return f"{_word(name)} {'not set' if value is None else shown}"


def order(value: Value) -> tuple[int, float, str]:
    """A key that puts missing values first, then numbers by size, then texts."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


# Values that say by themselves what they are.
_OWN_WORDS = frozenset(
    {
        "kind",
        "model",
        "adapter",
        "dtype",
        "device",
        "attention",
        "name",
        "tag",
        "sweep",
        "origin",
        "adapter.target_modules",
        "train.optimizer",
        "environment.cpu",
        "environment.gpus",
        "environment.os",
    }
)
_WORDS = {
    "train.context_length": "context",
    "train.batch_size": "batch",
    "inference.batch_size": "batch",
    "train.gradient_checkpointing": "checkpointing",
    "adapter.options.use_dora": "DoRA",
    "adapter.adapter_dtype": "adapter in",
    "adapter.path": "saved in",
    "environment.memory_bytes": "memory",
}


def _word(name: str) -> str:
    last = name.rpartition(".")[2]
    return _WORDS.get(name) or (last if last.isupper() else last.replace("_", " "))
