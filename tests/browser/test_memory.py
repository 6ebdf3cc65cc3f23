from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.visitors import Visitor
from tests.browser.conftest import Dashboard

#: glibc's arenas but the first begin at a multiple of their largest size, of which the rest is reserved.
ARENA_BYTES = 64 * 2**20


def arenas_of_threads(pid: int) -> int:
    """How many arenas a process has beside the first one, by its mappings."""
    mappings = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    ranges = [(*(int(end, 16) for end in mapping[0].split("-")), mapping[1]) for mapping in mappings]
    reserved = {start: end for start, end, rights in ranges if rights == "---p"}
    return sum(
        start % ARENA_BYTES == 0 and rights == "rw-p" and reserved.get(end) == start + ARENA_BYTES
        for start, end, rights in ranges
    )


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")
def test_the_threads_that_answer_pages_share_one_arena_of_memory(quiet_dashboard: Dashboard) -> None:
    with Visitor(quiet_dashboard.address) as one, Visitor(quiet_dashboard.address) as other:
        for path in ("/", "/runs", "/system"):
            one.open(path)
            other.open(path)
        assert arenas_of_threads(quiet_dashboard.pid) == 0
