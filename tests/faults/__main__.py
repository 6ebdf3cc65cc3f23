"""``python -m tests.faults``: break labs many times, some labs at once; prints the faults by moment, runs and losses.

Ends with status 1 when something was lost. What it has no time left for is not done, and missing in the table.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults import campaign, migrating
from tests.faults.campaign import Campaign, Report
from tests.faults.crowd import Crowd
from tests.faults.lab import Lab

#: A lab often waits, for a start or for nothing to happen: three keep two cores at work.
_LABS_AT_ONCE = 3
#: How many faults one lab lives through.
_BATCH = 25
#: Of the faults, those in migrations and those in the crowd; its runs, and those of them that are measured.
_MIGRATIONS, _CROWD, _CROWD_RUNS, _MEASURED = 100, 20, 5000, 40
_ROLES = (*campaign.ROLES, "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=330, help="how many to plan (330)")
    parser.add_argument("--minutes", type=float, default=14, help="start nothing new after this time (14)")
    parser.add_argument("--seed", type=int, default=None, help="plan what another run planned, whose seed it printed")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.faults} faults planned", flush=True)
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))

    def in_time(part: Callable[[], Report]) -> Report:
        if time.monotonic() - started_s >= options.minutes * 60:
            return Report()
        report = part()
        minutes = (time.monotonic() - started_s) / 60
        print(f"minute {minutes:4.1f}: {len(report.fired):2} faults, {len(report.losses)} losses", flush=True)
        return report

    with ThreadPoolExecutor(_LABS_AT_ONCE) as pool:
        reports = list(pool.map(in_time, _parts(folder, options.faults, seed)))
    print(*_table(reports), sep="\n")
    lost = [sentence for report in reports for sentence in report.losses]
    faults = sum(len(report.fired) for report in reports)
    runs, minutes = sum(report.runs for report in reports), (time.monotonic() - started_s) / 60
    print(f"\n{runs} runs, {faults} faults, {len(lost)} losses, in {minutes:.1f} minutes")
    if lost:
        print(*lost, f"what was lost lies in {folder}", sep="\n")
        sys.exit(1)
    shutil.rmtree(folder)


def _parts(folder: Path, faults: int, seed: int) -> Iterator[Callable[[], Report]]:
    """The parts of the whole, each with a lab of its own and done one by one by whoever is free."""

    def crowd() -> Report:
        return _in_lab(folder / "crowd", lambda lab: Crowd(lab, seed).run(_CROWD_RUNS, _MEASURED, _CROWD))

    def batch(number: int, planned: list[campaign.Fault]) -> Report:
        return _in_lab(folder / str(number), lambda lab: Campaign(lab, seed + number).run(planned))

    yield crowd
    for start in range(0, _MIGRATIONS, _BATCH):
        yield lambda start=start: migrating.run(folder / f"migrations-{start}", _BATCH, seed + start)
    planned = campaign.plan(max(faults - _MIGRATIONS - _CROWD, 0), seed)
    for start in range(0, len(planned), _BATCH):
        yield lambda start=start: batch(start, planned[start : start + _BATCH])


def _in_lab(home: Path, use: Callable[[Lab], Report]) -> Report:
    lab = Lab(home)
    try:
        report = use(lab)
    finally:
        lab.close()
    if not report.losses:
        shutil.rmtree(home)
    return report


def _table(reports: list[Report]) -> Iterator[str]:
    """One line for each moment: how many faults, and how many processes of each role these ended."""
    faults: Counter[str] = Counter()
    ended: Counter[tuple[str, str]] = Counter()
    for fault, fired in (one for report in reports for one in report.fired):
        faults[fault.moment.name] += 1
        ended.update((fault.moment.name, victim.role) for victim in fired.victims)
    names = [role or "db upgrade" for role in _ROLES]
    yield f"{'moment':26} {'faults':>7} " + " ".join(f"{name:>11}" for name in names)
    for moment in faults:
        yield f"{moment:26} {faults[moment]:7} " + " ".join(f"{ended[moment, role]:11}" for role in _ROLES)
    totals = [sum(count for (_, role), count in ended.items() if role == one) for one in _ROLES]
    yield f"{'all':26} {sum(faults.values()):7} " + " ".join(f"{total:11}" for total in totals)


if __name__ == "__main__":
    main()
