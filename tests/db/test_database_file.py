"""Opening, refusing and sharing the database file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import QueuePool

from db import queue
from db.models import Metric
from db.session import (
    REPOSITORY,
    VERSION_TABLE,
    Database,
    DatabaseError,
    DatabaseTooNew,
    database_url,
    home,
    open_database,
)
from tests.db.conftest import on_sqlite


def test_the_home_folder_is_created_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_LAB_HOME", str(tmp_path / "a" / "b"))
    assert home() == (tmp_path / "a" / "b").resolve()
    assert home().is_dir()


def test_the_home_folder_is_data_in_the_checkout_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFT_LAB_HOME", raising=False)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    assert home() == REPOSITORY / "data"


def test_a_file_in_place_of_the_home_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFT_LAB_HOME", str(tmp_path / "file"))
    with pytest.raises(DatabaseError, match=r"^PEFT_LAB_HOME: cannot create the folder .*file"):
        home()


@pytest.mark.parametrize("name", ["plain", "with space", "a#b?c%20d", "ü"])
def test_the_default_database_lies_in_the_home_folder_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_LAB_HOME", str(tmp_path / name))
    monkeypatch.delenv("PEFT_LAB_DATABASE_URL", raising=False)
    open_database().close()
    assert (tmp_path / name / "peft-lab.sqlite3").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_the_database_address_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = f"sqlite:///{tmp_path / 'elsewhere' / 'x.sqlite3'}"
    monkeypatch.setenv("PEFT_LAB_DATABASE_URL", given)
    assert database_url() == given
    open_database().close()
    assert (tmp_path / "elsewhere" / "x.sqlite3").is_file()


@on_sqlite
def test_every_connection_is_durable_checks_foreign_keys_and_waits(database: Database) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    for opened in (database.reading, database.writing):
        with opened() as session:
            queue.queue_depth(session)  # a connection knows the file's journal mode once it has read from it
            assert {name: session.scalar(text(f"PRAGMA {name}")) for name in expected} == expected


@on_sqlite
def test_few_connections_stay_open_once_many_have_read_at_a_time(database: Database) -> None:
    with contextlib.ExitStack() as readers:
        for _ in range(10):
            queue.queue_depth(readers.enter_context(database.reading()))
    pool = database._engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedin() == 2


def test_a_metric_cannot_refer_to_a_run_that_does_not_exist(database: Database) -> None:
    orphan = {"run_id": 7, "name": "init_time_s", "unit": "s", "repeat": 0, "value": 1.0}
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), database.writing() as session:
        session.execute(insert(Metric), [orphan])


def test_nothing_can_be_written_through_a_reading_session(database: Database, enqueue) -> None:
    (run_id,) = enqueue()
    refused = pytest.raises((DatabaseError, DBAPIError), match=r"cannot be written|read-only")
    with refused, database.reading() as session:
        queue.request_cancel(session, [run_id])
    with database.reading() as session:
        assert queue.queue_depth(session) == 1


def test_an_exception_rolls_the_whole_transaction_back(database: Database, enqueue) -> None:
    (run_id,) = enqueue()

    def cancel_and_fail() -> None:
        with database.writing() as session:
            assert queue.request_cancel(session, [run_id]) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cancel_and_fail()
    with database.reading() as session:
        assert queue.queue_depth(session) == 1


def test_reading_goes_on_while_a_writer_holds_the_lock(database: Database, enqueue) -> None:
    (run_id,) = enqueue(2)[:1]
    with database.writing() as writer:
        queue.request_cancel(writer, [run_id])
        with database.reading() as reader:
            assert queue.queue_depth(reader) == 2
    with database.reading() as reader:
        assert queue.queue_depth(reader) == 1


def test_a_reading_session_sees_one_state_throughout(database: Database, enqueue) -> None:
    enqueue()
    with database.reading() as reader:
        assert queue.queue_depth(reader) == 1
        enqueue()
        assert queue.queue_depth(reader) == 1


@on_sqlite
def test_a_writing_transaction_takes_the_lock_before_it_reads(url: str, database: Database) -> None:
    other = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)
    with database.writing() as session:
        queue.queue_depth(session)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    other.close()


@pytest.mark.parametrize("content", [b"hello", b"not a database at all, " * 500, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(content: bytes, sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"^.*lab\.sqlite3: (is not a database|is damaged|cannot be opened)[^\n]*$"):
        open_database(sqlite_url)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_as_it_is(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (id INTEGER)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="tables of another program"):
        open_database(sqlite_url)
    assert path.read_bytes() == before


def test_a_folder_in_place_of_the_database_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be opened; check that it is a file"):
        open_database(f"sqlite:///{tmp_path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DatabaseError, match="cannot be"):
        open_database(f"sqlite:///{tmp_path / 'x.sqlite3'}")


@pytest.mark.parametrize(
    "address", ["nonsense", "sqlite://", "sqlite:///:memory:", "nosuch://host/x", "sqlite://host/x"]
)
def test_an_address_that_cannot_work_is_one_sentence(address: str) -> None:
    with pytest.raises(DatabaseError, match=r"^PEFT_LAB_DATABASE_URL: [^\n]+$"):
        open_database(address)


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(url: str, database: Database) -> None:
    with database.writing() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match=r"newer PEFT Lab \(schema 9999, this one knows up to \d{4}\); update"):
        open_database(url)
    with database.reading() as session:
        assert session.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == "9999"


def test_the_upgrade_command_creates_the_database_and_says_one_line_when_it_cannot(tmp_path: Path) -> None:
    environment = {**os.environ, "PEFT_LAB_HOME": str(tmp_path / "home"), "PEFT_LAB_DATABASE_URL": ""}
    command = [sys.executable, "-m", "db", "upgrade"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    database_file = tmp_path / "home" / "peft-lab.sqlite3"
    assert database_file.is_file()
    database_file.write_text("no database")
    for rest in ("-wal", "-shm"):
        database_file.with_name(database_file.name + rest).unlink(missing_ok=True)
    failed = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "is not a database" in failed.stderr
