"""Exact bytes of live tensor memory over time, by what the memory turned out to be for.

Counts storages that PyTorch operations return, on any device but ``meta``; memory that libraries take inside one
operation is not seen (``process_memory`` sees it). Slows Python down several times: never time a tracked block.
"""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TEMPORARY = "temporary"


@dataclasses.dataclass(slots=True)
class _Storage:
    """One piece of memory: what it is for, whose it is, and how many bytes it holds now."""

    category: str
    bytes: int
    origin: str
    alive: weakref.ref[torch.UntypedStorage] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes of one category at one time, in seconds since tracking began."""

    time_s: float
    category: str
    bytes: int


class TensorTracker(TorchDispatchMode):
    """Context manager that follows every storage created inside it, and those given to ``watch``.

    New memory counts as ``temporary`` until ``assign`` says, at any later time, what it is for: history is rewritten,
    so that an adapter's parameters are shown as such from the moment they were allocated.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare the import of PyTorch's compiler (0.9 s), which the base class would only tell to ignore us."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, _Storage] = {}
        self._events: list[tuple[float, _Storage, int]] = []
        self._start_s = time.perf_counter()
        self._live_bytes = 0
        self._bytes_at_start = 0
        self._peak_bytes = 0

    @property
    def live_bytes(self) -> int:
        """Bytes alive now."""
        return self._live_bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were alive at one time since the block began."""
        return self._peak_bytes

    @property
    def peak_extra_bytes(self) -> int:
        """The peak above what was alive when the block began."""
        return self._peak_bytes - self._bytes_at_start

    def __enter__(self) -> Self:
        # What was watched before has no time of its own in this block: it was there when the block began.
        self._events = [(0.0, storage, change) for _, storage, change in self._events]
        self._start_s = time.perf_counter()
        self._bytes_at_start = self._peak_bytes = self._live_bytes
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._see(result, TEMPORARY)
        elif isinstance(result, tuple | list):
            for item in result:
                if isinstance(item, Tensor):
                    self._see(item, TEMPORARY)
        return result

    def watch(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count tensors that exist already; a storage that several of them share is counted once."""
        for tensor in tensors:
            self._see(tensor, category)

    def assign(self, tensors: Iterable[Tensor], category: str) -> None:
        """Say what memory seen before is for; memory never seen is counted from now on."""
        for tensor in tensors:
            storage = self._see(tensor, category)
            if storage is not None and storage.category == TEMPORARY:
                storage.category = category

    def origin(self, tensor: Tensor) -> str:
        """Whose memory a tensor seen for the first time holds; a tracker that knows it overrides this."""
        return ""

    def timeline(self, most_moments: int = 300) -> list[Moment]:
        """Live bytes by category over time: every category at each moment, thinned out so that every peak stays.

        Events are divided into ``most_moments`` equal parts, and each part is shown by its moment of most memory.
        """
        live: dict[str, int] = {}
        for _, storage, _ in self._events:
            live[storage.category] = 0
        step = max(1, -(-len(self._events) // most_moments))
        moments: list[Moment] = []
        for first in range(0, len(self._events), step):
            most, shown = -1, (0.0, dict(live))
            for time_s, storage, change in self._events[first : first + step]:
                live[storage.category] += change
                total = sum(live.values())
                if total > most:
                    most, shown = total, (time_s, dict(live))
            moments.extend(Moment(shown[0], category, size) for category, size in shown[1].items())
        return moments

    def _see(self, tensor: Tensor, category: str) -> _Storage | None:
        if tensor.device.type == "meta":
            return None
        try:
            memory = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and some subclasses have no one storage
            return None
        key = memory._cdata
        size = memory.nbytes()
        storage = self._storages.get(key)
        if storage is None:
            storage = _Storage(category, 0, self.origin(tensor))
            # The callback holds the tracker weakly: a model that outlives it must not keep the history alive.
            owner = weakref.ref(self)

            def forget(_: Any, key: int = key, owner: weakref.ref[TensorTracker] = owner) -> None:
                tracker = owner()
                if tracker is not None:
                    tracker._forget(key)

            storage.alive = weakref.ref(memory, forget)
            self._storages[key] = storage
        if size != storage.bytes:
            self._change(storage, size - storage.bytes)
        return storage

    def _forget(self, key: int) -> None:
        storage = self._storages.pop(key, None)
        if storage is not None and storage.bytes:
            self._change(storage, -storage.bytes)

    def _change(self, storage: _Storage, change: int) -> None:
        storage.bytes += change
        self._live_bytes += change
        self._peak_bytes = max(self._peak_bytes, self._live_bytes)
        self._events.append((time.perf_counter() - self._start_s, storage, change))
