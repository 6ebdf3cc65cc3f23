"""What runs were measured on: whether it differs, in which words to say so, and numbers relative to each one's own.

Hardware, versions, allocator settings and other recorded variables make an environment. The project's own commit does
not: it is a field like any other. Something that one run recorded and another did not counts as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from app import formatting
from app.comparison import fields
from app.comparison.fields import Value

Identity = tuple[tuple[str, Value], ...]

HARDWARE = "hardware"
VERSIONS = "versions"
ALLOCATOR = "allocator settings"
VARIABLES = "environment variables"
_ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "THP_", "PYTORCH_")
_CATEGORIES = {
    "node": HARDWARE,
    "cpu": HARDWARE,
    "cores": HARDWARE,
    "memory_bytes": HARDWARE,
    "gpus": HARDWARE,
    "gpu_driver": VERSIONS,
    "os": VERSIONS,
    "kernel": VERSIONS,
    "python": VERSIONS,
    "transparent_huge_pages": ALLOCATOR,
    "cpu_governor": HARDWARE,
}
_SHOWN_VALUES = 3
_SHOWN_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same everywhere: its category, field, name for people, and values as text."""

    category: str
    field: str
    name: str
    values: tuple[str, ...]


def identity(environment: Mapping[str, Any] | None) -> Identity:
    """What tells one environment from another, as (name, value) pairs; empty where none was recorded.

    Memory counts to three digits, as the machine's own moves a little from boot to boot.
    """
    found: dict[str, Value] = {}
    for name, value in fields.leaves(environment or {}):
        if name == "gpus":
            # An empty list was recorded, too.
            value = value or "none"
        if _category(name) is not None and value is not None:
            found[name] = formatting.size(float(value)) if name == "memory_bytes" else value
    return tuple(sorted(found.items()))


def _category(name: str) -> str | None:
    if name.startswith("packages."):
        return VERSIONS
    if name.startswith("variables."):
        return ALLOCATOR if name.partition(".")[2].startswith(_ALLOCATOR_VARIABLES) else VARIABLES
    return _CATEGORIES.get(name)


def differences(identities: Iterable[Identity]) -> list[Difference]:
    """What differs among these environments: hardware first, then versions, allocator settings, other variables."""
    distinct = [dict(pairs) for pairs in dict.fromkeys(identities)]
    names = dict.fromkeys(name for pairs in distinct for name in pairs)
    found = []
    for name in names:
        values = dict.fromkeys(fields.text(name, pairs.get(name)) for pairs in distinct)
        if len(values) > 1:
            shown = tuple("not recorded" if value == formatting.DASH else value for value in values)
            found.append(Difference(_category(name) or "", name, spoken(name), shown))
    places = [HARDWARE, VERSIONS, ALLOCATOR, VARIABLES]
    return sorted(found, key=lambda difference: places.index(difference.category))


def spoken(name: str) -> str:
    """A part of an environment for people: "memory_bytes" -> "memory", "packages.peft" -> "peft"."""
    if name.startswith(("packages.", "variables.")):
        return name.partition(".")[2]
    words = {"cpu": "CPU", "gpus": "GPU", "gpu": "GPU", "os": "OS", "memory_bytes": "memory"}
    return words.get(name) or " ".join(words.get(word, word) for word in name.split("_"))


def sentence(found: Iterable[Difference]) -> str | None:
    """What differs, named, in one sentence; None where nothing does."""
    by_category: dict[str, list[str]] = {}
    for difference in found:
        values = list(difference.values[:_SHOWN_VALUES])
        more = len(difference.values) - len(values)
        text = " / ".join(values) + (f" and {more} more" if more else "")
        by_category.setdefault(difference.category, []).append(f"{difference.name} {text}")
    if not by_category:
        return None
    parts = []
    for category, texts in by_category.items():
        others = f" and {len(texts) - _SHOWN_FIELDS} more" if len(texts) > _SHOWN_FIELDS else ""
        parts.append(f"{category} ({'; '.join(texts[:_SHOWN_FIELDS])}{others})")
    return f"These runs differ in {formatting.listing(parts)}."


def normalised(frame: pd.DataFrame, environments: Mapping[int, Identity], is_baseline: pd.Series) -> pd.DataFrame:
    """Values as multiples of the baseline's median in the same environment, metric by metric; their unit is "ratio".

    Args:
        frame: one line per value, with ``run_id``, ``metric`` and ``value``.
        environments: of each run.
        is_baseline: which lines are the baseline's, in whatever environment.

    Lines whose environment has no baseline of the metric, or one of zero, are left out.
    """
    keyed = frame.assign(environment=frame["run_id"].map(environments))
    # Of the runs' medians, as statistics have it: each run counts once.
    by_run = keyed[is_baseline].groupby(["environment", "metric", "run_id"])["value"].median()
    middles = by_run.groupby(["environment", "metric"]).median().rename("middle")
    joined = keyed.merge(middles.reset_index(), on=["environment", "metric"], how="left")
    joined = joined[joined["middle"].notna() & (joined["middle"] != 0)]
    return joined.assign(value=joined["value"] / joined["middle"], unit="ratio").drop(columns=["environment", "middle"])
