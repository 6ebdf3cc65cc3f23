"""Values of a filter expression: numbers with units, and days and minutes. Everything becomes stored units.

Pure functions. What cannot be read raises ``ValueError`` with the rest of a sentence that starts with the field.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, tzinfo
from typing import Literal

Dimension = Literal["time", "memory", "plain"]

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(\D*)", re.ASCII)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?", re.ASCII)
_UNITS: dict[Dimension, dict[str, float]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86_400},
    "memory": {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    "plain": {"%": 0.01, "k": 1e3, "M": 1e6, "B": 1e9, "x": 1, "×": 1, "W": 1},
}
UNITS = tuple(sorted({unit for units in _UNITS.values() for unit in units}, key=len, reverse=True))
_EXPECTED: dict[Dimension, str] = {
    "time": "a time such as 1.5s, 500ms or 2min",
    "memory": "a size such as 2GiB or 500MiB",
    "plain": "a number such as 16, 0.5, 30% or 12.6M",
}


def dimension(name: str) -> Dimension:
    """What a field measures, by the unit in its name: ``step_time_s`` -> time, ``peak_bytes`` -> memory."""
    if name.endswith("_bytes"):
        return "memory"
    return "time" if name.endswith("_s") and not name.endswith("_per_s") else "plain"


def number(text: str, what: Dimension) -> float:
    """A number in stored units; without a unit it is in stored units already.

    Raises:
        ValueError: what is expected instead.
    """
    match = _NUMBER.fullmatch(text.strip())
    factor = None if match is None else _UNITS[what].get(match[2], 1 if not match[2] else None)
    if match is None or factor is None:
        raise ValueError(f"expects {_EXPECTED[what]}, not {_short(text)}")
    value = float(match[1]) * factor
    if not math.isfinite(value):
        raise ValueError("expects a finite number")
    return value


def period(text: str, zone: tzinfo | None) -> tuple[float, float]:
    """The day, minute or second that is meant, as epoch seconds: its start, and the start of the next.

    Raises:
        ValueError: what is expected instead.
    """
    expected = f"expects a day such as 2026-03-01 or a minute such as 2026-03-01T14:05, not {_short(text)}"
    match = _DATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(expected)
    parts = [int(part) for part in match.groups() if part is not None]
    length = {3: timedelta(days=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}[len(parts)]
    try:
        start = datetime(*parts)  # type: ignore[arg-type]  # between three and six whole numbers
        # The end is found on the wall clock: a day with a change of the clock has 23 or 25 hours.
        return start.replace(tzinfo=zone).timestamp(), (start + length).replace(tzinfo=zone).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(expected) from None


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
