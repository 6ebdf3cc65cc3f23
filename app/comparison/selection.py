"""What the Compare page shows, as it stands in the address: runs, baseline, grouping, metric, axes.

Reading is tolerant: an address may be old, cut or typed by hand. What cannot be used is left out and counted, so that
the page can say so in one sentence and show the rest. Knows nothing of Streamlit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from app import formatting

#: More runs than this are not read: no chart tells them apart.
MOST_RUNS = 200
#: As many are offered to be compared at once; an address may name more.
OFFERED_RUNS = 50
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """Run ids named in an address: those that can be ids, in the order given, and the words that cannot."""

    ids: tuple[int, ...]
    unreadable: tuple[str, ...]
    left_out: int


def parse_ids(text: str) -> Asked:
    """Run ids from ``"3,1,2"``; each once. At most ``MOST_RUNS``, ``left_out`` counts the rest."""
    ids: dict[int, None] = {}
    unreadable = []
    for word in text.replace(" ", ",").split(","):
        if not word:
            continue
        if word.isascii() and word.isdigit() and len(word) <= 19 and 0 < int(word) <= _LARGEST_ID:
            ids[int(word)] = None
        else:
            unreadable.append(word)
    return Asked(tuple(ids)[:MOST_RUNS], tuple(unreadable), max(len(ids) - MOST_RUNS, 0))


def ids_text(ids: Iterable[int]) -> str:
    """Run ids as the address holds them: ``"1,2,3"``."""
    return ",".join(str(run_id) for run_id in ids)


def missing_sentence(asked: Asked, found: Collection[int]) -> str | None:
    """What of the address is not shown, as one sentence; None where everything is."""
    gone = [run_id for run_id in asked.ids if run_id not in found]
    parts = []
    if gone:
        names = formatting.listing(str(run_id) for run_id in gone[:5])
        more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        verb = "is" if len(gone) == 1 else "are"
        parts.append(f"{'run' if len(gone) == 1 else 'runs'} {names}{more} {verb} not stored here; deleted, perhaps")
    if asked.unreadable:
        parts.append(f"“{asked.unreadable[0][:40]}” in the address is no run id")
    if asked.left_out:
        parts.append(f"only the first {MOST_RUNS} runs are read, {asked.left_out} are left out")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else None
