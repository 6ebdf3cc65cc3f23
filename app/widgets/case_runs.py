"""The stored runs of a published claim: which count, what the claim's rule says of them, and starting what is missing.

A run belongs to a case when its spec is one of the case's sweep and it was measured where asked: ``local`` (this
machine), or ``sample`` (bundled data from another machine, only ever asked for by name). Of those only the ones count
that ran on the same hardware, versions and settings as the newest: a ratio between two versions of PEFT says nothing
about either. Draws nothing, keeps nothing: everything comes from the database, so that a reloaded page finds its sweep
again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sqlalchemy.orm import Session

from app import formatting, people, state
from app.comparison import environments
from app.widgets import launching, progress
from db import runs
from db.runs import MetricValue, RunRow
from engine import cases
from engine.cases import Case, Observation, Size, Sweep, Verdict
from engine.result import Device
from engine.spec import Measured, SpecError, spec_hash

Origin = Literal["local", "sample"]
#: The sweeps that the Overview and the list of cases speak of.
HERE: tuple[tuple[Case, Size], ...] = tuple((case, "here") for case in cases.cases())
ACTIVE = ("queued", "running")
#: A run in one of these states has answered its spec's question; running it again would only make another replica.
ANSWERED = ("succeeded", "out_of_memory")


@dataclass(frozen=True, slots=True)
class CaseRuns:
    """The runs of one case at one size, oldest first, their metrics, and the verdict on those that ended.

    ``outdated`` are runs of the same specs under other hardware, versions or settings than the newest run.
    """

    case: Case
    size: Size
    rows: Sequence[RunRow]
    outdated: Sequence[RunRow]
    values: Sequence[MetricValue]
    verdict: Verdict

    @property
    def sweep(self) -> Sweep:
        """What was asked for."""
        return self.case.sweep(self.size)

    @property
    def is_measured(self) -> bool:
        """Whether any run has a result."""
        return any(row.state in ANSWERED for row in self.rows)

    @property
    def is_active(self) -> bool:
        """Whether any run still waits or runs."""
        return any(row.state in ACTIVE for row in self.rows)

    @property
    def unsuccessful(self) -> list[RunRow]:
        """Of each spec without any answer, the last run that ended."""
        answered = {row.spec_hash for row in self.rows if row.state in ANSWERED}
        last = {row.spec_hash: row for row in self.rows if row.state not in ACTIVE and row.spec_hash not in answered}
        return list(last.values())


@cache
def hashes(case_id: str, size: Size) -> tuple[str, ...]:
    """The hashes of a sweep's specs, in run order."""
    return tuple(spec_hash(spec) for spec in cases.case(case_id).sweep(size).specs)


def listed(session: Session, wanted: Iterable[tuple[Case, Size]], origin: Origin = "local") -> list[RunRow]:
    """The runs of several cases, oldest first, without archived ones."""
    asked = {found for case, size in wanted for found in hashes(case.id, size)}
    return [row for row in reversed(runs.list_runs(session, spec_hashes=asked)) if row.origin == origin]


def batch(rows: Sequence[RunRow]) -> list[RunRow]:
    """The runs that were launched together with those that still wait or run; empty when none does."""
    active = [row for row in rows if row.state in ACTIVE]
    sweeps = {row.sweep_id for row in active if row.sweep_id is not None}
    alone = {row.id for row in active}
    return [row for row in rows if row.sweep_id in sweeps or row.id in alone]


def load(
    session: Session, wanted: Iterable[tuple[Case, Size]], devices: Sequence[Device], origin: Origin = "local"
) -> list[CaseRuns]:
    """The runs of several cases with what their rules say, read together."""
    pairs = list(wanted)
    rows = listed(session, pairs, origin)
    ended = [row.id for row in rows if row.state not in ACTIVE]
    values = runs.metric_values(session, run_ids=ended)
    checks = runs.checks(session, ended)
    identities = {
        run_id: environments.identity(recorded) for run_id, recorded in runs.environments(session, ended).items()
    }
    of_run: dict[int, list[MetricValue]] = defaultdict(list)
    for value in values:
        of_run[value.run_id].append(value)
    # Where sample runs were measured there was what they ran on.
    kinds = sorted({device.kind for device in devices}) if origin == "local" else ["cpu", "cuda"]
    found = []
    for case, size in pairs:
        own = set(hashes(case.id, size))
        of_sweep = [row for row in rows if row.spec_hash in own]
        answered = [row.id for row in of_sweep if row.state in ANSWERED and row.id in identities]
        other = {run_id for run_id in answered if identities[run_id] != identities[answered[-1]]}
        mine = [row for row in of_sweep if row.id not in other]
        outdated = [row for row in of_sweep if row.id in other]
        observed = [
            seen
            for row in mine
            if row.state not in ACTIVE and (seen := _observe(row, of_run[row.id], checks.get(row.id)))
        ]
        verdict = cases.verdict(case, observed, kinds, size)
        found.append(CaseRuns(case, size, mine, outdated, [value for row in mine for value in of_run[row.id]], verdict))
    return found


def _observe(row: RunRow, values: Sequence[MetricValue], checks: list[dict[str, object]] | None) -> Observation | None:
    """A stored run as its rule sees it; None for a run of another version, whose spec is not one of ours any more."""
    try:
        return cases.observe(
            row.id,
            row.spec,
            row.state,  # type: ignore[arg-type]
            checks,
            row.background_cpu_share,
            [(value.name, value.variant, value.value) for value in values if value.x is None],
        )
    except SpecError:
        return None


def missing(found: CaseRuns) -> list[Measured]:
    """What has to run until every spec has its replicas, in rounds over the sweep; all of it where none is missing."""
    answered: dict[str, int] = defaultdict(int)
    for row in found.rows:
        answered[row.spec_hash] += row.state in ANSWERED
    rounds = range(found.sweep.replicas)
    needed = [
        spec
        for number in rounds
        for spec, known in zip(found.sweep.specs, hashes(found.case.id, found.size), strict=True)
        if found.sweep.replicas - answered[known] > number
    ]
    return needed or [spec for _ in rounds for spec in found.sweep.specs]


def is_complete(found: CaseRuns) -> bool:
    """Whether every run of the sweep has answered."""
    return len(missing(found)) == len(found.sweep.specs) * found.sweep.replicas and found.is_measured


def minutes_text(found: CaseRuns) -> str:
    """How much there is to run and how long that takes: "24 runs, about 2 min on two cores"."""
    number = len(missing(found))
    text = formatting.plural(number, "run")
    if found.sweep.minutes is None:
        return f"{text}; how long they take is not known"
    share = number / (len(found.sweep.specs) * found.sweep.replicas)
    return f"{text}, about {formatting.duration(max(share * found.sweep.minutes, 0.5) * 60)} on two cores"


def refusal(sweep: Sweep, devices: Sequence[Device]) -> str | None:
    """Why a sweep cannot run on these devices, as one sentence; None where it can."""
    fitting = [device for device in devices if device.kind == sweep.device_kind]
    if not fitting:
        return "It needs a GPU, and this machine has none." if sweep.device_kind == "cuda" else "It needs a CPU."
    largest = max(device.memory_bytes for device in fitting)
    if largest < sweep.needs_bytes:
        where = "GPU" if sweep.device_kind == "cuda" else "machine"
        needs, has = formatting.size(sweep.needs_bytes), formatting.size(largest)
        return f"It needs {needs} of memory, and this {where} has {has}."
    return None


@people.told
def start(wanted: Sequence[tuple[Case, Size]]) -> None:
    """Queue what is missing of these cases, one sweep each, unless it is under way (from another tab, say)."""
    devices = state.devices()
    with state.database().reading() as session:
        found = load(session, wanted, devices)
    for one in found:
        if not one.is_active and refusal(one.sweep, devices) is None:
            launching.launch(missing(one), sweep_name(one.case, one.size))


def sweep_name(case: Case, size: Size) -> str:
    """The name under which a case's runs are found in the queue and in the table of runs."""
    where = {"here": "this machine", "published": "published size", "test": "test size"}[size]
    return f"Case {case.number}, {where}"


def time_left_s(batch: Sequence[RunRow], now_s: float) -> float | None:
    """What is left of runs launched together, at the pace so far; None until one of them has ended."""
    started = [row.started_at for row in batch if row.started_at is not None]
    done = sum(
        1.0 if row.state not in ACTIVE else progress.fraction_done(row, now_s) if row.state == "running" else 0.0
        for row in batch
    )
    if not started or not any(row.state not in ACTIVE for row in batch) or done == 0:
        return None
    return max(now_s - min(started), 0.0) / done * (len(batch) - done)
