"""Twenty minutes of work, and what they leave behind: memory, file handles and threads of each process, the database.

A small run is queued every few seconds, of every kind in turn, some of them cancelled, while ten people look at all
pages and open new tabs again and again (sessions over WebSockets, no browser). What pages take grows with what is
stored, which is no leak: the lab has two thousand runs from the start, and people look at the newest runs.

Each process is looked at from outside, every few seconds. The first quarter is left to caches; in the last tenth nobody
asks for anything. A process is flat when the trend over the time between would not add more than 5 % to its memory, nor
two handles; the database grows as planned when each run takes the room that runs took in the first quarter, within
10 %, and none while nothing happens. Does not measure how fast anything is. Run it with ``make soak``; it ends with
status 1 when something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from scipy.stats import theilslopes
from websockets.exceptions import WebSocketException

from app.widgets.launching import new_run
from db import queue
from engine.measure.environment import environment
from engine.measure.process_memory import read_process_memory
from engine.spec import parse_spec
from tests.benchmarks import seeding
from tests.benchmarks.lab import Lab, lab
from tests.benchmarks.table import machine_line, save
from tests.benchmarks.visitors import BrokenPage, Visitor

PEOPLE = 10
SEEDED_RUNS, SEEDED_VALUES = 2_000, 192_000
LOOK_EVERY_S = 5.0
#: Seconds a person stays on a page.
STAYS_S = (2.0, 8.0)
#: Seconds after which a tab is closed and a new one opened, always the same: Streamlit remembers each tab for two
#: minutes with three handles. Lives drawn at random (3 to 12 pages) made for a trend by chance, of 7 handles (standard
#: deviation of 30 simulated courses), where 2 are allowed.
TAB_LIVES_S = 40.0
WARM_UP_SHARE, IDLE_SHARE = 0.25, 0.1
FLAT_SHARE, FLAT_HANDLES, PLAN_SHARE = 0.05, 2.0, 0.1
MIB = 2**20
RUN_EVERY_S = 5.0
#: Of the newest so many runs one is looked at, or two are compared.
NEWEST = 40
#: One run in so many is cancelled.
CANCEL_EVERY = 10
SMALL: dict[str, Any] = {"model": "tiny-test", "repeats": 2, "warmup": 0}
WORK: tuple[dict[str, Any], ...] = (
    {"kind": "init", **SMALL, "adapter": {"options": {"use_dora": True}}},
    {"kind": "merge", **SMALL},
    {"kind": "train", **SMALL, "train": {"context_length": 32}},
    {"kind": "inference", **SMALL, "inference": {"prompt_tokens": 16, "new_tokens": 4}},
)
PAGES = (
    "/",
    "/cases",
    "/case?id=merge",
    "/launch",
    "/queue",
    "/runs",
    "/runs?q=lora",
    "/run?id={one}",
    "/compare?ids={one},{other}",
    "/merge_files",
    "/system",
    "/predict",
    "/fit",
    "/accuracy",
)


class Look(NamedTuple):
    """One process at one moment."""

    time_s: float
    memory_bytes: int
    handles: int
    threads: int


class Stored(NamedTuple):
    """The database at one moment, what is still in its write-ahead log counted in, and how many runs had ended."""

    time_s: float
    size_bytes: int
    log_bytes: int
    runs: int


@dataclass
class Course:
    """Everything that was seen, by process, and what went wrong on the way."""

    processes: dict[str, list[Look]]
    stored: list[Stored]
    pages: int = 0
    broken: list[str] = field(default_factory=list)
    #: The seconds at which a line was printed.
    printed: list[float] = field(default_factory=list)


class Grown(NamedTuple):
    """What a trend adds over the time between warm-up and idling, and what would still count as flat."""

    by: float
    at_most: float

    @property
    def is_flat(self) -> bool:
        return self.by <= self.at_most


def processes_of(here: Lab, dashboard_pid: int) -> dict[str, psutil.Process]:
    """The processes that live as long as the lab, by name; workers are not among them."""
    supervisor = psutil.Process(here.supervisor_pid)
    found = {"dashboard": psutil.Process(dashboard_pid), "supervisor": supervisor}
    for child in supervisor.children():
        if "forkserver" in " ".join(child.cmdline()):
            found["fork server"] = child
    return found


def look(process: psutil.Process, time_s: float) -> Look:
    """Anonymous resident memory, open handles and threads.

    Not the memory that no other process shares: a fork server shares nearly all of its own with each worker that lives.
    """
    memory = read_process_memory(process.pid)
    assert memory is not None, f"process {process.pid} has ended"
    return Look(time_s, memory.rss_anon_bytes or memory.rss_bytes, process.num_fds(), process.num_threads())


def database_now(here: Lab, time_s: float) -> Stored:
    """The size of the lab's database and the runs that have ended."""
    with here.database.reading() as session:
        connection = session.connection()
        # Not the file's own size: that follows in steps, when the log is written back.
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        page_bytes = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
        counts = queue.counts_by_state(session)
    size = here.database.size()
    assert size is not None, "a lab's database is a file"
    ended = sum(count for state, count in counts.items() if state not in ("queued", "running"))
    return Stored(time_s, pages * page_bytes, size.log_bytes, ended)


def keep_busy(here: Lab, ended: threading.Event) -> None:
    """Queue a run now and then until told to stop; some are cancelled as soon as they are there."""
    work = itertools.cycle(WORK)
    for number in itertools.count(1):
        if ended.wait(RUN_EVERY_S):
            return
        spec = parse_spec({**next(work), "seed": number})
        with here.database.writing() as session:
            run_ids = queue.enqueue(session, [new_run(spec)])
            if number % CANCEL_EVERY == 0:
                queue.request_cancel(session, run_ids)


def browse(address: str, seed: int, stored: Sequence[Stored], ended: threading.Event, course: Course) -> None:
    """One person: open a tab, look at some pages, close it, and again; what breaks is noted and does not end it."""
    draw = random.Random(seed)
    # Not all open their tabs at the same moment.
    ended.wait(seed * TAB_LIVES_S / PEOPLE)
    while not ended.is_set():
        try:
            with Visitor(address) as visitor:
                closed_s = time.monotonic() + TAB_LIVES_S
                while time.monotonic() < closed_s:
                    newest = stored[-1].runs
                    one, other = (draw.randint(newest - NEWEST + 1, newest) for _ in range(2))
                    visitor.open(draw.choice(PAGES).format(one=one, other=other))
                    course.pages += 1
                    visitor.look(draw.uniform(*STAYS_S))
                    if ended.is_set():
                        break
        except (BrokenPage, OSError, WebSocketException) as error:
            course.broken.append(f"{type(error).__name__}: {error}")
            ended.wait(1)


@contextlib.contextmanager
def at_work(here: Lab, address: str, course: Course) -> Iterator[None]:
    """Runs are queued and people browse while the block runs; afterwards the queue is left to run empty."""
    ended = threading.Event()
    threads = [threading.Thread(target=keep_busy, args=(here, ended))]
    threads += [
        threading.Thread(target=browse, args=(address, seed, course.stored, ended, course)) for seed in range(PEOPLE)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def watch(here: Lab, processes: dict[str, psutil.Process], course: Course, started_s: float, until_s: float) -> None:
    """Look at everything every few seconds until so many seconds after the start; prints a line each minute."""
    while (now_s := time.monotonic() - started_s) < until_s:
        for name, process in processes.items():
            course.processes[name].append(look(process, now_s))
        course.stored.append(database_now(here, now_s))
        if not course.printed or now_s // 60 > course.printed[-1] // 60:
            course.printed.append(now_s)
            print(line(course), flush=True)
        time.sleep(max(min(LOOK_EVERY_S, until_s - now_s), 0.0))


def line(course: Course) -> str:
    """The newest look at everything, as a line of the table."""
    stored = course.stored[-1]
    cells = [f"{stored.time_s / 60:6.1f}"]
    for looks in course.processes.values():
        cells.append(f"{looks[-1].memory_bytes / MIB:9.1f} {looks[-1].handles:7d} {looks[-1].threads:7d}")
    cells.append(f"{stored.runs:6d} {stored.size_bytes / MIB:8.2f} {stored.log_bytes / MIB:8.2f} {course.pages:6d}")
    return "  ".join(cells)


def header(names: Sequence[str]) -> str:
    """Two lines above the table: the processes, and what of each."""
    processes = "  ".join(f"{name:^25}" for name in names)
    columns = "  ".join(f"{'MiB':>9} {'handles':>7} {'threads':>7}" for _ in names)
    stored = f"{'runs':>6} {'MiB':>8} {'WAL MiB':>8} {'pages':>6}"
    return f"{'':6}  {processes}  {'database':^24}\n{'minute':>6}  {columns}  {stored}"


def trend(points: Sequence[tuple[float, float]]) -> float:
    """Growth per second: the median slope between any two points (Theil-Sen), so that no single one decides."""
    times_s, values = zip(*points, strict=True)
    return float(theilslopes(values, times_s).slope)


def growth(looks: Sequence[Look]) -> dict[str, Grown]:
    """What one process gained over these looks, by their trend: bytes and handles."""
    seconds = looks[-1].time_s - looks[0].time_s
    memory = trend([(at.time_s, at.memory_bytes) for at in looks]) * seconds
    handles = trend([(at.time_s, at.handles) for at in looks]) * seconds
    usual = statistics.median(at.memory_bytes for at in looks)
    return {"memory": Grown(memory, FLAT_SHARE * usual), "handles": Grown(handles, FLAT_HANDLES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    all_s = options.minutes * 60
    warm_s, busy_s = WARM_UP_SHARE * all_s, (1 - IDLE_SHARE) * all_s
    machine = environment()
    print(machine_line(machine))
    with (
        tempfile.TemporaryDirectory() as folder,
        lab(seeding.seed(Path(folder), SEEDED_RUNS, SEEDED_VALUES)) as here,
        here.dashboard() as (address, dashboard_pid),
    ):
        processes = processes_of(here, dashboard_pid)
        course = Course({name: [] for name in processes}, [database_now(here, 0.0)])
        print(header(list(processes)))
        started_s = time.monotonic()
        with at_work(here, address, course):
            watch(here, processes, course, started_s, busy_s)
        here.wait_until_idle()
        idle_s = time.monotonic() - started_s
        watch(here, processes, course, started_s, max(all_s, idle_s + IDLE_SHARE * all_s))
    is_flat = report(course, warm_s, busy_s, idle_s)
    figures = {
        "looks": {name: [list(at) for at in looks] for name, looks in course.processes.items()},
        "stored": [list(at) for at in course.stored],
        "pages": course.pages,
        "broken": course.broken,
    }
    print(f"saved {save('soak', machine, figures)}")
    sys.exit(0 if is_flat else 1)


def report(course: Course, warm_s: float, busy_s: float, idle_s: float) -> bool:
    """Print what grew between warm-up and idling; whether nothing did that should not."""
    window = f"from minute {warm_s / 60:.1f} to {busy_s / 60:.1f}"
    print(f"\n{window:36} {'grown by':>10} {'at most':>10}")
    verdicts = []

    def show(what: str, grown: Grown, unit: float, note: str = "") -> None:
        verdicts.append(grown.is_flat)
        verdict = "as it should" if grown.is_flat else "TOO MUCH"
        print(f"{what:36} {grown.by / unit:10.2f} {grown.at_most / unit:10.2f}  {verdict}{note}")

    for name, looks in course.processes.items():
        grown = growth([at for at in looks if warm_s <= at.time_s <= busy_s])
        show(f"{name}, MiB", grown["memory"], MIB)
        show(f"{name}, handles", grown["handles"], 1)
    start = course.stored[0]
    warm = next(at for at in course.stored if at.time_s >= warm_s)
    busy = next(at for at in course.stored if at.time_s >= idle_s)
    taken = Grown(bytes_per_run(warm, busy), bytes_per_run(start, warm) * (1 + PLAN_SHARE))
    show("database, KiB per run", taken, 1024, f" ({busy.runs - warm.runs} runs)")
    show("database while idle, KiB", Grown(course.stored[-1].size_bytes - busy.size_bytes, 0), 1024)
    print(f"{course.pages} pages were opened, {len(course.broken)} broke")
    for text in sorted(set(course.broken)):
        print(f"  {text}")
    return all(verdicts) and not course.broken


def bytes_per_run(before: Stored, after: Stored) -> float:
    """What each run between two moments added to the database's file."""
    return (after.size_bytes - before.size_bytes) / max(after.runs - before.runs, 1)


if __name__ == "__main__":
    main()
