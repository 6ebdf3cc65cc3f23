"""The schema, from nothing and from each earlier revision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from db import queue
from db.models import Base
from db.session import MIGRATIONS, VERSION_TABLE, open_database, schema_revisions
from tests.db.conftest import Race, new_run


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def migrate_to(url: str, revision: str) -> None:
    """Bring a database to one revision with Alembic alone, as an older version of the project left it."""
    engine = create_engine(url)
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def is_comparable(_object: object, name: str | None, *_rest: object) -> bool:
    """Alembic takes an index with DESC for a different one on SQLite; that one is compared by its SQL."""
    return name != "ix_runs_claim"


def test_file_names_and_alembic_agree_on_the_revisions() -> None:
    script = ScriptDirectory.from_config(alembic_config())
    assert [revision.revision for revision in script.walk_revisions()][::-1] == schema_revisions()
    assert script.get_heads() == [schema_revisions()[-1]]


@pytest.mark.parametrize("start", ["nothing", *schema_revisions()])
def test_every_earlier_schema_becomes_the_models_schema(start: str, url: str) -> None:
    if start != "nothing":
        migrate_to(url, start)
    database = open_database(url)
    with database.reading() as session:
        connection = session.connection()
        is_sqlite = connection.dialect.name == "sqlite"
        options = {"version_table": VERSION_TABLE, "compare_type": True, "include_object": is_comparable}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        source = "sqlite_master" if is_sqlite else "(SELECT indexname AS name, indexdef AS sql FROM pg_indexes) AS them"
        claim = session.scalar(text(f"SELECT sql FROM {source} WHERE name = 'ix_runs_claim'"))
        assert claim.endswith("(state, priority DESC, id)")
        assert session.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == schema_revisions()[-1]
        assert not is_sqlite or session.scalar(text("PRAGMA journal_mode")) == "wal"
    database.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptDirectory.from_config(alembic_config())
    last = script.get_revision("head").module

    def fails_after_its_work() -> None:
        original()
        raise RuntimeError("the machine went down")

    original = last.upgrade
    monkeypatch.setattr(ScriptDirectory, "from_config", lambda _config: script)
    monkeypatch.setattr(last, "upgrade", fails_after_its_work)
    with pytest.raises(RuntimeError, match="went down"):
        open_database(url)
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    monkeypatch.setattr(last, "upgrade", original)
    open_database(url).close()


def open_and_enqueue(url: str, _number: int, start: Callable[[], object]) -> None:
    start()
    database = open_database(url)
    with database.writing() as session:
        queue.enqueue(session, [new_run(0)])
    database.close()


def test_processes_that_start_at_once_migrate_once_and_all_go_on(race: Race, url: str) -> None:
    race(open_and_enqueue, url)
    database = open_database(url)
    with database.reading() as session:
        assert queue.queue_depth(session) == 4
    database.close()
