"""Runs as the supervisor would have stored them, for tests of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.widgets.launching import new_run
from db import queue, runs
from db.session import Database
from engine.spec import parse_spec

GIB = 2**30
CPU = {
    "id": "cpu",
    "kind": "cpu",
    "name": "Test CPU, 2 cores",
    "memory_bytes": 16 * GIB,
    "dtypes": ["float32", "bfloat16", "float16"],
    "driver": None,
}
ENVIRONMENT = {
    "cpu": "Test CPU",
    "cores": 2,
    "memory_bytes": 16 * GIB,
    "packages": {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"},
    "commit": "0123abc",
}


def init_document(
    model: str = "tinyllama-1.1b", dora: bool = False, strategy: str = "stock", **fields: Any
) -> dict[str, Any]:
    """A valid init spec as a document."""
    adapter = {"options": {"use_dora": True} if dora else {}}
    return {"kind": "init", "model": model, "strategy": strategy, "adapter": adapter, **fields}


def metric(name: str, unit: str, value: float, repeat: int = 0) -> dict[str, Any]:
    """One metric of a result document."""
    return {"name": name, "unit": unit, "variant": None, "x": None, "repeat": repeat, "value": value}


def result(seconds: list[float], *, peak_bytes: int = 200 * 2**20, failed_check: bool = False) -> dict[str, Any]:
    """A result document with everything that an init run has."""
    base, top = 2 * GIB, peak_bytes
    tensors = [
        {"source": "tensors", "time_s": step * 0.01, "phase": "attach", "category": category, "bytes": value}
        for step in range(40)
        for category, value in (
            ("base parameters", base),
            ("adapter parameters", step * 2**20),
            ("temporary", top if step % 4 == 2 else 0),
        )
    ]
    process = [
        {"source": "process", "time_s": step * 0.1, "phase": "load", "category": category, "bytes": value}
        for step in range(30)
        for category, value in (("anonymous", GIB // 2 + min(step, 12) * GIB // 6), ("file-backed", GIB // 3))
    ]
    return {
        "state": "succeeded",
        "metrics": [
            *(metric("init_time_s", "s", value, repeat) for repeat, value in enumerate(seconds)),
            metric("first_attach_time_s", "s", seconds[0] * 1.6),
            metric("init_peak_extra_bytes", "bytes", peak_bytes),
            metric("init_peak_extra_rss_bytes", "bytes", peak_bytes * 1.1),
            metric("adapter_parameters", "count", 12_615_680),
            metric("adapted_modules", "count", 154),
            metric("background_cpu_share", "share", 0.012),
        ],
        "checks": [
            {"name": "magnitude_equals_stock", "passed": not failed_check, "detail": "largest relative error 0.0031"},
            {"name": "logits_equal_stock", "passed": True, "detail": "0.92 of stock's own error"},
        ],
        "samples": tensors + process,
        "environment": ENVIRONMENT,
        "error": None,
    }


def failure(state: str, text: str) -> dict[str, Any]:
    """A result document of a run that has no result."""
    return {"state": state, "metrics": [], "checks": [], "samples": [], "error": {"kind": state, "text": text}}


def store(
    database: Database,
    document: dict[str, Any],
    outcome: dict[str, Any] | None,
    *,
    sweep: str | None = None,
    folder: Path | None = None,
    progress: dict[str, Any] | None = None,
) -> int:
    """Queue a spec and take it as far as given: to its result, or only to running where ``outcome`` is None."""
    with database.writing() as session:
        (run_id,) = queue.enqueue(session, [new_run(parse_spec(document))], sweep)
    with database.writing() as session:
        claimed = queue.claim(session, supervisor="1@1", devices=["cpu"])
        assert claimed is not None
        assert claimed.id == run_id, "store runs before queueing others"
        queue.started(session, run_id, 1, 1.0, str(folder or "/nonexistent"))
        if progress:
            queue.progress(session, run_id, progress)
        if outcome is not None:
            queue.finish(session, run_id, outcome)
    return run_id


def queued(database: Database, *documents: dict[str, Any], sweep: str | None = None) -> list[int]:
    """Queue specs and leave them waiting."""
    with database.writing() as session:
        return queue.enqueue(session, [new_run(parse_spec(document)) for document in documents], sweep)


def lora_and_dora(database: Database, model: str = "tinyllama-1.1b") -> list[int]:
    """LoRA, stock DoRA and two faster strategies, as the Overview's button measures them."""
    variants = [
        (False, "stock", [0.21, 0.20, 0.22], 48),
        (True, "stock", [1.52, 1.49, 1.61], 210),
        (True, "zero_b_norm", [0.27, 0.26, 0.29], 50),
        (True, "factored_norm", [0.61, 0.66, 0.63], 55),
    ]
    return [
        store(
            database,
            init_document(model, dora, strategy, repeats=3),
            result(seconds, peak_bytes=peak * 2**20),
            sweep=None,
        )
        for dora, strategy, seconds, peak in variants
    ]


def devices(database: Database) -> None:
    """The devices as the supervisor stores them."""
    with database.writing() as session:
        runs.upsert_devices(session, [CPU])
