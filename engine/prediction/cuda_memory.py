"""What a job takes of a CUDA device, as terms that add up to what the driver counts. A pure function over a history.

Tensors and the caching allocator follow from the history (``cuda_allocator``); libraries' workspaces and the driver's
own memory are figures from elsewhere, each with its source.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from engine.prediction.attention import Capability
from engine.prediction.cuda_allocator import KIB, MIB, Allocated, simulate
from engine.prediction.stream import Change, Part, Stream

_WORKSPACES = "cuBLAS workspaces"
_CONTEXT_BYTES = 614 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """A part of what a job takes of the device, and where its figure is from; ``unverified`` on no GPU so far."""

    name: str
    bytes: int
    source: str
    unverified: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class OnDevice:
    """Peaks as ``torch.cuda`` counts them, and the terms that make up the device's whole peak."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        """What has to fit into the card's memory."""
        return sum(term.bytes for term in self.terms)


def workspace_bytes(capability: Capability) -> int:
    """The workspace that PyTorch gives to each handle of cuBLAS (and, with it, cuBLASLt)."""
    return 32 * MIB if capability[0] >= 9 else 2 * 4096 * KIB + 8 * 16 * KIB


def on_device(before: Part, counted: Stream, capability: Capability, handles: int, rounds: int = 1) -> OnDevice:
    """The peaks of a job on a device of that compute capability.

    Args:
        before: what is alive before the counted parts.
        counted: the job's parts.
        capability: the device's compute capability.
        handles: threads that multiply matrices, each with a handle of its own; two where gradients are taken, as
            PyTorch does that in another thread.
        rounds: how often the parts are gone through, as a cache in pieces may need more in a later round; once only
            where they give back something of ``before``, which a second round could not.

    Raises:
        ValueError: if the history gives back more than it takes.
    """
    workspaces = [Change("temporary", _WORKSPACES, workspace_bytes(capability))] * handles
    counted *= 1 if _give_back_more_than_they_take(counted) else rounds
    found = simulate(Part(before.name, (*before.changes, *workspaces)), counted)
    return OnDevice(found.peak_allocated_bytes, found.peak_reserved_bytes, _terms(found, workspaces))


def _give_back_more_than_they_take(counted: Stream) -> bool:
    left: Counter[tuple[str, str]] = Counter()
    for part in counted:
        for change in part.changes:
            left[change.category, change.origin] += change.bytes
    return min(left.values(), default=0) < 0


def _terms(found: Allocated, workspaces: list[Change]) -> tuple[Term, ...]:
    library_bytes = sum(change.bytes for change in workspaces)
    return (
        Term(
            "tensors", found.requested_bytes - library_bytes, "the job's own code, run without values", unverified=False
        ),
        Term(
            "rounding of tensors",
            found.peak_allocated_bytes - found.requested_bytes,
            "c10/cuda/CUDACachingAllocator.cpp: blocks of 512 bytes, and large ones that are not split",
        ),
        Term(
            _WORKSPACES,
            library_bytes,
            "aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB from compute capability 9.0 on, 8.1 MiB before, for each "
            "of the threads of forward and backward pass",
        ),
        Term(
            "cache in pieces",
            found.peak_reserved_bytes - found.peak_allocated_bytes,
            "c10/cuda/CUDACachingAllocator.cpp: segments of 2 MiB, 20 MiB and above, kept once they are taken",
        ),
        Term(
            "CUDA context",
            _CONTEXT_BYTES,
            "the most that PyTorch's out-of-memory messages say of processes with nothing else (250 to 614 MiB, by "
            "card and driver)",
        ),
    )
