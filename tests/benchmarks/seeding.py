"""Fills a database with as many runs as a team stores in years: every kind and state, several machines and versions.

The values are drawn, not measured, and mean nothing; only their number, names and spread are like real ones. Writes
the tables in bulk, because storing 10,000 runs one by one takes minutes. The same call gives the same database.

    python -m tests.benchmarks.seeding FOLDER [--runs 10000] [--values 1000000]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from app.widgets.launching import new_run
from db.models import Base, MemorySample, Metric, Run, Sweep, Tag
from db.session import Database, open_database
from engine.spec import Spec, parse_spec

RUNS, VALUES = 10_000, 1_000_000
SAMPLED_SHARE = 0.1
SWEEP_SIZE = 40
REPLICAS = 4
DAY_S = 86_400
BATCH = 20_000
MODELS = ("minimind-26m", "smollm2-135m", "qwen2.5-0.5b", "tinyllama-1.1b", "llama-3.2-1b", "mistral-7b")
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"type": "lora"},
    {"type": "lora", "options": {"use_dora": True}},
    {"type": "lora", "options": {"use_rslora": True}},
    {"type": "lora", "options": {"init_lora_weights": "pissa"}},
    {"type": "vera"},
    {"type": "ia3"},
    {"type": "loha"},
)
TAGS = ("baseline", "paper", "nightly", "rank study", "gpu box", "before upgrade", "after upgrade", "to check")
STATES = ("succeeded",) * 92 + ("out_of_memory",) * 4 + ("failed",) * 2 + ("cancelled", "timed_out")
ERRORS = {
    "out_of_memory": "The worker used more memory than the machine has left.",
    "failed": "RuntimeError: expected scalar type BFloat16 but found Float",
    "cancelled": "Cancelled.",
    "timed_out": "The run took longer than its timeout_s of 3600 s.",
}
INFERENCE = {
    "prefill_time_s": "s",
    "decode_token_time_s": "s",
    "decode_tokens_per_s": "tokens/s",
    "request_time_s": "s",
    "overhead_ratio": "ratio",
}
TRAIN = {
    "step_time_s": "s",
    "forward_time_s": "s",
    "backward_time_s": "s",
    "optimizer_time_s": "s",
    "train_tokens_per_s": "tokens/s",
}
AT_PEAK = ("parameters", "buffers", "gradients", "optimizer_state", "activations", "temporary")


def seed(home: Path, runs: int = RUNS, values: int = VALUES) -> Path:
    """Make a database with so many runs and metric values in ``home``, or use the one that is there; returns its file.

    Raises:
        SystemExit: when so many runs do not have about so many values; a run has 100 on average.
    """
    path = home / f"scale-{runs}-{values}.sqlite3"
    if path.exists():
        return path
    home.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    for leftover in home.glob(f"{unfinished.name}*"):
        leftover.unlink()
    database = open_database(f"sqlite:///{unfinished}")
    _fill(database, runs, values)
    database.close()
    # Only a whole database gets the name under which the next call takes it for one.
    return unfinished.rename(path)


def _fill(database: Database, runs: int, values: int) -> None:
    draw = random.Random(0)
    plan = [_plan(draw, spec, number) for number, spec in enumerate(itertools.islice(_specs(draw), runs), start=1)]
    metrics = [list(_metrics(draw, run)) for run in plan]
    _even_out(draw, metrics, values)
    _insert(database, Sweep, ({"name": f"sweep {n}", "created_at": 0.0} for n in range(1, runs // SWEEP_SIZE + 2)))
    _insert(database, Run, plan)
    _insert(database, Tag, (row for run in plan for row in _tags(draw, run["id"])))
    _insert(database, Metric, itertools.chain.from_iterable(metrics))
    _insert(database, MemorySample, (row for run in plan for row in _samples(draw, run)))


def _insert(database: Database, table: type[Base], rows: Iterable[dict[str, Any]]) -> None:
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, BATCH)):
        with database.writing() as session:
            session.execute(insert(table), batch)


def _specs(draw: random.Random) -> Iterator[Spec]:
    """Specs of all kinds as people vary them, each several times in a row."""
    while True:
        spec = _spec(
            draw.choice(("init", "merge", "train", "inference")),
            draw.choice(MODELS),
            draw.randrange(len(ADAPTERS)),
            draw.choice((4, 8, 16, 32, 64)),
            draw.choice(("all-linear", "attention", "qv")),
            draw.choice(("bfloat16", "float32")),
            draw.choice((512, 1024, 2048, 4096)),
            draw.choice((1, 4, 16)),
        )
        yield from itertools.repeat(spec, draw.randint(1, REPLICAS))


@functools.cache
def _spec(kind: str, model: str, adapter: int, rank: int, targets: str, dtype: str, length: int, batch: int) -> Spec:
    # IA³ is the one of these without a rank.
    ranked = {} if ADAPTERS[adapter]["type"] == "ia3" else {"rank": rank}
    chosen = ADAPTERS[adapter] | {"target_modules": targets} | ranked
    sections: dict[str, dict[str, Any]] = {
        "train": {"train": {"context_length": length, "batch_size": batch}},
        "inference": {"inference": {"prompt_tokens": length, "batch_size": batch}},
    }
    return parse_spec({"kind": kind, "model": model, "dtype": dtype, "adapter": chosen, **sections.get(kind, {})})


def _plan(draw: random.Random, spec: Spec, number: int) -> dict[str, Any]:
    """The row of one run, all columns given, so that all rows go into one statement."""
    state = draw.choice(STATES)
    created_at = 1.77e9 + number * DAY_S / 60
    seconds = draw.uniform(2, 300)
    environment = draw.choice(ENVIRONMENTS)
    shown = new_run(spec)
    return {
        "id": number,
        "uid": f"{number:032x}",
        "kind": shown.kind,
        "state": state,
        "origin": "import" if environment is not ENVIRONMENTS[0] else "local",
        "spec": dict(shown.spec),
        "spec_hash": shown.spec_hash,
        "model": shown.model,
        "adapter": shown.adapter,
        "adapter_type": shown.adapter_type,
        "strategy": shown.strategy,
        "dtype": shown.dtype,
        "device": shown.device,
        "sweep_id": number // SWEEP_SIZE + 1,
        "created_at": created_at,
        "started_at": created_at + 1,
        "finished_at": created_at + 1 + seconds,
        "archived_at": created_at + DAY_S if draw.random() < 0.05 else None,
        "environment": environment,
        "checks": [{"name": "equals_stock", "passed": draw.random() > 0.01, "detail": "0.97 of stock's own error"}],
        "failed_checks": 0,
        "error_kind": None if state == "succeeded" else state,
        "error_text": ERRORS.get(state),
        "background_cpu_share": draw.expovariate(50),
        "name": f"run for the {draw.choice(TAGS)}" if draw.random() < 0.1 else None,
        "note": "Measured again after a reboot." if draw.random() < 0.05 else None,
    }


def _tags(draw: random.Random, run_id: int) -> Iterator[dict[str, Any]]:
    if draw.random() < 0.25:
        for name in draw.sample(TAGS, draw.randint(1, 2)):
            yield {"run_id": run_id, "name": name}


def _metrics(draw: random.Random, run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a run of this kind and state has; one that did not end well has what it reached."""
    scale = draw.lognormvariate(0, 0.7)

    def one(name: str, unit: str, value: float, **fields: Any) -> dict[str, Any]:
        place = {"variant": None, "x": None, "repeat": 0, **fields}
        return {"run_id": run["id"], "name": name, "unit": unit, "value": value * draw.uniform(0.97, 1.03), **place}

    yield one("background_cpu_share", "share", run["background_cpu_share"])
    if run["state"] == "out_of_memory":
        yield one("peak_bytes", "bytes", scale * 2e10)
    if run["state"] != "succeeded":
        return
    repeats = range(draw.choice((5, 10, 15)))
    if run["kind"] == "init":
        repeats = range(draw.choice((40, 60, 80)))
        yield one("first_attach_time_s", "s", scale * 1.6)
        yield one("adapter_parameters", "count", 12_615_680)
        yield one("adapted_modules", "count", 154)
        yield from (one(f"init_peak_extra_{view}", "bytes", scale * 2e8) for view in ("bytes", "rss_bytes"))
        yield from (one("init_time_s", "s", scale, repeat=repeat) for repeat in repeats)
    elif run["kind"] == "merge":
        for name in ("merge_time_s", "unmerge_time_s"):
            yield from (one(name, "s", scale, repeat=repeat) for repeat in repeats)
        yield from (one("merge_drift", "ratio", 0.03, x=float(step)) for step in range(1, 11))
        yield from (one(f"merge_{view}_bytes", "bytes", scale * 3e8) for view in ("peak_extra", "peak_extra_rss"))
        yield from (one(f"{name}_bytes", "bytes", scale * 2e7) for name in ("merge_retained_extra", "largest_weight"))
        yield from (one(f"relative_{part}_error", "ratio", 0.03) for part in ("weight", "logit"))
    elif run["kind"] == "train":
        for variant in (None, "stock"):
            for name, unit in TRAIN.items():
                yield from (one(name, unit, scale * 9, repeat=repeat, variant=variant) for repeat in repeats)
            yield from (one(f"{part}_bytes", "bytes", scale * 1e9, variant=variant) for part in AT_PEAK)
            yield one("peak_bytes", "bytes", scale * 6e9, variant=variant)
            yield one("peak_rss_bytes", "bytes", scale * 7e9, variant=variant)
        yield one("trainable_parameters", "parameters", 12_615_680)
        yield one("total_parameters", "parameters", 1_112_664_064)
    else:
        for variant in ("base", "adapter_disabled", "adapter", "merged"):
            for name, unit in INFERENCE.items():
                yield from (one(name, unit, scale * 13, repeat=repeat, variant=variant) for repeat in repeats)
            yield one("peak_bytes", "bytes", scale * 2.3e9, variant=variant)
            yield one("weight_bytes_per_token", "bytes", scale * 2.2e9, variant=variant)


def _even_out(draw: random.Random, metrics: list[list[dict[str, Any]]], values: int) -> None:
    """Give init runs more repeats, or fewer, until there are exactly so many values."""
    total = sum(map(len, metrics))
    inits = [own for own in metrics if own[-1]["name"] == "init_time_s"]
    if not inits or abs(values - total) > 20 * len(inits):
        raise SystemExit(f"--values: {len(metrics)} runs have about {total} values; choose a number near it")
    for own in itertools.cycle(draw.sample(inits, len(inits))):
        if total == values:
            return
        if total > values:
            own.pop()
            total -= 1
        else:
            own.append({**own[-1], "repeat": own[-1]["repeat"] + 1})
            total += 1


def _samples(draw: random.Random, run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if draw.random() >= SAMPLED_SHARE:
        return
    for step in range(100):
        for category in ("base parameters", "adapter parameters", "temporary"):
            sizes = {"base parameters": 2 * 2**30, "adapter parameters": step * 2**20}
            yield {
                "run_id": run["id"],
                "source": "tensors",
                "time_s": step * 0.01,
                "phase": "measure",
                "category": category,
                "bytes": sizes.get(category, draw.randrange(2**28)),
            }


def _environment(cpu: str, gpu: str | None, peft: str, torch: str) -> dict[str, Any]:
    gpus = [{"id": "cuda:0", "name": gpu, "memory_bytes": 80 * 2**30}] if gpu else []
    return {
        "cpu": cpu,
        "cores": 8,
        "memory_bytes": 64 * 2**30,
        "gpus": gpus,
        "gpu_driver": "580.82" if gpu else None,
        "os": "Debian GNU/Linux 12 (bookworm)",
        "kernel": "6.12.0",
        "python": "3.11.7",
        "packages": {
            "torch": torch,
            "transformers": "5.23.0",
            "peft": peft,
            "accelerate": "1.15.0",
            "safetensors": "0.8.0",
            "numpy": "2.4.6",
        },
        "commit": "92acec088c4522d74dfbefa9c4d70ff0ce3b81fc",
        "dirty": False,
        "transparent_huge_pages": "madvise",
        "cpu_governor": None,
        "threads": 8,
        "variables": {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"},
    }


ENVIRONMENTS = (
    _environment("AMD EPYC", None, "0.21.2", "2.13.0+cpu"),
    _environment("AMD EPYC", None, "0.20.0", "2.13.0+cpu"),
    _environment("Intel Xeon", "NVIDIA H200", "0.21.2", "2.13.0"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--values", type=int, default=VALUES)
    options = parser.parse_args()
    started_s = time.monotonic()
    path = seed(options.folder, options.runs, options.values)
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB, {time.monotonic() - started_s:.1f} s")


if __name__ == "__main__":
    main()
