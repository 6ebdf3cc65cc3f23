"""The history of a job's memory as a list of changes in parts, its peak, and its course for a chart. Pure functions.

Knows nothing of models or PyTorch. A change is bytes that one storage takes or gives back; the order is that in which
the job's own code makes them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Change(NamedTuple):
    """Bytes that come (or, negative, go), what they are for, and which module's tensor they belong to."""

    category: str
    origin: str
    bytes: int


class Part(NamedTuple):
    """A named part of the job, such as "backward", with its changes in order."""

    name: str
    changes: tuple[Change, ...]


Stream = tuple[Part, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Peak:
    """The first moment of most bytes: the part it falls into, bytes by category, and by category and origin."""

    part: str
    bytes: Mapping[str, int]
    origins: Mapping[tuple[str, str], int]

    @property
    def total_bytes(self) -> int:
        """All categories together."""
        return sum(self.bytes.values())


class Moment(NamedTuple):
    """Live bytes by category after so many changes of the counted parts."""

    number: int
    part: str
    bytes: Mapping[str, int]


def peak(before: Part, counted: Stream) -> Peak:
    """The peak over the counted parts, on top of what is alive ``before`` them."""
    live_bytes = sum(change.bytes for change in before.changes)
    most_bytes, most_at, number = live_bytes, 0, 0
    for part in counted:
        for change in part.changes:
            number += 1
            live_bytes += change.bytes
            if live_bytes > most_bytes:
                most_bytes, most_at = live_bytes, number
    live: Counter[tuple[str, str]] = Counter()
    for change in _until(before, counted, most_at):
        live[change.category, change.origin] += change.bytes
    by_category: Counter[str] = Counter()
    for (category, _), size in live.items():
        by_category[category] += size
    return Peak(_part_at(counted, most_at), dict(by_category), {key: size for key, size in live.items() if size})


def course(before: Part, counted: Stream, most_moments: int = 300) -> list[Moment]:
    """Live bytes by category over the counted parts, thinned out so that the highest moment of each stretch stays."""
    live: Counter[str] = Counter()
    for change in before.changes:
        live[change.category] += change.bytes
    step = max(1, -(-sum(len(part.changes) for part in counted) // most_moments))
    moments = [Moment(0, counted[0].name if counted else before.name, dict(live))]
    number, most_bytes, best = 0, -1, moments[0]
    for part in counted:
        for change in part.changes:
            live[change.category] += change.bytes
            number += 1
            total_bytes = live.total()
            if total_bytes > most_bytes:
                most_bytes, best = total_bytes, Moment(number, part.name, dict(live))
            if number % step == 0:
                moments.append(best)
                most_bytes = -1
    if number % step:
        moments.append(best)
    return moments


def joined(first: tuple[Part, Stream], second: tuple[Part, Stream], between: str) -> tuple[Part, Stream]:
    """One history of two that follow each other, of which only the parts are known.

    In the part ``between``, what the second does not begin with goes, and then what it does begin with comes.
    """
    before, parts = first
    left, wanted = Counter(net(between, (before, *parts)).changes), Counter(second[0].changes)
    goes = (change._replace(bytes=-change.bytes) for change in (left - wanted).elements())
    return before, (*parts, Part(between, (*goes, *(wanted - left).elements())), *second[1])


def net(name: str, parts: Iterable[Part]) -> Part:
    """What is left of these parts when they are over, one change for each storage, in the order in which they came."""
    left: dict[int, Change] = {}
    for number, change in lifetimes(change for part in parts for change in part.changes):
        if change.bytes > 0:
            left[number] = change
        else:
            del left[number]
    return Part(name, tuple(left.values()))


def lifetimes(changes: Iterable[Change]) -> Iterator[tuple[int, Change]]:
    """Number the storages that come, and say which of them each change gives back: of equal ones, the last that came.

    Where none is as large as what goes, that storage grew in several changes: it goes as several of its module's.

    Raises:
        ValueError: if more goes than came.
    """
    live: defaultdict[tuple[str, str], defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, change in enumerate(changes):
        numbers = live[change.category, change.origin]
        if change.bytes > 0:
            numbers[change.bytes].append(number)
            yield number, change
        left_bytes = -change.bytes
        while left_bytes > 0:
            smaller = [size for size, own in numbers.items() if own and size < left_bytes]
            sizes = [left_bytes] if numbers[left_bytes] else smaller
            if not sizes:
                raise ValueError(f"{-change.bytes} bytes of {change.category} of {change.origin!r} go that never came")
            size = max(sizes, key=lambda size: numbers[size][-1])
            left_bytes -= size
            yield numbers[size].pop(), change._replace(bytes=-size)


def _until(before: Part, counted: Stream, number: int) -> Iterator[Change]:
    yield from before.changes
    for part in counted:
        if number <= 0:
            return
        yield from part.changes[:number]
        number -= len(part.changes)


def _part_at(counted: Sequence[Part], number: int) -> str:
    for part in counted:
        if number <= len(part.changes):
            return part.name
        number -= len(part.changes)
    return counted[-1].name if counted else ""
