"""Print how long merging LoRA and DoRA takes by strategy and how much memory it needs, against the promised figures.

Run by `make bench-merge`, or `python -m tests.benchmarks.bench_merge --models tinyllama-1.1b`. All sides of one model
and adapter are measured in one process and interleaved (A B C A B C); the weights are put back in between. Memory is
taken in passes of their own, as tensors and as the process's resident memory. Does not measure saving or unmerging.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import time
import warnings
from typing import Any

from engine.measure.environment import WORKER_ENVIRONMENT
from tests.benchmarks.bench_init import RANK, RESULTS, Target, Timed

SIDES = {"lora": ("stock", "safe", "addmm", "row_blocks"), "dora": ("stock", "row_blocks")}
# Doubles what the model takes, so it is only shown where that fits beside it.
_OUT_OF_PLACE_PARAMETERS = 2e9


@dataclasses.dataclass(frozen=True)
class Side:
    """What one strategy took: raw seconds, memory above that before, and how far its weights are from float64's."""

    strategy: str
    timed: Timed
    peak_extra_bytes: int
    retained_extra_bytes: int
    peak_extra_rss_bytes: int | None
    largest_weight_bytes: int
    relative_weight_error: float

    @property
    def peak_weights(self) -> float:
        return self.peak_extra_bytes / self.largest_weight_bytes

    def memory_line(self) -> str:
        resident = "unknown" if self.peak_extra_rss_bytes is None else f"{self.peak_extra_rss_bytes / 2**20:.1f} MiB"
        kept = self.retained_extra_bytes / 2**20
        return (
            f"  {self.strategy:<14} peak {self.peak_weights:8.4f} W ({self.peak_extra_bytes / 2**20:.2f} MiB), "
            f"resident {resident}, kept {kept:.1f} MiB, error {self.relative_weight_error:.6f} of the adapter's effect"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tinyllama-1.1b,mistral-7b", help="catalog ids, separated by commas")
    parser.add_argument("--adapters", default="lora,dora", help="lora, dora or both")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats of each side (default 5)")
    parser.add_argument("--without", default="", help="strategies to leave out, separated by commas")
    parser.add_argument("--no-warm-up", action="store_true", help="leave out the unrecorded round")
    parser.add_argument("--only-tensors", action="store_true", help="leave out the process's resident memory")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        # What workers start with has to be there before the first import of torch.
        command = [sys.executable, "-m", "tests.benchmarks.bench_merge", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | dict(WORKER_ENVIRONMENT))
    warnings.simplefilter("ignore")
    from engine.measure.environment import environment

    facts = environment()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, {facts['os']}")
    print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()), f"Python {facts['python']}")
    print(f"commit {facts['commit']}{' with changes' if facts['dirty'] else ''}; bfloat16, all-linear, r = {RANK}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"merge-{time.strftime('%Y%m%d-%H%M%S')}.json"
    documents: list[dict[str, Any]] = []
    for model in arguments.models.split(","):
        for adapter in _adapters(arguments):
            documents.append(_bench(model, adapter, arguments))
            # After each, so that a run which is ended early keeps what it has.
            path.write_text(json.dumps({"environment": facts, "models": documents}, indent=1))
    print(f"\nwritten to {path}")


def _adapters(arguments: argparse.Namespace) -> list[str]:
    return [adapter for adapter in arguments.adapters.split(",") if adapter in SIDES]


def _bench(model: str, adapter: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from engine import catalog
    from engine.jobs.merge_bench import MergeBench
    from engine.jobs.merge_reference import sample
    from engine.measure.disturbance import BackgroundCpu
    from engine.spec import MergeSpec

    print(f"\n{model}, {adapter}")
    options = {"use_dora": True} if adapter == "dora" else {}
    spec = MergeSpec.model_validate({"model": model, "adapter": {"rank": RANK, "options": options}})
    bench = MergeBench(spec, lambda _: None)
    gc.freeze()
    sides_here = SIDES[adapter]
    if adapter == "lora" and catalog.model(model).parameters < _OUT_OF_PLACE_PARAMETERS:
        sides_here += ("out_of_place",)
    strategies = [name for name in sides_here if name not in arguments.without.split(",")]
    with BackgroundCpu() as background:
        seconds = _interleaved(bench, strategies, arguments.rounds, not arguments.no_warm_up)
    with bench.put_back("references"):
        rows, _ = sample(bench)
    resident = not arguments.only_tensors
    sides = {name: _side(bench, name, seconds[name], rows, resident) for name in strategies}
    for side in sides.values():
        print(side.timed.line() if len(side.timed.seconds) > 1 else f"  {side.strategy:<38} {side.timed.median:9.4f} s")
    for side in sides.values():
        print(side.memory_line())
    share = background.share
    print(f"  W is {bench.largest_weight_bytes / 2**20:.1f} MiB; CPU used by others meanwhile: {share or 0:.1%}")
    targets = _targets(adapter, sides)
    for target in targets:
        print(target.line())
    gc.unfreeze()
    return {
        "model": model,
        "adapter": adapter,
        "sides": [dataclasses.asdict(side) for side in sides.values()],
        "targets": [{**dataclasses.asdict(target), "passed": target.passed} for target in targets],
        "background_cpu_share": share,
    }


def _targets(adapter: str, sides: dict[str, Side]) -> list[Target]:
    if not {"stock", "row_blocks", *(("addmm",) if adapter == "lora" else ())} <= sides.keys():
        return []  # left out by hand: what remains has nothing to be held against
    stock, blocks = sides["stock"], sides["row_blocks"]
    speed = Target("stock / row_blocks, seconds", stock.timed.median / blocks.timed.median, 5, at_least=True)
    error = Target(
        "row_blocks' error / stock's", round(blocks.relative_weight_error / stock.relative_weight_error, 4), 1
    )
    if adapter == "dora":
        return [
            Target("row_blocks' extra memory in W", blocks.peak_weights, 0.1),
            Target("stock's extra memory in W", stock.peak_weights, 4, at_least=True),
            error,
            dataclasses.replace(speed, bound=1),
        ]
    addmm = sides["addmm"]
    return [
        Target("row_blocks' extra memory in W", blocks.peak_weights, 0.05),
        speed,
        error,
        Target("addmm's extra memory in W", addmm.peak_weights, 0.01),
        Target("stock / addmm, seconds", stock.timed.median / addmm.timed.median, 10, at_least=True),
        Target("addmm's error / stock's", addmm.relative_weight_error / stock.relative_weight_error, 1.1),
    ]


def _interleaved(bench: Any, strategies: list[str], rounds: int, warm_up: bool) -> dict[str, list[float]]:
    from engine.measure.timing import Timer

    seconds: dict[str, list[float]] = {name: [] for name in strategies}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name in strategies:
            timer = Timer(bench.device)
            with bench.put_back(name):
                bench.merge_and_unload(name, timer)
            if number:
                seconds[name].append(timer.seconds)
            print(
                f"\r  round {number}/{rounds}: {name} {timer.seconds:.2f} s      ", end="", file=sys.stderr, flush=True
            )
    print(file=sys.stderr)
    return seconds


def _side(bench: Any, strategy: str, seconds: list[float], rows: Any, resident: bool) -> Side:
    from engine.jobs.merge import bytes_of
    from engine.jobs.merge_reference import weight_error
    from engine.measure.process_memory import PeakIncrease
    from engine.measure.tensors import TensorTracker

    before = bytes_of(bench.root, bench.adapter_ids)
    tracker = TensorTracker()
    tracker.watch((*bench.root.parameters(), *bench.root.buffers()), "before")
    with bench.put_back("tensor memory"):
        merged = bench.merge_and_unload(strategy, tracker)
        retained = bytes_of(merged) - before
        error = weight_error(rows).relative
        del merged
    increase = PeakIncrease()
    if resident:
        with bench.put_back("process memory"):
            bench.merge_and_unload(strategy, increase)
    return Side(
        strategy=strategy,
        timed=Timed(strategy, tuple(seconds)),
        peak_extra_bytes=tracker.peak_extra_bytes,
        retained_extra_bytes=retained,
        peak_extra_rss_bytes=increase.rss_bytes,
        largest_weight_bytes=bench.largest_weight_bytes,
        relative_weight_error=error,
    )


if __name__ == "__main__":
    main()
