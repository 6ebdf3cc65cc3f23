"""Wall-clock time of a block, on any device. Keeps raw seconds; statistics are derived where they are shown."""

from __future__ import annotations

import gc
import itertools
import time
from types import TracebackType
from typing import Self

import torch


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on the device is done; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Timer:
    """Context manager; afterwards ``seconds`` is what the block took, including the device work it queued.

    Garbage is collected before and collection is off inside, so that no collection of earlier objects is counted.
    ``seconds`` stays ``nan`` if the block raises.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = float("nan")
        self._device = device
        self._was_collecting = True
        self._start_s = 0.0

    def __enter__(self) -> Self:
        self._was_collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        synchronize(self._device)
        self._start_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            synchronize(self._device)
            self.seconds = time.perf_counter() - self._start_s
        if self._was_collecting:
            gc.enable()


class Laps:
    """Seconds of consecutive parts of a block, without making the host wait for the device between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, name: str) -> None:
        """Say that the part called ``name`` begins now; the last mark only ends the part before it."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((name, event))
        else:
            synchronize(self._device)
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds by name; parts of one name are added up. The device must have finished."""
        totals: dict[str, float] = {}
        for (name, start), (_, end) in itertools.pairwise(self._marks):
            if isinstance(start, float) and isinstance(end, float):
                taken = end - start
            else:
                taken = start.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]
            totals[name] = totals.get(name, 0.0) + taken
        return totals
