"""Where the database is, how it is opened, and its two kinds of transaction.

Holds everything that is particular to SQLite (pragmas, BEGIN, file checks). Knows no table by name and runs no query of
its own beyond the schema's version; queries live in ``db.queue`` and ``db.runs``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

REPOSITORY = Path(__file__).resolve().parent.parent
MIGRATIONS = Path(__file__).resolve().parent / "migrations"
VERSION_TABLE = "peft_lab_schema"
BUSY_TIMEOUT_S = 30.0
MIGRATION_TIMEOUT_S = 120.0


class DatabaseError(Exception):
    """The database cannot be used. The text is one sentence that says why and what would be right."""


class DatabaseTooNew(DatabaseError):
    """A newer PEFT Lab has written this database; this one would misread it."""


def home() -> Path:
    """The folder for the database, logs and result files: ``PEFT_LAB_HOME``, else ``data`` in the checkout. Created.

    Raises:
        DatabaseError: when it is not a folder and cannot be made one.
    """
    folder = Path(os.environ.get("PEFT_LAB_HOME") or REPOSITORY / "data").expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"PEFT_LAB_HOME: cannot create the folder {folder}: {error.strerror}") from None
    return folder


def database_url() -> str:
    """The SQLAlchemy URL of the database: ``PEFT_LAB_DATABASE_URL``, else a SQLite file in ``home()``."""
    given = os.environ.get("PEFT_LAB_DATABASE_URL")
    if given:
        return given
    return URL.create("sqlite", database=str(home() / "peft-lab.sqlite3")).render_as_string(hide_password=False)


def schema_revisions() -> list[str]:
    """The revisions this code knows, oldest first. A migration's file name starts with its revision."""
    return sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def open_database(url: str | None = None, *, migrate: bool = True) -> Database:
    """Open the database, by default the configured one, and bring its schema up to date.

    Raises:
        DatabaseTooNew: when a newer PEFT Lab has written it.
        DatabaseError: when it is no database, not ours, or cannot be opened. The file stays as it is.
    """
    database = Database(url or database_url())
    if migrate:
        try:
            database.upgrade()
        except BaseException:
            database.close()
            raise
    return database


class Database:
    """One database and its two kinds of transaction. May be shared by threads, not by forked processes."""

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
            self._sqlite_file = _sqlite_file(self.url)
            self._engine = _create_engine(self.url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise DatabaseError(
                f"PEFT_LAB_DATABASE_URL: cannot use this database address: {_first_line(error)}"
            ) from None
        self._readers = sessionmaker(self._engine, expire_on_commit=False)
        self._writers = sessionmaker(self._engine.execution_options(writing=True), expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one consistent state and waits for no writer. Nothing can be written through it."""
        with self._readers() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose transaction holds the write lock from its first statement; commits at the end.

        An exception rolls everything back.
        """
        with self._writers.begin() as session:
            yield session

    def upgrade(self) -> None:
        """Apply the migrations that are missing. Safe when several processes start at once.

        Raises:
            DatabaseTooNew, DatabaseError: as ``open_database``.
        """
        try:
            if self._sqlite_file is not None:
                self._sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            if self._is_current():
                return
            with self._migration_lock():
                if not self._is_current():
                    self._migrate()
        except Timeout:
            raise DatabaseError(
                f"{self._shown()}: another process has been migrating this database for {MIGRATION_TIMEOUT_S:.0f} s"
            ) from None
        except OSError as error:
            raise DatabaseError(f"{self._shown()}: cannot be opened: {error.strerror or error}") from None
        except SQLAlchemyError as error:
            raise DatabaseError(f"{self._shown()}: {_reason(error)}") from None

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()

    def _shown(self) -> str:
        """How messages name this database: the file, or the address without its password."""
        return str(self._sqlite_file or self.url.render_as_string(hide_password=True))

    def _migration_lock(self) -> AbstractContextManager[object]:
        if self._sqlite_file is None:
            return nullcontext()
        lock_file = self._sqlite_file.with_name(self._sqlite_file.name + ".migrate.lock")
        return FileLock(lock_file, timeout=MIGRATION_TIMEOUT_S)

    def _is_current(self) -> bool:
        """Whether nothing is left to migrate. Refuses what must not be migrated, and changes nothing."""
        with self._engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            if VERSION_TABLE not in tables:
                if tables:
                    raise DatabaseError(
                        f"{self._shown()}: holds the tables of another program; give PEFT Lab a database of its own"
                    )
                return False
            revision = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
            known = schema_revisions()
            if revision is not None and revision not in known:
                raise DatabaseTooNew(
                    f"{self._shown()}: was written by a newer PEFT Lab (schema {revision}, this one knows up to "
                    f"{known[-1]}); update PEFT Lab or set PEFT_LAB_HOME to another folder"
                )
            if revision != known[-1]:
                return False
            return self._sqlite_file is None or connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"

    def _migrate(self) -> None:
        # Alembic takes 0.2 s to import, and a start seldom needs it.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        engine = _create_engine(self.url, migrating=True)
        try:
            with engine.execution_options(writing=True).begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                if self._sqlite_file is not None and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise DatabaseError(f"{self._shown()}: a migration would have left rows without their run")
        except SQLAlchemyError:
            # Without a file lock another process may have been first; then there is nothing left to do.
            if self._sqlite_file is not None or not self._is_current():
                raise
        finally:
            engine.dispose()


def _sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite address, None for other databases."""
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise DatabaseError(
            "PEFT_LAB_DATABASE_URL: must name a SQLite file, such as sqlite:////home/me/lab.sqlite3, because several "
            "processes share it"
        )
    return Path(url.database).absolute()


def _create_engine(url: URL, *, migrating: bool = False) -> Engine:
    # NaN is not JSON, and other databases refuse it: fail here and not when it is read back.
    options: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False, ensure_ascii=False)}
    if migrating:
        options["poolclass"] = NullPool
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, **options)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, **options)

    @event.listens_for(engine, "connect")
    def _prepare(dbapi_connection: Any, _record: Any) -> None:
        # The driver must not emit BEGIN by itself: it leaves it out before SELECT and DDL (SQLAlchemy's documented way
        # for Python 3.11; the driver's own autocommit attribute came with 3.12).
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA synchronous=FULL")
        # A migration that rebuilds a table drops the old one, which would take the rows that refer to it along.
        dbapi_connection.execute(f"PRAGMA foreign_keys={'OFF' if migrating else 'ON'}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Taking the write lock late, after a read, fails at once with "database is locked" and ignores the timeout.
        writing = connection.get_execution_options().get("writing", False)
        if migrating:
            # The file remembers this. It cannot be changed inside a transaction, so here is the place.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if writing else 'ON'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _reason(error: SQLAlchemyError) -> str:
    """One clause that a person can act on, from the driver's own words."""
    words = _first_line(getattr(error, "orig", None) or error)
    known = {
        "file is not a database": "is not a database; move it away or set PEFT_LAB_HOME to another folder",
        "unable to open database file": "cannot be opened; check that it is a file you may read and write",
        "attempt to write a readonly database": "cannot be written; check the permissions of the file and its folder",
        "database disk image is malformed": "is damaged; move it away and restore a copy",
    }
    return known.get(words, f"cannot be opened: {words}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
