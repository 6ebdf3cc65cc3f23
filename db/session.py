"""Where the database is, how it is opened, and its two kinds of transaction.

Holds everything that is particular to SQLite (pragmas, BEGIN, file checks); what is particular to PostgreSQL is in
``db.postgresql``. Knows no table by name and runs no query of its own beyond the schema's version; queries live in
``db.queue`` and ``db.runs``.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from db import postgresql

REPOSITORY = Path(__file__).resolve().parent.parent
MIGRATIONS = Path(__file__).resolve().parent / "migrations"
VERSION_TABLE = "peft_lab_schema"
BUSY_TIMEOUT_S = 30.0
_CONNECTIONS, _KEPT_CONNECTIONS = 15, 2
#: SQLite's errors that say nothing of the data and may pass.
_PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
)
MIGRATION_TIMEOUT_S = 120.0
SETTING = "PEFT_LAB_DATABASE_URL"
_MIGRATED_FOR_LONG = f"another process has been migrating this database for {MIGRATION_TIMEOUT_S:.0f} s"


class DatabaseError(Exception):
    """The database cannot be used. The text is one sentence that says why and what would be right."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be used at the moment: locked, on a full disk, read-only, or its server does not answer.

    Nothing was changed; the same may be tried again.
    """


class DatabaseTooNew(DatabaseError):
    """A newer PEFT Lab has written this database; this one would misread it."""


@dataclass(frozen=True, slots=True)
class DatabaseSize:
    """What a database takes on disk: its file, the log of latest writes beside it, and what new rows may reuse.

    ``reusable_bytes`` is a part of ``file_bytes``. Of a server's database only ``file_bytes`` is known.
    """

    file_bytes: int
    log_bytes: int | None = None
    reusable_bytes: int | None = None


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


def newer_schema(revision: str) -> str:
    """The clause that says that a newer PEFT Lab has written a database."""
    return f"was written by a newer PEFT Lab (schema {revision}, this one knows up to {schema_revisions()[-1]})"


def migration_lock(database_file: Path) -> FileLock:
    """The lock that whoever migrates or replaces a SQLite file holds; raises ``filelock.Timeout``."""
    return FileLock(database_file.with_name(f"{database_file.name}.migrate.lock"), timeout=MIGRATION_TIMEOUT_S)


def open_database(url: str | None = None, *, migrate: bool = True, named: str = SETTING) -> Database:
    """Open the database, by default the configured one, and bring its schema up to date.

    Args:
        url: its SQLAlchemy URL.
        migrate: whether to bring its schema up to date, and so to connect at all.
        named: what messages about the address call it.

    Raises:
        DatabaseTooNew: when a newer PEFT Lab has written it.
        DatabaseError: when it is no database, not ours, or cannot be opened. The file stays as it is.
    """
    database = Database(url or database_url(), named)
    if migrate:
        try:
            database.upgrade()
        except BaseException:
            database.close()
            raise
    return database


class Database:
    """One database and its two kinds of transaction. May be shared by threads, not by forked processes."""

    def __init__(self, url: str, named: str = SETTING) -> None:
        try:
            self.url = make_url(url)
            self.sqlite_file = sqlite_file(self.url, named)
            self._engine = _create_engine(self.url)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            raise DatabaseError(f"{named}: {_why_unusable(url, error)}") from None
        self._is_postgresql = postgresql.is_postgresql(self.url)
        reading = self._engine.execution_options(**postgresql.READING) if self._is_postgresql else self._engine
        self._readers = sessionmaker(reading, expire_on_commit=False)
        self._writers = sessionmaker(self._engine.execution_options(writing=True), expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one consistent state and waits for no writer. Nothing can be written through it.

        Raises:
            DatabaseUnavailable: when it cannot be used at the moment.
            DatabaseError: when the file turns out to be damaged, or is another one than was opened.
        """
        with self._trouble_told(), self._readers() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose transaction commits at the end; an exception rolls everything back.

        SQLite has one writer at a time, from this transaction's first statement on. A server has several: what they
        must not do at once they keep apart by ``db.locks``.

        Raises:
            DatabaseError: as ``reading``.
        """
        with self._trouble_told(), self._writers.begin() as session:
            yield session

    def upgrade(self) -> None:
        """Apply the migrations that are missing. Safe when several processes start at once.

        Raises:
            DatabaseTooNew, DatabaseError: as ``open_database``.
        """
        with self._opening():
            if self.sqlite_file is not None:
                self.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            if self._is_current():
                return
            with self._migration_lock():
                if not self._is_current():
                    self._back_up_first()
                    self._migrate()

    def require_current(self) -> None:
        """Refuse a database that is not there or lacks migrations, and change nothing.

        Raises:
            DatabaseTooNew, DatabaseError: as ``open_database``.
        """
        with self._opening():
            if self.sqlite_file is not None and not self.sqlite_file.is_file():
                raise DatabaseError(f"{self}: there is no such file")
            if not self._is_current():
                raise DatabaseError(
                    f"{self}: has not the tables of this version; first run `python -m db upgrade` with "
                    f"{SETTING} set to its address"
                )

    def software(self) -> tuple[str, str]:
        """The name and version of what keeps the database. Asks the server where it is one."""
        if self.sqlite_file is not None:
            return "SQLite", sqlite3.sqlite_version
        with self.reading() as session:
            dialect = session.connection().dialect
        version = ".".join(str(part) for part in dialect.server_version_info or ())
        return ("PostgreSQL" if self._is_postgresql else dialect.name), version

    def size(self) -> DatabaseSize | None:
        """What the database takes on disk; None where its server does not say."""
        if self._is_postgresql:
            with self.reading() as session:
                return DatabaseSize(postgresql.size_bytes(session.connection()))
        if self.sqlite_file is None:
            return None
        with self.reading() as session:
            connection = session.connection()
            free_pages = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            page_bytes = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
        log = self.sqlite_file.with_name(self.sqlite_file.name + "-wal")
        # The last connection to close removes the log.
        log_bytes = log.stat().st_size if log.exists() else 0
        return DatabaseSize(self.sqlite_file.stat().st_size, log_bytes, free_pages * page_bytes)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()

    def __str__(self) -> str:
        """How messages name this database: the file, or the address without its password."""
        without = self.url.difference_update_query(["password"])
        return str(self.sqlite_file or without.render_as_string(hide_password=True))

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Turn whatever keeps a database from being opened into a sentence."""
        try:
            yield
        except Timeout:
            raise DatabaseError(f"{self}: {_MIGRATED_FOR_LONG}") from None
        except OSError as error:
            raise DatabaseError(f"{self}: cannot be opened: {error.strerror or error}") from None
        except SQLAlchemyError as error:
            if self._is_postgresql and postgresql.has_waited_in_vain(error):
                raise DatabaseError(f"{self}: {_MIGRATED_FOR_LONG}") from None
            passes = self._is_postgresql and postgresql.may_pass(error)
            kind = DatabaseUnavailable if passes else DatabaseError
            raise kind(f"{self}: {self._reason(error)}") from None

    @contextmanager
    def _trouble_told(self) -> Iterator[None]:
        """Turn the driver's errors about the database as a whole into a sentence that says how to go on."""
        try:
            yield
        except DBAPIError as error:
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DatabaseError(f"{self}: {self._reason(error)}") from error
            passes = self._is_postgresql and postgresql.may_pass(error)
            if code in _PASSING or passes or error.connection_invalidated:
                raise DatabaseUnavailable(f"{self}: {self._reason(error)}") from error
            raise

    def _reason(self, error: SQLAlchemyError) -> str:
        """One clause that a person can act on, from the driver's own words."""
        if self._is_postgresql:
            return postgresql.reason(error)
        words = _first_line(getattr(error, "orig", None) or error)
        damaged = {"file is not a database": "is not a database", "database disk image is malformed": "is damaged"}
        if words in damaged:
            return f"{damaged[words]} and was left as it is; {self._way_back()}"
        known = {
            "unable to open database file": "cannot be opened; check that it is a file you may read and write",
            "attempt to write a readonly database": "cannot be written; check what you may do with it and its folder",
            "database is locked": f"another process has kept it locked for {BUSY_TIMEOUT_S:.0f} s; try again",
            "database or disk is full": "cannot be written, because the disk is full; make room there and try again",
            "disk I/O error": "cannot be read or written, because the disk refuses; see what the system says of it",
        }
        return known.get(words, f"cannot be opened: {words}")

    def _way_back(self) -> str:
        """What to do about a file that cannot be used."""
        from db import backups

        newest = backups.newest(self.sqlite_file) if self.sqlite_file is not None else None
        if newest is None:
            return "there is no backup of it: move it away to start with an empty one"
        return f"to restore the newest backup, stop the dashboard and run: make restore FILE={shlex.quote(str(newest))}"

    def _migration_lock(self) -> AbstractContextManager[object]:
        if self.sqlite_file is None:
            return nullcontext()
        return migration_lock(self.sqlite_file)

    def _is_current(self) -> bool:
        """Whether nothing is left to migrate. Refuses what must not be migrated, and changes nothing."""
        with self._engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            if VERSION_TABLE not in tables:
                if tables:
                    other = "set PEFT_LAB_DATABASE_URL to one of its own"
                    if self.sqlite_file is not None:
                        other = f"set PEFT_LAB_HOME to another folder, or {self._way_back()}"
                    raise DatabaseError(f"{self}: holds the tables of another program and was left as it is; {other}")
                return False
            revision = _revision(connection)
            known = schema_revisions()
            if revision is not None and revision not in known:
                other = "PEFT_LAB_HOME to another folder"
                if self.sqlite_file is None:
                    other = "PEFT_LAB_DATABASE_URL to another database"
                raise DatabaseTooNew(f"{self}: {newer_schema(revision)}; update PEFT Lab or set {other}")
            if revision != known[-1]:
                return False
            return self.sqlite_file is None or connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"

    def _back_up_first(self) -> None:
        """Copy the file before its schema changes; nothing where it is new or lacks only its journal mode."""
        # Needs this module; and a start seldom needs it.
        from db import backups

        if self.sqlite_file is None:
            return
        with self._engine.connect() as connection:
            has_schema = VERSION_TABLE in inspect(connection).get_table_names()
            revision = _revision(connection) if has_schema else None
        head = schema_revisions()[-1]
        if revision not in (None, head):
            backups.back_up_before(self.sqlite_file, head)

    def _prepare_server(self, connection: Connection) -> None:
        """Wait until nobody else migrates; what is left to do is looked up after that."""
        postgresql.limit_waiting(connection, MIGRATION_TIMEOUT_S)
        postgresql.wait_for_turn(connection, "migrate")
        encoding = postgresql.encoding(connection)
        if encoding != "UTF8":
            raise DatabaseError(f"{self}: stores text as {encoding}; create it with the encoding UTF8")

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
                if self._is_postgresql:
                    self._prepare_server(connection)
                command.upgrade(config, "head")
                if self.sqlite_file is not None and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise DatabaseError(f"{self}: a migration would have left rows without their run")
        except SQLAlchemyError:
            # Without a file lock another process may have been first; then there is nothing left to do.
            if self.sqlite_file is not None or not self._is_current():
                raise
        finally:
            engine.dispose()


def _revision(connection: Connection) -> str | None:
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def sqlite_file(url: URL, named: str = SETTING) -> Path | None:
    """The file of a SQLite address, None for other databases. ``named`` is what messages call the address.

    Raises:
        DatabaseError: when the address is SQLite's but names no file.
    """
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise DatabaseError(
            f"{named}: must name a SQLite file, such as sqlite:////home/me/lab.sqlite3, because several "
            "processes share it"
        )
    return Path(url.database).absolute()


def _why_unusable(url: str, error: Exception) -> str:
    """What is wrong with a database address, and what would be right."""
    if url.startswith("postgres:"):
        return "cannot use this database address: it must start with postgresql://"
    if isinstance(error, ImportError) and url.startswith("postgresql"):
        return f"PostgreSQL's driver is not installed ({_first_line(error)}); install it with: make cluster"
    return f"cannot use this database address: {_first_line(error)}"


def _create_engine(url: URL, *, migrating: bool = False) -> Engine:
    # NaN is not JSON, and other databases refuse it: fail here and not when it is read back.
    options: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False, ensure_ascii=False)}
    if migrating:
        options["poolclass"] = NullPool
    if postgresql.is_postgresql(url):
        return postgresql.create(url, **options)
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, **options)
    path = Path(url.database or "").absolute()
    opened: list[tuple[int, int] | None] = []
    if not migrating:
        # As many at once as SQLAlchemy allows by itself, but few stay open: each keeps 2 MiB of the file's pages.
        options |= {"pool_size": _KEPT_CONNECTIONS, "max_overflow": _CONNECTIONS - _KEPT_CONNECTIONS}
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, **options)

    @event.listens_for(engine, "connect")
    def _prepare(dbapi_connection: Any, _record: Any) -> None:
        if not opened:
            opened.append(_identity(path))
        # The driver must not emit BEGIN by itself: it leaves it out before SELECT and DDL (SQLAlchemy's documented way
        # for Python 3.11; the driver's own autocommit attribute came with 3.12).
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA synchronous=FULL")
        # A migration that rebuilds a table drops the old one, which would take the rows that refer to it along.
        dbapi_connection.execute(f"PRAGMA foreign_keys={'OFF' if migrating else 'ON'}")

    @event.listens_for(engine, "checkout")
    def _is_still_the_file(_dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
        # What is written into a file that has lost its name is lost without an error, and one that has taken its name
        # was never checked.
        if [_identity(path)] != opened:
            opened[:] = [None]  # for good: a later file may get the number of the first
            raise DatabaseError(f"{path}: was moved away or replaced while it was open; nothing was written to either")

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


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that takes its name; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
