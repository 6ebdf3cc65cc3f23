"""Hold the workers of this machine to their limits, from outside and every 20 ms: time, memory, the machine's reserve.

A thread of the process that started the workers: it waits for no database, and runs on whichever machine they do. Keeps
the memory samples of each worker. Stores nothing and collects no results; who started a worker sees that it has ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.executors.endings import limit_passed, reserve_reached
from engine.measure.free_memory import free_memory_bytes, reserve_bytes

if TYPE_CHECKING:
    from engine.executors.local import LocalWorker

INTERVAL_S = 0.02
_SAMPLE_EVERY_S = 0.05
#: Which run is to blame for what the machine lacks is seen from how far peaks rose over the last seconds.
_MARK_EVERY_S = 1.0
_MARKS = 5
#: Below this a rise says nothing: allocators breathe.
_LEAST_RISE_BYTES = 64 * 2**20
#: Giving back tens of gigabytes takes the kernel a while; the next run is ended only if that did not help.
_RELIEF_S = 5.0


@dataclass
class _Watched:
    worker: LocalWorker
    next_sample_s: float = 0.0
    next_mark_s: float = 0.0
    peaks_bytes: deque[int] = field(default_factory=lambda: deque(maxlen=_MARKS))

    @property
    def blame(self) -> tuple[int, int]:
        """How far its peak rose lately, then how much it has now: the run that this is largest of is ended first."""
        rise = self.worker.peak_rss_anon_bytes - (self.peaks_bytes[0] if self.peaks_bytes else 0)
        return (rise if rise >= _LEAST_RISE_BYTES else 0), self.worker.rss_anon_bytes


class Watch:
    """Watches the workers given to ``add`` until they end. Its thread lives while there are any.

    Raises:
        SpecError: if the setting of the reserve is no number of bytes.
    """

    def __init__(self) -> None:
        self._reserve_bytes = reserve_bytes()
        self._watched: list[_Watched] = []
        self._changed = threading.Lock()
        self._thread: threading.Thread | None = None
        self._relieved_s = 0.0

    def add(self, worker: LocalWorker) -> None:
        """Watch a worker from now on."""
        with self._changed:
            self._watched.append(_Watched(worker))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                watched = [one for one in self._watched if one.worker.look()]
                if len(watched) < len(self._watched):
                    # What it had is free now: whether that was enough shows in the next look.
                    self._relieved_s = 0.0
                self._watched = watched
                if not watched:
                    self._thread = None
                    return
            now_s = time.monotonic()
            # A process that ends just now, or a machine that has no file handle to spare: the next look may do.
            with suppress(OSError):
                for one in watched:
                    self._look_at(one, now_s)
                self._keep_reserve([one for one in watched if one.worker.ending is None], now_s)
            time.sleep(INTERVAL_S)

    @staticmethod
    def _look_at(one: _Watched, now_s: float) -> None:
        worker = one.worker
        if now_s >= one.next_sample_s:
            one.next_sample_s = now_s + _SAMPLE_EVERY_S
            worker.sample()
        if now_s >= one.next_mark_s:
            one.next_mark_s = now_s + _MARK_EVERY_S
            one.peaks_bytes.append(worker.peak_rss_anon_bytes)
        if worker.ending is None:
            ending = limit_passed(worker.work.spec, worker.age_s, worker.peak_rss_anon_bytes, worker.phase)
            if ending is not None:
                worker.kill(ending)

    def _keep_reserve(self, running: Sequence[_Watched], now_s: float) -> None:
        free_bytes = free_memory_bytes()
        if free_bytes >= self._reserve_bytes or not running or now_s < self._relieved_s:
            return
        worker = max(running, key=lambda one: one.blame).worker
        self._relieved_s = now_s + _RELIEF_S
        worker.kill(reserve_reached(worker.peak_rss_anon_bytes, worker.phase, free_bytes, self._reserve_bytes))
