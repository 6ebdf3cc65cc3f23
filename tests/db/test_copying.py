"""A lab that is copied into another database, of the same kind or of another one, is the same lab there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, text

from db import __main__, nodes, predictions, queue, runs, transfer
from db.copying import copy
from db.documents import parse_run
from db.models import Base
from db.session import VERSION_TABLE, Database, DatabaseError, open_database, schema_revisions
from tests.db.conftest import HERE, metric, new_run, on_sqlite, result_document, sample
from tests.db.test_migrations import migrate_to

LAST_ID = 7


@pytest.fixture
def filled(url: str, database: Database, finished: Callable[..., int], enqueue: Callable[..., list[int]]) -> str:
    """A database with something in every table, ids that are gone, and values that are easily changed."""
    values = [metric("tiny", 5e-324), metric("exact", 0.1 + 0.2, x=0.0), metric("whole", 3.0), metric("huge", 1e308)]
    mixed = {"numbers": [1, 1.0, True, None], "packages": {"peft": "0.21.2"}}
    finished({"state": "succeeded", "metrics": values, "samples": [sample(0.1, 2**62)], "environment": mixed})
    finished({"state": "failed", "error": {"kind": "x", "text": "Ü\n'\"\\ 漢字 🎉"}})
    enqueue(3, sweep_name="Friday")
    with database.writing() as session:
        transfer.store_runs(session, [parse_run(result_document(tags=["b", "A", "ü"], note="two\nlines"))])
        nodes.store(session, [HERE])
        predictions.store(session, [{"key": "k", "spec_hash": "h", "course": [{"bytes": {"a": 2**53}}], "peak": 1.5}])
    (last,) = enqueue()
    assert last == LAST_ID
    with database.writing() as session:
        queue.request_cancel(session, [last])
        runs.archive(session, [2, last])
        assert len(runs.delete(session, [2, last])) == 2
    return url


@pytest.fixture
def of_another_kind(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> str:
    if url.startswith("sqlite"):
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path / 'other.sqlite3'}"


def everything(url: str) -> dict[str, list[str]]:
    """Every row of every table, spelled out."""
    opened = open_database(url, migrate=False)
    with opened.reading() as session:
        rows = {table.name: session.execute(select(table)).all() for table in Base.metadata.sorted_tables}
    opened.close()
    return {name: sorted(map(repr, found)) for name, found in rows.items()}


def refused(source: str, target: str, sentence: str) -> None:
    with pytest.raises(DatabaseError, match=sentence) as refusal:
        copy(source, target)
    assert "\n" not in str(refusal.value)


def test_every_row_is_the_same_in_a_database_of_another_kind_and_back_again(
    filled: str, of_another_kind: str, tmp_path: Path
) -> None:
    before = everything(filled)
    assert copy(filled, of_another_kind) == {name: len(rows) for name, rows in before.items()}
    assert everything(of_another_kind) == before
    back = str(tmp_path / "back.sqlite3")
    copy(of_another_kind, back)
    assert everything(f"sqlite:///{back}") == before == everything(filled)


def test_the_copy_goes_on_numbering_where_the_source_does(filled: str, of_another_kind: str) -> None:
    copy(filled, of_another_kind)
    opened = open_database(of_another_kind)
    with opened.writing() as session:
        (next_id,) = queue.enqueue(session, [new_run(0)], sweep_name="Monday")
        document = result_document(note="another")
        ((imported_id, _),) = transfer.store_runs(session, [parse_run(document)])
    opened.close()
    assert (next_id, imported_id) == (LAST_ID + 1, LAST_ID + 2)


def test_a_database_that_is_not_empty_takes_no_copy_and_stays_as_it_is(filled: str, another_url: str) -> None:
    other = open_database(another_url)
    with other.writing() as session:
        nodes.store(session, [HERE])
    other.close()
    before = everything(another_url)
    refused(filled, another_url, r"is not empty \(nodes, devices\); copy into a new database$")
    refused(filled, filled, r"is not empty \([a-z_, ]*runs[a-z_, ]*\); copy into a new database$")
    assert everything(another_url) == before


def test_a_lab_with_running_runs_is_not_copied(filled: str, database: Database, claim, another_url: str) -> None:
    claim()
    refused(filled, another_url, "1 of its runs are running; let them end or cancel them, stop the dashboard")


@on_sqlite
def test_a_row_that_does_not_arrive_as_it_was_undoes_the_whole_copy(filled: str, another_url: str) -> None:
    other = open_database(another_url)
    with other.writing() as session:
        spoil = "UPDATE metrics SET value = value * (1 + 1e-15) WHERE id = new.id AND name = 'exact'"
        session.execute(text(f"CREATE TRIGGER spoil AFTER INSERT ON metrics BEGIN {spoil}; END"))
    other.close()
    refused(filled, another_url, "the column value of metrics 2 did not arrive as it was; nothing was copied$")
    assert not any(everything(another_url).values())


@on_sqlite
def test_what_cannot_be_copied_is_one_sentence(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = str(tmp_path / "target.sqlite3")
    refused(str(tmp_path / "nowhere.sqlite3"), target, r"nowhere\.sqlite3: there is no such file$")
    refused("nonsense://x", target, "^SOURCE: cannot use this database address: ")
    refused("postgres://host/lab", target, r"^SOURCE: .* must start with postgresql://$")
    refused("postgresql://host:port/lab", target, "^SOURCE: cannot use this database address: ")
    (tmp_path / "text.sqlite3").write_text("no database, but as long as one" * 50)
    refused(str(tmp_path / "text.sqlite3"), target, "is not a database")
    old = tmp_path / "old.sqlite3"
    migrate_to(f"sqlite:///{old}", schema_revisions()[0])
    refused(str(old), target, r"old\.sqlite3: has not the tables of this version; first run `python -m db upgrade`")
    assert not Path(target).exists()
    refused(
        filled, "postgresql://lab:secret@127.0.0.1:1/lab", r"^postgresql://lab:\*\*\*@127\.0\.0\.1:1/lab: cannot be"
    )
    monkeypatch.setitem(sys.modules, "psycopg", None)
    refused(filled, "postgresql://127.0.0.1/lab", "^TARGET: PostgreSQL's driver is not installed .*: make cluster$")


def test_a_lab_of_a_newer_version_is_not_copied(filled: str, database: Database, another_url: str) -> None:
    with database.writing() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    refused(filled, another_url, "was written by a newer PEFT Lab")


@on_sqlite
def test_the_command_says_what_it_copied_or_in_one_line_why_not(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, target = filled.removeprefix("sqlite:///"), str(tmp_path / "target.sqlite3")
    monkeypatch.setattr(sys, "argv", ["db", "copy", file, target])
    assert __main__.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said if line.endswith((" runs", " metrics"))] == [["5", "runs"], ["6", "metrics"]]
    assert said[-1] == "Copied; every row was read back and is the same."
    assert __main__.main() == 1
    failed = capsys.readouterr()
    assert (failed.out, failed.err.count("\n")) == ("", 1)
