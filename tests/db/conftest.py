"""A real database for each test, on SQLite and once more on PostgreSQL, and short ways to fill it.

What is about SQLite's file takes ``sqlite_url``; everything else takes ``url`` or ``database`` and runs on both.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine

from db import queue
from db.models import Base
from db.nodes import NodeRow
from db.session import VERSION_TABLE, Database, open_database, schema_revisions
from tests import postgresql

Document = dict[str, Any]
CPU = {"id": "cpu", "kind": "cpu", "name": "CPU", "memory_bytes": 2**40, "dtypes": ["float32"], "driver": None}
HERE = NodeRow(
    name="here", is_head=True, state="ready", versions={"torch": "2.13.0"}, seen_at=1e9, devices=(CPU,), problem=None
)
PROCESSES = 4
_barrier: Any = None

#: For a test that uses ``database`` and is about SQLite's file.
on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database without runs. Copying it takes a fifth of the time that migrating a new one does."""
    file = tmp_path_factory.mktemp("migrated") / "lab.sqlite3"
    open_database(f"sqlite:///{file}").close()
    return file


@pytest.fixture(scope="session")
def migrated_url(postgresql_server: postgresql.Server) -> str:
    """A PostgreSQL database that one test after the other uses: making one takes longer than most tests do."""
    url = postgresql_server.url(postgresql_server.create())
    open_database(url).close()
    return url


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a file. It is there where the test opens it as ``database``, too."""
    file = tmp_path / "lab.sqlite3"
    if "database" in request.fixturenames:
        shutil.copyfile(request.getfixturevalue("migrated_file"), file)
    return f"sqlite:///{file}"


@pytest.fixture
def postgresql_url(postgresql_server: postgresql.Server) -> Iterator[str]:
    """A PostgreSQL database in which nothing is yet."""
    name = postgresql_server.create()
    yield postgresql_server.url(name)
    postgresql_server.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The address of this test's database. It has its tables where the test opens it as ``database``, too."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    return postgresql_database(request)


@pytest.fixture
def another_url(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> str:
    """The address of a second, empty database beside the test's own."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'other.sqlite3'}"
    return str(request.getfixturevalue("postgresql_url"))


Target = Callable[[str, int, Callable[[], object]], Any]
Race = Callable[[Target, str], list[Any]]


@pytest.fixture(scope="session")
def race() -> Iterator[Race]:
    """Call a function in several processes at once; what it returned in each.

    It gets the database's address, the process's number, and what to call to wait for the others: once, when it is
    ready. The processes stay for the next race, because their start takes seconds.
    """
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(PROCESSES, timeout=60)
    with ProcessPoolExecutor(PROCESSES, spawn, initializer=_join, initargs=(barrier,)) as pool:

        def start(target: Target, url: str) -> list[Any]:
            calls = [pool.submit(_run, target, url, number) for number in range(PROCESSES)]
            wait(calls, timeout=120)
            return [call.result(timeout=0) for call in calls]

        yield start


def _join(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _run(target: Target, url: str, number: int) -> Any:
    return target(url, number, _barrier.wait)


def postgresql_database(request: pytest.FixtureRequest) -> str:
    """A PostgreSQL database in which nothing is, or, where the test opens it as ``database``, tables without rows."""
    if "database" not in request.fixturenames:
        return str(request.getfixturevalue("postgresql_url"))
    address: str = request.getfixturevalue("migrated_url")
    empty(address)
    return address


def empty(url: str) -> None:
    """Undo what a test did to a PostgreSQL database of ours: no rows, numbers from 1 on, its schema's revision."""
    tables = Base.metadata.sorted_tables
    steps = [f"DELETE FROM {table.name}" for table in reversed(tables)]
    numbered = [table.name for table in tables if table.autoincrement_column is not None]
    steps += [f"ALTER SEQUENCE {name}_id_seq RESTART" for name in numbered]
    steps += [f"UPDATE {VERSION_TABLE} SET version_num = '{schema_revisions()[-1]}'"]
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("; ".join(steps))


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
