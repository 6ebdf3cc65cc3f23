"""From the memory of a model of a few blocks to that of the same model with many, to the byte.

A model's blocks repeat with a period (Gemma-2's local and global attention: two). Every loop over
the blocks (forward, backward, the optimizer's) makes the same changes once more for a period more. Two shallow models
show these stretches, which are then put in as often as the full model has them. The peak is looked for in the full
history, because it may fall into another part there. Builds no model.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from engine.prediction.stream import Change, Part, Stream

# First and last blocks may differ in what they free and when; what lies between two of each is the same everywhere.
_LEAST_PERIODS = 2


class NotRepeating(ValueError):
    """The deeper model's history is not the shallower one's with one stretch more in each part."""


@dataclasses.dataclass(frozen=True, slots=True)
class Depths:
    """Two depths to run, in blocks, and how many periods the full model has beyond the first of them."""

    shallow: int
    deeper: int
    further_periods: int


def depths(blocks: Sequence[Hashable]) -> Depths | None:
    """Which depths stand for a model whose blocks are described by these values; None where all of it has to be run.

    Equal values must mean blocks that do the same. A first few may be unlike the rest (dense layers of a mixture of
    experts); from then on they repeat with the shortest period there is.
    """
    number = len(blocks)
    found = (
        min(
            (first + period, period, first)
            for first in range(number)
            for period in range(1, number - first + 1)
            if all(blocks[place] == blocks[place + period] for place in range(first, number - period))
        )
        if number
        else None
    )
    if found is None:
        return None
    _, period, first = found
    shallow = first + _LEAST_PERIODS * period + (number - first) % period
    further = (number - shallow) // period
    return Depths(shallow, shallow + period, further) if further > 1 else None


def deepen(shallow: Stream, deeper: Stream, further_periods: int) -> Stream:
    """The history of a model with ``further_periods`` more periods than the shallow one.

    Args:
        shallow: parts of the shallow model's history.
        deeper: the same parts of a model that is one period deeper.
        further_periods: how many periods the full model has beyond the shallow one.

    Raises:
        NotRepeating: if in some part the deeper history is not the shallow one with one stretch put in.
    """
    if [part.name for part in shallow] != [part.name for part in deeper]:
        raise NotRepeating("the two models do not go through the same parts")
    return tuple(
        Part(few.name, _repeat(few.name, few.changes, more.changes, further_periods))
        for few, more in zip(shallow, deeper, strict=True)
    )


def deepen_net(shallow: Part, deeper: Part, further_periods: int) -> Part:
    """What is alive in a model with ``further_periods`` more periods than the shallow one, order aside.

    Each period more adds the same storages of each category and origin; or, where it makes one larger, the same bytes.
    """
    few, more = _sizes(shallow), _sizes(deeper)
    changes: list[Change] = []
    for key, sizes in more.items():
        fewer, added = few[key], sizes - few[key]
        if fewer - sizes:
            period_bytes = _total(sizes) - _total(fewer)
            changes.append(Change(*key, _total(fewer) + further_periods * period_bytes))
        else:
            times = {size: number + (further_periods - 1) * added[size] for size, number in sizes.items()}
            changes += [Change(*key, size) for size, number in times.items() for _ in range(number)]
    return Part(shallow.name, tuple(changes))


def _sizes(part: Part) -> defaultdict[tuple[str, str], Counter[int]]:
    """How many storages of which sizes each category and origin has."""
    found: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for change in part.changes:
        found[change.category, change.origin][change.bytes] += 1
    return found


def _total(sizes: Counter[int]) -> int:
    return sum(size * number for size, number in sizes.items())


def _repeat(name: str, few: Sequence[Change], more: Sequence[Change], times: int) -> tuple[Change, ...]:
    """The shallow history with each stretch that the deeper one has more put in ``times`` times.

    A loop over the blocks shows as one such stretch. Where a stretch repeats it could be cut out at several places to
    the same effect: here it is the last of them, where the two histories first differ.
    """
    found: list[Change] = []
    at, place = 0, 0
    while at < len(few) or place < len(more):
        same = _common(few, more, at, place)
        found += few[at : at + same]
        at, place = at + same, place + same
        if at == len(few) and place == len(more):
            break
        lengths = [
            length for length in range(1, len(more) - place - (len(few) - at) + 1) if _repeats(more, place, length)
        ]
        # After the stretch the two go on alike, for longer than by chance; a whole loop before a part of one.
        length = max(lengths, key=lambda n: (_common(few, more, at, place + n), n), default=0)
        if length == 0 or (at < len(few) and few[at] != more[place + length]):
            raise NotRepeating(f"the {name} part does not repeat from block to block")
        found += [*more[place : place + length]] * times
        place += length
    return tuple(found)


def _repeats(changes: Sequence[Change], place: int, length: int) -> bool:
    """Whether this stretch is what came before it once more: one loop that is left later, not the ends of two."""
    return place >= length and all(changes[at - length] == changes[at] for at in range(place, place + length))


def _common(few: Sequence[Change], more: Sequence[Change], at: int, place: int) -> int:
    """How many changes are the same from these places on."""
    number = 0
    while at + number < len(few) and place + number < len(more) and few[at + number] == more[place + number]:
        number += 1
    return number
