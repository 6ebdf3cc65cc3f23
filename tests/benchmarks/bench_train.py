"""Print what training steps cost: against a bare loop, with each strategy and memory saver, and by adapted modules.

Run by `make bench-train`, or one part of it: `python -m tests.benchmarks.bench_train clock minimind tinyllama claim5`.
All sides of a table are measured in one process and interleaved (A B C A B C); memory is taken in passes of its own.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.measure.environment import WORKER_ENVIRONMENT
from tests.benchmarks import table

if TYPE_CHECKING:
    from engine.jobs.train_steps import Side, Trainer

# Writes the figures there are so far: what is cut short keeps what it had.
Keep = Callable[[dict[str, Any]], object]
PARTS = ("clock", "minimind", "tinyllama", "claim5")
SAVERS: dict[str, dict[str, Any]] = {
    "stock": {},
    "fused": {"strategy": "fused"},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "loss_chunks 8": {"loss_chunks": 8},
    "sequence_tiles 8": {"sequence_tiles": 8},
    "all four": {"strategy": "fused", "gradient_checkpointing": True, "loss_chunks": 8, "sequence_tiles": 8},
}


# A step of a model of this size takes some ten seconds on two cores.
_FEWER = {name: SAVERS[name] for name in ("stock", "fused", "gradient_checkpointing", "all four")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved repeats of each side")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        # What workers start with has to be there before the first import of torch.
        command = [sys.executable, "-m", "tests.benchmarks.bench_train", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | dict(WORKER_ENVIRONMENT))
    warnings.simplefilter("ignore")
    from engine.measure.disturbance import BackgroundCpu
    from engine.measure.environment import environment

    machine = environment()
    print(table.machine_line(machine))
    parts: dict[str, Callable[[int | None, Keep], dict[str, Any]]] = {
        "clock": lambda rounds, _: _clock(rounds),
        "minimind": lambda rounds, keep: _savings("minimind-26m", 8, rounds or 5, SAVERS, keep),
        "tinyllama": lambda rounds, keep: _savings("tinyllama-1.1b", 1, rounds or 2, _FEWER, keep),
        "claim5": lambda rounds, _: _claim5(rounds),
    }
    for part in arguments.parts:
        with BackgroundCpu() as background:
            figures = parts[part](arguments.rounds, functools.partial(table.save, f"train-{part}", machine))
        share = background.share
        print(f"  CPU used by others meanwhile: {'unknown' if share is None else f'{share:.1%}'}")
        print(f"  written to {table.save(f'train-{part}', machine, {**figures, 'background_cpu_share': share})}")
        gc.collect()


def _trainer(model: str, batch_size: int, **fields: Any) -> Trainer:
    from engine.jobs.train_steps import prepare
    from engine.spec import parse_spec

    section = {"context_length": 512, "batch_size": batch_size}
    trainer = prepare(parse_spec({"kind": "train", "model": model, "train": section, **fields}), lambda _: None)
    gc.freeze()
    return trainer


def _interleaved(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """One unrecorded round as warm-up, then each side once per round."""
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            print(f"\r  round {number}/{rounds}: {name:<40}", end="", file=sys.stderr, flush=True)
            taken = side()
            if number:
                found[name].append(taken)
    print(file=sys.stderr)
    return found


# --- the clock --------------------------------------------------------------------------------------------------------


def _clock(rounds: int | None) -> dict[str, Any]:
    """The engine's step beside a loop that knows nothing of the engine, on the same model and optimizer."""
    from engine.jobs.train_steps import Side

    print("\nstep time against a bare loop: minimind-26m, LoRA r = 16 all-linear, bfloat16, batch 2 x 512, AdamW")
    trainer = _trainer("minimind-26m", 2)
    side = Side(None)
    model, batch, optimizer = trainer.model, trainer.batch, trainer.optimizer(side)

    def bare() -> float:
        start = time.perf_counter()
        loss = model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    seconds = _interleaved({"bare loop": bare, "engine": lambda: trainer.step(side).step_s}, rounds or 15)
    print(table.HEADER)
    for name, values in seconds.items():
        print(table.row(name, values))
    off = abs(statistics.median(seconds["engine"]) / statistics.median(seconds["bare loop"]) - 1)
    print(
        f"  {'pass' if off <= 0.03 else 'MISS'}  engine and bare loop differ by {off:.1%} (<= 3 %), n = {rounds or 15}"
    )
    return {"seconds": seconds}


# --- strategies and memory savers -------------------------------------------------------------------------------------


def _savings(model: str, batch_size: int, rounds: int, savers: dict[str, dict[str, Any]], keep: Keep) -> dict[str, Any]:
    from engine.jobs.train_memory import measure_memory
    from engine.jobs.train_steps import Side

    print(
        f"\n{model}, LoRA r = 16 all-linear, bfloat16, batch {batch_size} x 512, AdamW, sdpa; n = {rounds}, interleaved"
    )
    trainer = _trainer(model, batch_size)
    sides: dict[str, Side] = {
        name: Side(None if name != "stock" else "stock", **asked) for name, asked in savers.items()
    }
    steps = _interleaved({name: _stepping(trainer, side) for name, side in sides.items()}, rounds)
    figures: dict[str, Any] = {name: {"step_s": [times.step_s for times in taken]} for name, taken in steps.items()}
    document = {"model": model, "batch_size": batch_size, "sides": figures}
    keep(document)
    for name, side in sides.items():
        print(f"\r  memory: {name:<40}", end="", file=sys.stderr, flush=True)
        figures[name]["bytes"] = {metric.name: metric.value for metric in measure_memory(trainer, side).metrics}
        keep(document)
    print(file=sys.stderr)
    stock = figures["stock"]
    stock_s, stock_bytes = statistics.median(stock["step_s"]), stock["bytes"]["peak_bytes"]
    fixed = stock["bytes"]["parameters_bytes"] + stock["bytes"]["optimizer_state_bytes"]
    print(
        f"  {'':24} {'step s':>8} {'q1-q3':>15} {'x stock':>8} {'peak MiB':>9} {'x stock':>8} {'activations MiB':>16}"
    )
    for name, found in figures.items():
        q1, median, q3 = statistics.quantiles(found["step_s"], n=4, method="inclusive")
        peak, activations = found["bytes"]["peak_bytes"], found["bytes"]["activations_bytes"]
        print(
            f"  {name:24} {median:8.3f} {f'{q1:.3f}-{q3:.3f}':>15} {median / stock_s:8.2f} {peak / 2**20:9.0f} "
            f"{peak / stock_bytes:8.2f} {activations / 2**20:16.0f}"
        )
    print(f"  parameters and optimizer state, which none of these change: {fixed / 2**20:.0f} MiB")
    return document


def _stepping(trainer: Trainer, side: Side) -> Callable[[], Any]:
    return lambda: trainer.step(side)


# --- claim 5 ----------------------------------------------------------------------------------------------------------


def _claim5(rounds: int | None) -> dict[str, Any]:
    """Full fine-tuning against LoRA on ever fewer modules, each a model of its own, in turns."""
    from engine.jobs.train_steps import Side

    rounds = rounds or 7
    print(f"\nclaim 5: minimind-26m, bfloat16, batch 8 x 512, AdamW; n = {rounds}, interleaved")
    adapters: dict[str, Any] = {
        "full fine-tuning": None,
        "LoRA r = 2, all-linear": {"rank": 2},
        "LoRA r = 8, all-linear": {"rank": 8},
        "LoRA r = 8, qk": {"rank": 8, "target_modules": "qk"},
        "LoRA r = 8, last block": {"rank": 8, "target_modules": r"model\.layers\.7\..*"},
        "LoRA r = 8, lm_head": {"rank": 8, "target_modules": "lm_head"},
    }
    trainers = {name: _trainer("minimind-26m", 8, adapter=adapter) for name, adapter in adapters.items()}
    steps = _interleaved({name: _stepping(trainer, Side(None)) for name, trainer in trainers.items()}, rounds)
    full = statistics.median(times.step_s for times in steps["full fine-tuning"])
    print(
        f"  {'seconds':26} {'step':>8} {'forward':>8} {'backward':>9} {'optimizer':>10} {'tokens/s':>9} {'x full':>7}"
    )
    for name, taken in steps.items():
        step, forward, backward, optimizer = (
            statistics.median(getattr(times, part) for times in taken)
            for part in ("step_s", "forward_s", "backward_s", "optimizer_s")
        )
        print(
            f"  {name:26} {step:8.3f} {forward:8.3f} {backward:9.3f} {optimizer:10.4f} {8 * 512 / step:9.0f} "
            f"{step / full:7.2f}"
        )
    return {"steps": {name: [list(_parts(times)) for times in taken] for name, taken in steps.items()}}


def _parts(times: Any) -> tuple[float, float, float, float]:
    return times.step_s, times.forward_s, times.backward_s, times.optimizer_s


if __name__ == "__main__":
    main()
