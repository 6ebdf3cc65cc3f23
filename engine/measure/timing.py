"""Wall-clock time of a block, on any device. Keeps raw seconds; statistics are derived where they are shown."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator

import torch


@dataclasses.dataclass(slots=True)
class Elapsed:
    """Seconds that a timed block took; ``nan`` until the block has ended."""

    seconds: float = float("nan")


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on the device is done; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[Elapsed]:
    """Time a block including the device work it queued.

    Garbage is collected before and collection is off inside, so that no collection of earlier objects is counted.
    """
    elapsed = Elapsed()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    synchronize(device)
    start = time.perf_counter()
    try:
        yield elapsed
        synchronize(device)
        elapsed.seconds = time.perf_counter() - start
    finally:
        if was_enabled:
            gc.enable()
