"""A real database file for each test, and short ways to fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db import queue
from db.session import Database, open_database

Document = dict[str, Any]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'lab.sqlite3'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = open_database(url)
    yield opened
    opened.close()


@pytest.fixture
def enqueue(database: Database) -> Callable[..., list[int]]:
    """Queue runs that differ in their seed; keywords replace columns of ``NewRun``."""

    def put(count: int = 1, *, sweep_name: str | None = None, **columns: Any) -> list[int]:
        with database.writing() as session:
            return queue.enqueue(session, [new_run(seed, **columns) for seed in range(count)], sweep_name)

    return put


@pytest.fixture
def claim(database: Database) -> Callable[..., queue.ClaimedRun | None]:
    def take(supervisor: str = "one", devices: tuple[str, ...] = ("cpu",), **more: Any) -> queue.ClaimedRun | None:
        with database.writing() as session:
            return queue.claim(session, supervisor=supervisor, devices=devices, **more)

    return take


@pytest.fixture
def finished(
    database: Database, enqueue: Callable[..., list[int]], claim: Callable[..., queue.ClaimedRun | None]
) -> Callable[..., int]:
    """A run that was queued, claimed, started and finished with this result."""

    def run(result: Document | None = None, **columns: Any) -> int:
        (run_id,) = enqueue(**columns)
        taken = claim(devices=(columns.get("device", "cpu"),))
        assert taken is not None
        assert taken.id == run_id
        with database.writing() as session:
            assert queue.started(session, run_id, 1, 1.0, "runs/x")
            assert queue.finish(session, run_id, result or {"state": "succeeded"})
        return run_id

    return run


def new_run(seed: int, **columns: Any) -> queue.NewRun:
    spec = {"kind": "init", "model": "tiny-test", "device": "cpu", "seed": seed}
    defaults: dict[str, Any] = {
        "kind": "init",
        "spec": spec,
        "spec_hash": f"{seed:064x}",
        "model": "tiny-test",
        "adapter": "DoRA",
        "adapter_type": "lora",
        "strategy": "stock",
        "dtype": "bfloat16",
        "device": "cpu",
    }
    return queue.NewRun(**{**defaults, **columns})


def metric(name: str, value: float, **more: Any) -> Document:
    return {"name": name, "unit": "s", "variant": None, "x": None, "repeat": 0, "value": value, **more}


def sample(time_s: float, size_bytes: int, category: str = "weights", source: str = "tensors") -> Document:
    return {"source": source, "time_s": time_s, "phase": "attach", "category": category, "bytes": size_bytes}


def result_document(**changes: Any) -> Document:
    """A whole document, as ``python -m engine measure`` prints it."""
    spec = {
        "kind": "init",
        "model": "tinyllama-1.1b",
        "dtype": "bfloat16",
        "device": "cpu",
        "strategy": "zero_b_norm",
        "adapter": {"type": "lora", "rank": 16, "alpha": 32.0, "options": {"use_dora": True}},
    }
    document: Document = {
        "state": "succeeded",
        "spec": spec,
        "spec_hash": "ab" * 32,
        "metrics": [metric("init_time_s", 0.25, repeat=1), metric("init_time_s", 0.5, variant="adapter", x=2.0)],
        "checks": [{"name": "magnitude", "passed": True, "detail": "largest difference 0"}],
        "samples": [sample(0.0, 10), sample(0.5, 2**40)],
        "environment": {"cpu": {"cores": 2}, "packages": {"peft": "0.21.2"}},
        "error": None,
        "inspection": None,
    }
    return {**document, **changes}
