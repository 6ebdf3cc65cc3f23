"""Finding an entry by name and saying which name was probably meant.

Knows nothing of what the entries are. Imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry")
_LONGEST = 100


class UnknownEntry(LookupError):
    """A name that the catalog does not hold; the text says which known name is nearest."""

    def __str__(self) -> str:
        # LookupError's subclass KeyError quotes its text; plain text is wanted here whatever the base does.
        return str(self.args[0])


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None where nothing is known."""
    names = list(known)
    # Comparing takes time by the product of the lengths, and no entry has a name as long as this.
    lowered = name[:_LONGEST].lower()
    ranked = sorted(
        names, key=lambda other: difflib.SequenceMatcher(None, lowered, other.lower()).ratio(), reverse=True
    )
    return ranked[0] if ranked else None


def look_up(what: str, name: Any, entries: Mapping[str, Entry]) -> Entry:
    """The entry called ``name``.

    Raises:
        UnknownEntry: naming the nearest entry, when there is none of that name.
    """
    if isinstance(name, str) and name in entries:
        return entries[name]
    guess = nearest(name, entries) if isinstance(name, str) else None
    hint = f"; the nearest is {guess}" if guess else f"; it must be one of {', '.join(entries)}"
    raise UnknownEntry(f"unknown {what} {name!r}{hint}")
