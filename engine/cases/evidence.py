"""From runs to the figures that rules speak of: which runs count, and ratios between runs with their spread.

Pure functions of observations. Knows no claim and decides nothing about one. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from engine.cases.records import Observation, Ratio, Sweep
from engine.spec import Measured, spec_hash

DISTURBED_SHARE = 0.1
"""The share of the CPU that others may have used during a run whose times count."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The runs of one sweep that count, by their spec's hash, each list in the order in which they ran.

    ``out_of_memory``: hashes of specs that ran out of memory and never succeeded. ``set_aside`` says how many runs do
    not count and why, as one sentence, or is empty.
    """

    sweep: Sweep
    runs: Mapping[str, tuple[Observation, ...]]
    out_of_memory: frozenset[str]
    set_aside: str

    def of(self, spec: Measured) -> tuple[Observation, ...]:
        """The runs of a spec that count."""
        return self.runs.get(spec_hash(spec), ())

    def ran_out(self, spec: Measured) -> bool:
        """Whether a spec ran out of memory every time that it ended."""
        return spec_hash(spec) in self.out_of_memory

    def count(self, specs: Iterable[Measured], each: int) -> int:
        """How many runs of these specs count, at most ``each`` of every one."""
        return sum(min(len(self.of(spec)), each) for spec in specs)


def gather(
    sweep: Sweep,
    observations: Iterable[Observation],
    *,
    timed: bool,
    expected: Mapping[str, Collection[str]] | None = None,
) -> Evidence:
    """The observations that belong to a sweep and count.

    Args:
        sweep: runs of other specs are passed over.
        observations: runs that ended.
        timed: whether the rule speaks of seconds; disturbed runs then do not count. Counted bytes are not disturbed.
        expected: names of checks that may fail, by strategy: where failing them is what the claim is about.
    """
    hashes = {spec_hash(spec) for spec in sweep.specs}
    runs: dict[str, list[Observation]] = {}
    ran_out: set[str] = set()
    left = {"disturbed": 0, "with failed checks": 0, "without a result": 0}
    for run in sorted(observations, key=lambda run: run.run_id):
        if run.spec_hash not in hashes:
            continue
        excused = (expected or {}).get(run.spec.strategy, ())
        if run.state == "out_of_memory":
            ran_out.add(run.spec_hash)
        elif run.state != "succeeded":
            left["without a result"] += 1
        elif any(name not in excused for name in run.failed_checks):
            left["with failed checks"] += 1
        elif timed and run.disturbed:
            left["disturbed"] += 1
        else:
            runs.setdefault(run.spec_hash, []).append(run)
    return Evidence(
        sweep, {key: tuple(found) for key, found in runs.items()}, frozenset(ran_out - runs.keys()), _set_aside(left)
    )


def value(run: Observation, name: str, variant: str | None = None) -> float | None:
    """The median of a metric over a run's repeats; None where the run does not have it."""
    found = run.metrics.get((name, variant))
    return statistics.median(found) if found else None


def between(
    label: str,
    ours: Sequence[Observation],
    theirs: Sequence[Observation],
    name: str,
    *,
    published: float | None = None,
    x: float | None = None,
    note: str = "",
) -> Ratio:
    """How many times as much of a metric ``ours`` took as ``theirs``, run by run.

    Each run is compared with that of the same round (or, where runs are missing, with the nearest one): both then met
    the machine in the same state. ``low`` and ``high`` are the smallest and largest of these ratios.
    """
    ratios = ratios_between(ours, theirs, name)
    if not ratios:
        return Ratio(label, None, None, None, published, x, note)
    return Ratio(label, statistics.median(ratios), min(ratios), max(ratios), published, x, note)


def ratios_between(ours: Sequence[Observation], theirs: Sequence[Observation], name: str) -> list[float]:
    """The ratios that :func:`between` summarises, in the order of our runs."""
    mine, others = ([(run.run_id, found) for run in side if (found := value(run, name))] for side in (ours, theirs))
    if len(mine) == len(others):
        return [one / other for (_, one), (_, other) in zip(mine, others, strict=True)]
    # A round has lost a run, so that the counting no longer says which belong together.
    nearest = (min(others, key=lambda other: abs(other[0] - run_id))[1] for run_id, _ in mine) if others else ()
    return [one / other for (_, one), other in zip(mine, nearest, strict=False)]


def within(
    label: str,
    runs: Sequence[Observation],
    name: str,
    variant: str,
    *,
    published: float | None = None,
    x: float | None = None,
    note: str = "",
) -> Ratio:
    """A ratio that each interleaved repeat of a run gives by itself: its median and quartiles over all repeats."""
    values = [number for run in runs for number in run.metrics.get((name, variant), ())]
    if not values:
        return Ratio(label, None, None, None, published, x, note)
    low, middle, high = quartiles(values)
    return Ratio(label, middle, low, high, published, x, note)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(ratio: Ratio, digits: int = 3) -> str:
    """A ratio in words: the median, and how far it spread where it did."""
    if ratio.measured is None or ratio.low is None or ratio.high is None:
        return "not measured"
    low, middle, high = (f"{number:.{digits}g}" for number in (ratio.low, ratio.measured, ratio.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def percent(share: float) -> str:
    """A share as per cent, without decimals."""
    return f"{share * 100:.0f} %"


def _set_aside(left: Mapping[str, int]) -> str:
    words = [f"{count} {why}" for why, count in left.items() if count]
    return f"Runs not counted: {', '.join(words)}." if words else ""
