"""What PyTorch's caching allocator takes from a CUDA device for a history of memory. A pure function over the history.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` in PyTorch 2.13 with its default settings
(``c10/core/AllocatorConfig.h``): one stream, no expandable segments, no limit to splitting, no garbage collection, and
a device with room enough. Knows nothing of libraries' workspaces or of what the driver takes.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable

from engine.prediction.stream import Change, Part, Stream, lifetimes

KIB = 2**10
MIB = 2**20
_BLOCK_BYTES = 512
_SMALL_BYTES = MIB
_SMALL_SEGMENT_BYTES = 2 * MIB
_LARGE_BYTES = 10 * MIB
_LARGE_SEGMENT_BYTES = 20 * MIB
_ROUND_LARGE_BYTES = 2 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Allocated:
    """Peaks as ``torch.cuda`` reports them: blocks in use, and segments held.

    ``requested_bytes`` are the tensors' own bytes at the first moment of most bytes in use.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    requested_bytes: int


def simulate(before: Part, counted: Stream) -> Allocated:
    """The peaks over the counted parts of a job. What is alive ``before`` them came first, into an empty cache.

    Segments stay once they are taken, so that repeating the parts shows whether a job's later rounds need more.

    Raises:
        ValueError: if the history gives back more than it takes.
    """
    allocator = CachingAllocator()
    _follow(allocator, itertools.chain(before.changes, *(part.changes for part in counted)))
    return Allocated(allocator.peak_allocated_bytes, allocator.reserved_bytes, allocator.requested_at_peak_bytes)


def _follow(allocator: CachingAllocator, changes: Iterable[Change]) -> None:
    blocks: dict[int, _Block] = {}
    for number, change in lifetimes(changes):
        if change.bytes > 0:
            blocks[number] = allocator.take(change.bytes)
        else:
            allocator.give_back(blocks.pop(number))


@dataclasses.dataclass(slots=True, eq=False)
class _Block:
    """A stretch of a segment, with its neighbours there; ``requested_bytes`` is 0 while it is free."""

    address: int
    bytes: int
    is_small: bool
    requested_bytes: int = 0
    previous: _Block | None = None
    next: _Block | None = None

    @property
    def fit(self) -> tuple[int, int]:
        """Free blocks are tried in this order."""
        return self.bytes, self.address


class CachingAllocator:
    """Segments taken from a device and the blocks in them; ``take`` and ``give_back`` as tensors come and go."""

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.requested_at_peak_bytes = 0
        self._requested_bytes = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._at: dict[int, _Block] = {}

    def take(self, requested_bytes: int) -> _Block:
        """The smallest free block that is large enough, or one of a new segment; what is left over stays free."""
        needed_bytes = max(_rounded(requested_bytes, _BLOCK_BYTES), _BLOCK_BYTES)
        block = self._best_fit(needed_bytes) or self._new_segment(needed_bytes)
        left_bytes = block.bytes - needed_bytes
        if left_bytes >= _BLOCK_BYTES if block.is_small else left_bytes > _SMALL_BYTES:
            self._split(block, needed_bytes)
        block.requested_bytes = requested_bytes
        self._requested_bytes += requested_bytes
        self.allocated_bytes += block.bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes, self.requested_at_peak_bytes = self.allocated_bytes, self._requested_bytes
        return block

    def give_back(self, block: _Block) -> None:
        """Free a block; it becomes one with free neighbours."""
        self.allocated_bytes -= block.bytes
        self._requested_bytes -= block.requested_bytes
        block.requested_bytes = 0
        if block.previous is not None and not block.previous.requested_bytes:
            block = self._joined(block.previous, block, free=block.previous)
        if block.next is not None and not block.next.requested_bytes:
            block = self._joined(block, block.next, free=block.next)
        self._keep(block)

    def _best_fit(self, needed_bytes: int) -> _Block | None:
        free = self._free[needed_bytes <= _SMALL_BYTES]
        place = bisect.bisect_left(free, (needed_bytes, 0))
        return self._at.pop(free.pop(place)[1]) if place < len(free) else None

    def _new_segment(self, needed_bytes: int) -> _Block:
        is_small = needed_bytes <= _SMALL_BYTES
        if is_small:
            size = _SMALL_SEGMENT_BYTES
        elif needed_bytes < _LARGE_BYTES:
            size = _LARGE_SEGMENT_BYTES
        else:
            size = _rounded(needed_bytes, _ROUND_LARGE_BYTES)
        # Addresses are taken to rise from segment to segment.
        block = _Block(self.reserved_bytes, size, is_small)
        self.reserved_bytes += size
        return block

    def _split(self, block: _Block, needed_bytes: int) -> None:
        left = _Block(block.address + needed_bytes, block.bytes - needed_bytes, block.is_small, 0, block, block.next)
        if left.next is not None:
            left.next.previous = left
        block.bytes, block.next = needed_bytes, left
        self._keep(left)

    def _joined(self, first: _Block, second: _Block, free: _Block) -> _Block:
        own = self._free[free.is_small]
        own.pop(bisect.bisect_left(own, free.fit))
        del self._at[free.address]
        first.bytes += second.bytes
        first.next = second.next
        if first.next is not None:
            first.next.previous = first
        return first

    def _keep(self, block: _Block) -> None:
        bisect.insort(self._free[block.is_small], block.fit)
        self._at[block.address] = block


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
