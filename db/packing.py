"""Memory samples in little memory: 20 bytes each in place of some 300 as tuples. Pure, no database."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from db.downsampling import Sample


class PackedSamples(Sequence[Sample]):
    """Samples that wait to be stored, by the thousand runs: what repeats (source, phase, category) is kept once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        places: dict[tuple[str, str, str], int] = {}
        self._times_s = array("d", (sample.time_s for sample in samples))
        self._bytes = array("q", (sample.bytes for sample in samples))
        self._labels = array(
            "I", (places.setdefault((one.source, one.phase, one.category), len(places)) for one in samples)
        )
        self._known = list(places)

    def __len__(self) -> int:
        return len(self._bytes)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        source, phase, category = self._known[self._labels[index]]
        return Sample(source, self._times_s[index], phase, category, self._bytes[index])

    def __iter__(self) -> Iterator[Sample]:
        known = self._known
        for time_s, size_bytes, label in zip(self._times_s, self._bytes, self._labels, strict=True):
            source, phase, category = known[label]
            yield Sample(source, time_s, phase, category, size_bytes)
