"""Splits long lists of values for ``IN (...)``: SQLite binds at most 32766 values in one statement."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

_SIZE = 500
_Item = TypeVar("_Item")


def chunks(items: Collection[_Item]) -> Iterator[list[_Item]]:
    """The items in order, in lists of at most 500."""
    listed = list(items)
    return (listed[start : start + _SIZE] for start in range(0, len(listed), _SIZE))
