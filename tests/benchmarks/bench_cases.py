"""Run the five cases at *this machine* size, as their buttons do, and print what each took and its verdict.

A supervisor of its own works on a fresh home. Run it with `make bench-cases` on an otherwise idle machine, or some
cases alone: `python -m tests.benchmarks.bench_cases merge inference`. `--documents FOLDER` keeps the result documents.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from app.widgets import case_runs
from app.widgets.case_runs import CaseRuns
from app.widgets.launching import new_run
from db import queue, runs, transfer
from engine.cases import DISTURBED_SHARE, Case, cases
from engine.measure.environment import devices, environment
from tests.benchmarks.lab import Lab, lab
from tests.benchmarks.table import machine_line, save

TARGET_S = 20 * 60


def load(opened: Lab, case: Case) -> CaseRuns:
    """The runs of a case's sweep so far, and their verdict."""
    with opened.database.reading() as session:
        (found,) = case_runs.load(session, [(case, "here")], devices())
    return found


def measure(opened: Lab, case: Case) -> tuple[float, CaseRuns]:
    """Seconds from the first claim to the last result of a case's sweep, and what came of it."""
    entries = [new_run(spec) for spec in case_runs.missing(load(opened, case))]
    with opened.database.writing() as session:
        run_ids = queue.enqueue(session, entries, case_runs.sweep_name(case, "here"))
    left = len(run_ids)
    while left:
        # Only the short list is read meanwhile: whoever waits must not disturb what is measured.
        time.sleep(1)
        with opened.database.reading() as session:
            unfinished = len(runs.queued_and_running(session))
        if unfinished != left:
            left = unfinished
            print(f"\r{case.id}: {left} of {len(run_ids)} runs left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found = load(opened, case)
    return max(row.finished_at or 0 for row in found.rows) - min(row.claimed_at or 0 for row in found.rows), found


def print_case(seconds: float, found: CaseRuns) -> None:
    """A case's seconds, the runs that do not count as they are, and its verdict with every ratio."""
    verdict = found.verdict
    print(f"\n{found.case.number}. {found.case.title}: {seconds / 60:.1f} min for {len(found.rows)} runs")
    for row in found.rows:
        share, failed = row.background_cpu_share or 0.0, row.failed_checks or 0
        if row.state != "succeeded" or failed or share > DISTURBED_SHARE:
            print(f"   run {row.id} {row.state}, {failed} failed checks, others used {share:.0%} of the CPU")
    print(f"   {verdict.word} ({verdict.have} of {verdict.need} runs). {verdict.sentence}")
    for ratio in verdict.ratios:
        measured = "-" if ratio.measured is None else f"{ratio.measured:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        published = "" if ratio.published is None else f"published {ratio.published:.3f}"
        print(f"     {ratio.label:40} {measured:28} {published:18} {ratio.note}")


def keep(folder: Path, opened: Lab, found: CaseRuns) -> None:
    """The result documents of a case's runs, as `python -m engine import` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    with opened.database.reading() as session:
        documents = [transfer.export_document(session, row.id) for row in found.rows]
    with gzip.open(folder / f"{found.case.id}.json.gz", "wt", encoding="utf-8") as file:
        json.dump(documents, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"any of {', '.join(case.id for case in cases())} (default: all)")
    parser.add_argument("--documents", type=Path, help="folder for the result documents")
    options = parser.parse_args()
    chosen = [case for case in cases() if case.id in options.cases or not options.cases]
    machine = environment()
    print(machine_line(machine))
    figures: dict[str, Any] = {}
    with lab() as opened:
        for case in chosen:
            seconds, found = measure(opened, case)
            print_case(seconds, found)
            shares = [row.background_cpu_share for row in found.rows if row.background_cpu_share is not None]
            figures[case.id] = {
                "seconds": seconds,
                "runs": len(found.rows),
                "background_cpu_share": statistics.median(shares) if shares else None,
                "word": found.verdict.word,
                "sentence": found.verdict.sentence,
                "ratios": [[ratio.label, ratio.measured, ratio.low, ratio.high] for ratio in found.verdict.ratios],
            }
            print(f"   saved {save(f'case-{case.id}', machine, figures[case.id])}")
            if options.documents:
                keep(options.documents, opened, found)
    total_s = sum(figure["seconds"] for figure in figures.values())
    verdict_word = "reached" if total_s <= TARGET_S else "MISSED"
    print(f"\nall of these: {total_s / 60:.1f} min" + (f" (<= 20: {verdict_word})" if len(chosen) == 5 else ""))


if __name__ == "__main__":
    main()
