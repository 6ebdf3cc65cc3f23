"""What is particular to a database on PostgreSQL; everything else of this folder runs on both kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text, update

import db.session
from db import postgresql, queue, runs
from db.conditions import Column, Compare
from db.models import Run
from db.session import Database, DatabaseError, DatabaseUnavailable, open_database
from tests.db.conftest import new_run, postgresql_database
from tests.postgresql import Server


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return postgresql_database(request)


def refused(url: str, sentence: str, kind: type[DatabaseError] = DatabaseError) -> None:
    with pytest.raises(kind, match=sentence) as refusal:
        open_database(url)
    assert "\n" not in str(refusal.value)


def test_supervisors_pass_by_what_another_is_taking_and_wait_for_nobody(
    database: Database, enqueue: Callable[..., list[int]]
) -> None:
    first, second = enqueue(2)
    with database.writing() as one, database.writing() as other:
        postgresql.limit_waiting(other.connection(), 5.0)
        assert queue.claim(one, supervisor="one", devices=["cpu"]).id == first
        assert queue.claim(other, supervisor="other", devices=["cpu"]).id == second
        assert queue.claim(other, supervisor="other", devices=["cpu"]) is None


def test_a_claim_reads_the_index_and_sorts_nothing_however_many_runs_wait(
    database: Database, enqueue: Callable[..., list[int]]
) -> None:
    enqueue(500)
    with database.writing() as session:
        execute = session.execute

        def explained(statement, *rest):
            compiled = statement.compile(session.connection(), compile_kwargs={"literal_binds": True})
            plan.extend(execute(text(f"EXPLAIN {str(compiled).replace(':', chr(92) + ':')}")).scalars())
            return execute(statement, *rest)

        plan: list[str] = []
        session.execute = explained
        queue.claim(session, supervisor="one", devices=["cpu"], kinds=["init"])
    assert any("Index Scan using ix_runs_claim" in line for line in plan)
    assert not any("Sort" in line for line in plan)


def test_a_server_that_does_not_answer_is_one_sentence_without_the_password() -> None:
    address = "postgresql://lab:secret@127.0.0.1:1/lab"
    sentence = r"^postgresql://lab:\*\*\*@127.0.0.1:1/lab: cannot be reached: Connection refused; check the address"
    refused(address, sentence, DatabaseUnavailable)
    refused("postgresql://127.0.0.1:1/lab?user=lab&password=secret", r"^((?!secret).)*$", DatabaseUnavailable)
    refused("postgresql://nobody.invalid/lab", "cannot be reached: .*check the address", DatabaseUnavailable)


def test_a_database_that_the_server_does_not_have_is_one_sentence(postgresql_server: Server) -> None:
    refused(
        postgresql_server.url("nowhere"),
        'database "nowhere" does not exist on this server; create it first, with createdb$',
    )


def test_a_database_that_cannot_store_every_text_is_refused(postgresql_server: Server) -> None:
    name = postgresql_server.create(options="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    refused(postgresql_server.url(name), "stores text as LATIN1; create it with the encoding UTF8$")


def test_the_tables_of_another_program_are_left_as_they_are(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookmarks (id INTEGER)"))
    refused(
        url, "holds the tables of another program and was left as it is; set PEFT_LAB_DATABASE_URL to one of its own$"
    )
    with engine.connect() as connection:
        assert connection.dialect.get_table_names(connection) == ["bookmarks"]
    engine.dispose()


def test_who_waits_too_long_for_another_who_migrates_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db.session, "MIGRATION_TIMEOUT_S", 0.2)
    engine = create_engine(url)
    with engine.begin() as connection:
        postgresql.wait_for_turn(connection, "migrate")
        refused(url, "another process has been migrating this database")
    engine.dispose()
    open_database(url).close()


def test_what_a_restarted_server_cut_off_is_told_and_the_next_transaction_goes_on(
    database: Database, enqueue: Callable[..., list[int]]
) -> None:
    enqueue()
    others = "pid != pg_backend_pid() AND datname = current_database()"
    cut = text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")

    def lose_the_connection() -> None:
        with database.writing() as session:
            queue.enqueue(session, [new_run(1)])
            with database.reading() as other:
                other.execute(cut)
            queue.queue_depth(session)

    with pytest.raises(DatabaseUnavailable, match="cannot be"):
        lose_the_connection()
    with database.reading() as session:
        assert queue.queue_depth(session) == 1


def test_who_stands_in_anothers_way_is_told_to_try_again(database: Database, enqueue: Callable[..., list[int]]) -> None:
    first, second = enqueue(2)
    both_hold_one = threading.Barrier(2, timeout=30)
    told: list[Exception] = []

    def change(*ids: int) -> None:
        try:
            with database.writing() as session:
                for run_id in ids:
                    session.execute(update(Run).where(Run.id == run_id).values(note="x"))
                    if run_id == ids[0]:
                        both_hold_one.wait()
        except Exception as error:
            told.append(error)

    threads = [threading.Thread(target=change, args=ids) for ids in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    (error,) = told
    assert isinstance(error, DatabaseUnavailable)
    assert str(error).endswith("was kept by another transaction (deadlock detected); try again")


def test_the_nul_character_is_looked_for_and_typed_without_harm(
    database: Database, enqueue: Callable[..., list[int]]
) -> None:
    (run_id,) = enqueue()
    with database.writing() as session:
        runs.rename(session, run_id, "a\0b")
        assert runs.get_run(session, run_id).name == "a\ufffdb"
        assert runs.list_ids(session, search="\0zero") == []
        assert runs.list_ids(session, where=Compare(Column("model"), "=", "\0")) == []


def test_ids_go_beyond_32_bits(database: Database, enqueue: Callable[..., list[int]], finished) -> None:
    with database.writing() as session:
        for name in ("runs", "metrics", "memory_samples", "sweeps"):
            session.execute(text(f"SELECT setval('{name}_id_seq', {2**31 + 5})"))
    metrics = [{"name": "init_time_s", "unit": "s", "value": 1.0}]
    run_id = finished({"state": "succeeded", "metrics": metrics})
    (swept,) = enqueue(sweep_name="late")
    assert (run_id, swept) == (2**31 + 6, 2**31 + 7)
    with database.reading() as session:
        assert [row.id for row in runs.get_rows(session, [swept, run_id, 2**62])] == [swept, run_id]


def test_the_database_says_what_keeps_it_and_how_large_it_is(database: Database) -> None:
    name, version = database.software()
    assert name == "PostgreSQL"
    assert float(version) >= 13
    size = database.size()
    assert size is not None
    assert size.file_bytes > 2**20
    assert (size.log_bytes, size.reusable_bytes) == (None, None)
