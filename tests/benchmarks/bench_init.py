"""Print how long attaching LoRA and DoRA takes by strategy, against the figures that the project promises.

Run by `make bench-init`, or `python -m tests.benchmarks.bench_init --models tinyllama-1.1b`. All sides of one model are
measured in one process and interleaved (A B C A B C). Measures the attaching only: not the start of workers, and not
what the dashboard costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.measure.environment import WORKER_ENVIRONMENT

RESULTS = Path(__file__).parent / "results"
RANK = 16


@dataclasses.dataclass(frozen=True)
class Timed:
    """One side's raw seconds."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def line(self) -> str:
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return f"  {self.name:<38} {self.median:9.4f} s   IQR {low:.4f}-{high:.4f}   n={len(self.seconds)}"


@dataclasses.dataclass(frozen=True)
class Target:
    """A promised figure and what was measured."""

    name: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"  {'pass' if self.passed else 'MISS'}  {self.name:<58} {self.measured:8.3f}  ({sign} {self.bound:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tinyllama-1.1b,mistral-7b", help="catalog ids, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats of each side (default 5)")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        # What workers start with has to be there before the first import of torch.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.benchmarks.bench_init", *sys.argv[1:]],
            os.environ | dict(WORKER_ENVIRONMENT),
        )
    warnings.simplefilter("ignore")
    from engine.measure.environment import environment

    facts = environment()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, {facts['os']}")
    print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()), f"Python {facts['python']}")
    print(f"commit {facts['commit']}{' with changes' if facts['dirty'] else ''}; bfloat16, all-linear, r = {RANK}")
    documents = [_bench(model, arguments.rounds) for model in arguments.models.split(",")]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"init-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": facts, "models": documents}, indent=1))
    print(f"\nwritten to {path}")


def _bench(model_id: str, rounds: int) -> dict[str, Any]:
    from engine.measure.disturbance import BackgroundCpu

    print(f"\n{model_id}")
    bench = _Model(model_id)
    with BackgroundCpu() as background:
        sides = _interleaved(
            {
                "LoRA, stock": lambda: bench.attach({}, "stock"),
                "DoRA, stock": lambda: bench.attach({"use_dora": True}, "stock"),
                "DoRA, zero_b_norm": lambda: bench.attach({"use_dora": True}, "zero_b_norm"),
                "DoRA, batched_norm": lambda: bench.attach({"use_dora": True}, "batched_norm"),
                "DoRA with B not 0, stock": lambda: bench.attach(
                    {"use_dora": True, "init_lora_weights": False}, "stock"
                ),
                "DoRA with B not 0, factored_norm": lambda: bench.attach(
                    {"use_dora": True, "init_lora_weights": False}, "factored_norm"
                ),
                "bare read of the adapted weights": bench.read,
                "row norms of the adapted weights": bench.norms,
            },
            rounds,
        )
    times = {side.name: side.median for side in sides}
    for side in sides:
        print(side.line())
    read, norms = times["bare read of the adapted weights"], times["row norms of the adapted weights"]
    best = {side.name: min(side.seconds) for side in sides}
    best_read, best_norms = best["bare read of the adapted weights"], best["row norms of the adapted weights"]
    gigabytes = bench.adapted_bytes / 1e9
    print(f"  {gigabytes:.2f} GB of weights, filled in {bench.fill_s:.1f} s, read at {gigabytes / read:.1f} GB/s")
    # The bus of a shared machine has fast moments, in which the norm is bound by arithmetic instead.
    print(f"  at best read at {gigabytes / best_read:.1f}, normed at {gigabytes / best_norms:.1f} GB/s")
    share = background.share
    print(f"  CPU used by others meanwhile: {'unknown' if share is None else f'{share:.1%}'}")
    large = model_id == "mistral-7b"
    lora, zero_b = times["LoRA, stock"], times["DoRA, zero_b_norm"]
    print(f"  beside PEFT's own work the norms add {(zero_b - lora) / read:.2f} times a bare read to LoRA's init")
    targets = [
        Target("zero_b_norm / LoRA", zero_b / lora, 2.5 if large else 1.5),
        Target("stock DoRA / zero_b_norm", times["DoRA, stock"] / zero_b, 10 if large else 1, at_least=True),
        Target("zero_b_norm's pass over the weights / bare read", norms / read, 1.3),
        Target(
            "stock / factored_norm, B not 0",
            times["DoRA with B not 0, stock"] / times["DoRA with B not 0, factored_norm"],
            1,
            at_least=True,
        ),
        *bench.factored_targets(),
    ]
    for target in targets:
        print(target.line())
    document = {
        "model": model_id,
        "sides": [dataclasses.asdict(side) for side in sides],
        "targets": [{**dataclasses.asdict(target), "passed": target.passed} for target in targets],
        "adapted_bytes": bench.adapted_bytes,
        "fill_s": bench.fill_s,
        "background_cpu_share": share,
    }
    return document


def _interleaved(sides: dict[str, Callable[[], float]], rounds: int) -> list[Timed]:
    """One unrecorded round as warm-up, then each side once per round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            taken = side()
            if number:
                seconds[name].append(taken)
            print(f"\r  round {number}/{rounds}: {name:<40}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [Timed(name, tuple(values)) for name, values in seconds.items()]


class _Model:
    """One model in memory, adapted and put back again and again."""

    def __init__(self, model_id: str) -> None:
        import torch

        from engine import adapters
        from engine.models import build_model
        from engine.spec import InitSpec

        start = time.perf_counter()
        self.model = build_model(InitSpec(model=model_id))
        self.fill_s = time.perf_counter() - start
        gc.freeze()
        self._snapshot = adapters.snapshot(self.model)
        self._groups = adapters.list_groups(self.model)
        names: list[str] = []
        self._device = torch.device("cpu")
        self.attach({}, "stock", names.append)
        modules = dict(self.model.named_modules())
        self.weights: list[torch.Tensor] = [modules[name].weight.detach() for name in names]
        self.adapted_bytes = sum(weight.nbytes for weight in self.weights)

    def attach(self, options: dict[str, Any], strategy: str, on_module: Callable[[str], None] | None = None) -> float:
        """Seconds of one attach; the model is put back afterwards."""
        import torch

        from engine import adapters
        from engine.measure.timing import Timer
        from engine.spec import FreshAdapter
        from engine.strategies import init as strategies

        adapter = FreshAdapter(rank=RANK, options=options)
        config = adapters.peft_config(adapter, self._groups)
        torch.manual_seed(0)
        with Timer(self._device) as timer, strategies.apply(strategy):
            adapters.attach(self.model, adapter, config=config, on_module=on_module)
        self._snapshot.restore()
        return timer.seconds

    def read(self) -> float:
        """Seconds to read the adapted weights once: the fastest reduction that PyTorch has (a sum of 64-bit words)."""
        import torch

        from engine.measure.timing import Timer

        with Timer(self._device) as timer:
            for weight in self.weights:
                weight.view(torch.int64).sum()
        return timer.seconds

    def norms(self) -> float:
        """Seconds of a pass of norms over the weights by itself."""
        from engine.measure.timing import Timer
        from engine.strategies.row_norms import row_norms

        with Timer(self._device) as timer:
            for weight in self.weights:
                row_norms(weight)
        return timer.seconds

    def factored_targets(self) -> Sequence[Target]:
        """Memory of the norm for the largest adapted weight, and error for one weight of each shape; B is noise."""
        import torch

        shapes: dict[torch.Size, torch.Tensor] = {weight.shape: weight for weight in self.weights}
        largest = max(shapes.values(), key=lambda weight: weight.nbytes)
        shares = {name: _norm_peak_bytes(largest, name) / largest.nbytes for name in ("stock", "factored_norm")}
        errors = {name: max(_norm_error(weight, name) for weight in shapes.values()) for name in shares}
        print(f"  stock's norm: {shares['stock']:.2f} of the largest weight extra, error {errors['stock']:.3f} ulp")
        return (
            Target("factored_norm's extra memory / largest weight", shares["factored_norm"], 0.05),
            Target("factored_norm's error in bfloat16 ulp", errors["factored_norm"], 1.0),
        )


def _dora_norm(weight: Any) -> tuple[Any, Any, Any, Any]:
    """A DoRA layer for one weight with seeded A and B; returns what is needed to compute and to judge its magnitude."""
    import torch
    from peft.tuners.lora.dora import DoraLinearLayer

    generator = torch.Generator().manual_seed(0)
    outputs, inputs = weight.shape
    a = (torch.randn(RANK, inputs, generator=generator) / inputs**0.5).to(weight.dtype)
    b = (torch.randn(outputs, RANK, generator=generator) / RANK**0.5).to(weight.dtype)
    base = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    base.weight = torch.nn.Parameter(weight, requires_grad=False)
    return DoraLinearLayer(False), base, a, b


def _norm_peak_bytes(weight: Any, strategy: str) -> int:
    import torch

    from engine.measure.tensors import TensorTracker
    from engine.strategies import init as strategies

    layer, base, a, b = _dora_norm(weight)
    tracker = TensorTracker()
    tracker.watch([weight, a, b], "given")
    with torch.no_grad(), strategies.apply(strategy), tracker:
        layer.update_layer(base_layer=base, lora_A=a, lora_B=b, scaling=2.0)
    return tracker.peak_extra_bytes


def _norm_error(weight: Any, strategy: str) -> float:
    import torch

    from engine.strategies import init as strategies
    from engine.strategies.proof import ulp_error
    from engine.strategies.row_norms import reference_row_norms

    layer, base, a, b = _dora_norm(weight)
    with torch.no_grad(), strategies.apply(strategy):
        layer.update_layer(base_layer=base, lora_A=a, lora_B=b, scaling=2.0)
    return ulp_error(layer.weight.detach(), reference_row_norms(weight, a, b, 2.0), weight.dtype)


if __name__ == "__main__":
    main()
