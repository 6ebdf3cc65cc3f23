"""How benchmarks print and keep their figures: median, quartiles, n, the target and whether it was reached."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEADER = f"{'seconds unless said otherwise':52} {'median':>10} {'q1':>10} {'q3':>10} {'max':>10} {'n':>5}  target"


def machine_line(machine: Mapping[str, Any]) -> str:
    """One line that names the machine, the versions and the commit."""
    packages = machine["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft"))
    commit = f"{str(machine['commit'])[:10]}{' (dirty)' if machine['dirty'] else ''}"
    return f"{machine['cpu']}, {machine['cores']} cores, {versions}, commit {commit}"


def row(name: str, values: Sequence[float], target: float | None = None) -> str:
    """One line of the table; the target is an upper bound for the median."""
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    verdict = ""
    if target is not None:
        verdict = f"<= {target:g}: {'reached' if median <= target else 'MISSED'}"
    return f"{name:52} {median:10.4f} {q1:10.4f} {q3:10.4f} {max(values):10.4f} {len(values):5d}  {verdict}"


def save(name: str, machine: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Keep the raw figures with the machine that gave them; returns the file's name."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"benchmark": name, "finished_at": round(time.time()), "environment": dict(machine), **figures}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path.name
