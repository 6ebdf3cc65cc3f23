"""Measure every adapter type on a small model and write ``docs/adapter-types.md``.

Run ``python -m engine.generate_adapter_table`` (``make adapter-table``) alone on the machine; it takes a few minutes.
Each figure comes from the same jobs as any run's, each in a worker process of its own. The text is made by
``engine.adapter_table``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import catalog
from engine.adapter_table import page
from engine.catalog.choices import AdapterChoice
from engine.catalog.requirements import problems
from engine.executors import Work
from engine.executors.local import LocalExecutor
from engine.measure.environment import environment
from engine.result import Device
from engine.spec import parse_spec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "adapter-types.md"
MODEL = "minimind-26m"
REPEATS = 3
CONTEXT_TOKENS = 64
PROMPT_TOKENS, NEW_TOKENS = 32, 5
TARGETS = "qv"
COMMON: Mapping[str, Any] = {
    "model": MODEL,
    "dtype": "float32",
    "repeats": REPEATS,
    "warmup": 1,
    "timeout_s": 120,
}
# The kinds that give the figures, with what belongs to each alone and the metric and variant that are kept.
KINDS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str | None]]] = {
    "init": ({}, {"init_time_s": None}),
    "train": (
        {"train": {"context_length": CONTEXT_TOKENS}},
        {"trainable_parameters": None, "step_time_s": None},
    ),
    "merge": ({}, {"merge_time_s": None}),
    "inference": (
        {
            "inference": {
                "prompt_tokens": PROMPT_TOKENS,
                "new_tokens": NEW_TOKENS,
                "variants": ["base", "adapter"],
            }
        },
        {"overhead_ratio": "adapter"},
    ),
}


def main() -> None:
    """Measure and write the page."""
    executor = LocalExecutor()
    devices = executor.start()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="peft-lab-") as folder:
        figures = {choice.id: _figures(choice, executor, devices, Path(folder)) for choice in catalog.adapter_choices()}
    PAGE.write_text(page(figures, _setting(time.monotonic() - start)), encoding="utf-8")
    sys.stderr.write(f"{PAGE}: {len(figures)} adapters in {time.monotonic() - start:.0f} s\n")


def _figures(
    choice: AdapterChoice, executor: LocalExecutor, devices: list[Device], folder: Path
) -> dict[str, list[float]]:
    """Measured values by metric name; nothing for what this adapter cannot do.

    Raises:
        SystemExit: when a run that should work fails.
    """
    found: dict[str, list[float]] = {}
    for kind, (section, wanted) in KINDS.items():
        adapter: dict[str, Any] = {"type": choice.type, "options": dict(choice.options)}
        if catalog.adapter_type(choice.type).targets_modules:
            adapter["target_modules"] = TARGETS
        spec = parse_spec({**COMMON, **section, "kind": kind, "adapter": adapter})
        if problems(spec, devices, None):
            continue
        start = time.monotonic()
        document = _run(Work.of(spec, folder / f"{choice.id}-{kind}"), executor)
        sys.stderr.write(f"{choice.id} {kind}: {time.monotonic() - start:.1f} s\n")
        for metric in document["metrics"]:
            if metric["name"] in wanted and metric["variant"] == wanted[metric["name"]]:
                found.setdefault(metric["name"], []).append(metric["value"])
    return found


def _run(work: Work, executor: LocalExecutor) -> dict[str, Any]:
    # Another measurement on this machine comes first.
    while (lock := executor.lock(work.spec["device"])) is None:
        time.sleep(0.2)
    worker = executor.submit(work, lock)
    lock.close()
    while worker.is_alive():
        time.sleep(0.02)
    document = worker.collect()
    if document["state"] != "succeeded":
        raise SystemExit(f"{work.folder.name}: {document['error']['text']}")
    return document


def _setting(seconds: float) -> list[str]:
    """Lines on what was measured on what."""
    here = environment()
    packages = ", ".join(f"{name} {here['packages'][name]}" for name in ("torch", "transformers", "peft"))
    commit = f"{str(here['commit'])[:10]}{', with changes' if here['dirty'] else ''}"
    return [
        f"{catalog.model(MODEL).label} with synthetic weights in float32, rank 16 where there is one and else each "
        f"type's defaults, query and value projections adapted. Medians of n = {REPEATS} after one warm-up; each "
        f"figure from a process of its own. Train step: one sequence of {CONTEXT_TOKENS} tokens, AdamW. Decode: time "
        f"for each token with the adapter, divided by the base model's in the same process ({PROMPT_TOKENS} prompt "
        f"tokens, {NEW_TOKENS - 1} steps). A dash: cannot be had, see above.",
        "",
        f"Measured on {here['cpu']}, {here['cores']} cores, {here['os']}, Python {here['python']}, {packages}, "
        f"commit {commit}, in {seconds:.0f} s.",
    ]


if __name__ == "__main__":
    main()
