"""How much of the machine's CPU others used while something was measured.

Does not say who they were, and judges nothing: the threshold for "disturbed" belongs to whoever shows the number.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

_STAT = Path("/proc/stat")
# Ticks of /proc/stat are 10 ms; below this many in all, rounding alone would look like a disturbance.
_FEWEST_TICKS = 20


class BackgroundCpu:
    """Context manager; afterwards ``share`` is the CPU time of others over that of all cores, 0 to 1.

    "Others" are all processes but this one and the children it has waited for; time a hypervisor took counts as
    others'. ``share`` is ``None`` where ``/proc/stat`` is absent and for blocks shorter than about 0.2 s per core.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._start: tuple[int, int, float] | None = None

    def __enter__(self) -> Self:
        self._start = _read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = _read()
        if self._start is None or end is None:
            return
        busy, total, own_s = (now - then for now, then in zip(end, self._start, strict=True))
        if total < _FEWEST_TICKS:
            return
        others = busy - own_s * os.sysconf("SC_CLK_TCK")
        self.share = min(1.0, max(0.0, others / total))


def _read() -> tuple[int, int, float] | None:
    """Busy ticks and all ticks of all cores since boot, and the seconds this process and its children used."""
    try:
        first_line = _STAT.read_text().split("\n", 1)[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guest time, which follows, is contained in user and nice.
    ticks = [int(field) for field in first_line.split()[1:9]]
    own = os.times()
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks), own.user + own.system + own.children_user + own.children_system
