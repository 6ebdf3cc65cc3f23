"""Whole copies of the SQLite file: made while others write, checked before they count, put back in one step.

Works on files and on the schema's revision; knows no table and opens no session. Copies the database only, not the
folders of the runs. Other databases than SQLite have tools of their own for this.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from db.session import (
    BUSY_TIMEOUT_S,
    MIGRATION_TIMEOUT_S,
    VERSION_TABLE,
    DatabaseError,
    DatabaseTooNew,
    migration_lock,
    newer_schema,
    schema_revisions,
)

KEPT_BEFORE_MIGRATIONS = 5
_SIDE_FILES = ("-wal", "-shm", "-journal")


def folder_of(database_file: Path) -> Path:
    """Where the backups of a database are: ``backups`` beside it, so by default in ``PEFT_LAB_HOME``."""
    return database_file.parent / "backups"


def newest(database_file: Path) -> Path | None:
    """The backup of a database that was made last, by its name; None when there is none."""
    return max(folder_of(database_file).glob(f"{database_file.stem}-*.sqlite3"), default=None)


def back_up(database_file: Path) -> Path:
    """Copy the database as it is at one moment, while others read and write it.

    Returns:
        The backup, named by its UTC time. It needs no other file beside it, and none is ever replaced.

    Raises:
        DatabaseError: when it cannot be written or the copy is not a whole database of ours. Then there is no backup.
    """
    return _back_up(database_file, "")


def back_up_before(database_file: Path, revision: str) -> Path:
    """As ``back_up``, before a migration to ``revision``; the last five of these are kept and older ones removed."""
    made = _back_up(database_file, f"-before-{revision}")
    others = sorted(folder_of(database_file).glob(f"{database_file.stem}-*-before-*.sqlite3"))
    others.remove(made)  # by name not the newest if the clock was set back
    for old in others[: -(KEPT_BEFORE_MIGRATIONS - 1)]:
        old.unlink(missing_ok=True)
    return made


def restore(backup: Path, database_file: Path, supervisor_lock: Path) -> Path | None:
    """Put a backup in the database's place, in one step, so that a crash leaves either the old or the new one whole.

    Args:
        backup: a backup, or any other database file of PEFT Lab. Stays as it is.
        database_file: the database to replace. It need not exist and may be damaged.
        supervisor_lock: the file that a supervisor of this database locks. Held meanwhile, so that none starts.

    Returns:
        Where the replaced database is kept: beside the new one. None when there was none.

    Raises:
        DatabaseTooNew, DatabaseError: when the file cannot be used or the database is in use. Nothing is changed then.
    """
    if not backup.is_file():
        raise DatabaseError(f"{backup}: there is no such file")
    if database_file.exists() and backup.samefile(database_file):
        raise DatabaseError(f"{backup}: is the database itself; name a backup of it")
    part = database_file.with_name(f"{database_file.name}.restoring")
    try:
        database_file.parent.mkdir(parents=True, exist_ok=True)
        with _no_supervisor(supervisor_lock), migration_lock(database_file):
            _remove(part)
            try:
                _copy(backup, part)
                check(part, named=backup)
                replaced = _set_aside(database_file, part)
                os.replace(part, database_file)
                _sync(database_file.parent)
            finally:
                _remove(part)
    except Timeout:
        raise DatabaseError(
            f"{database_file}: another process has been migrating this database for {MIGRATION_TIMEOUT_S:.0f} s"
        ) from None
    except sqlite3.Error as error:
        raise DatabaseError(f"{backup}: {_why(error)}") from None
    except OSError as error:
        raise DatabaseError(f"{database_file}: cannot be replaced: {error.strerror or error}") from None
    return replaced


def check(path: Path, *, named: Path | None = None) -> str:
    """The schema revision of a database file, once it is known to be one of ours and whole.

    Args:
        path: the file, which is only read.
        named: how messages name it, where the person gave another file.

    Raises:
        DatabaseTooNew: when a newer PEFT Lab has written it.
        DatabaseError: when it is damaged, no database, or of another program.
    """
    shown = named or path
    try:
        with closing(_connect(path, "ro")) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if VERSION_TABLE not in tables:
                raise DatabaseError(f"{shown}: is no database of PEFT Lab")
            (revision,) = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone() or (None,)
            if revision is None:
                raise DatabaseError(f"{shown}: is no database of PEFT Lab")
            if revision not in schema_revisions():
                raise DatabaseTooNew(f"{shown}: {newer_schema(revision)}; update PEFT Lab")
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise DatabaseError(f"{shown}: is damaged ({found.splitlines()[-1]})")
    except sqlite3.Error as error:
        raise DatabaseError(f"{shown}: {_why(error)}") from None
    return str(revision)


def _back_up(database_file: Path, suffix: str) -> Path:
    if not database_file.is_file():
        raise DatabaseError(f"{database_file}: there is no database to back up")
    folder = folder_of(database_file)
    name = f"{database_file.stem}-{_now()}{suffix}.sqlite3"
    part = folder / f".{name}.part"
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / ".lock"):
            # Nobody else writes here now: what is unfinished was left by a process that was killed.
            for left in folder.glob(".*.part*"):
                left.unlink(missing_ok=True)
            try:
                _copy(database_file, part)
                check(part, named=database_file)
                os.replace(part, folder / name)
                _sync(folder)
            finally:
                _remove(part)
    except sqlite3.Error as error:
        raise DatabaseError(f"{database_file}: cannot be backed up into {folder}: {_why(error)}") from None
    except OSError as error:
        raise DatabaseError(f"{database_file}: cannot be backed up into {folder}: {error.strerror or error}") from None
    return folder / name


def _copy(source: Path, target: Path) -> None:
    """Copy one state of ``source``, what is still in its write-ahead log included, into a file that stands alone."""
    with closing(_connect(source, "ro")) as reader, closing(_connect(target, "rwc")) as writer:
        shutil.copymode(source, target)
        # All pages in one step: in one read transaction, which no writer waits for. In several steps, each write of
        # another process would start the copy over.
        reader.backup(writer)
        writer.execute("PRAGMA journal_mode=DELETE")


def _set_aside(database_file: Path, successor: Path) -> Path | None:
    """Give the database a second name and take away what belongs to it alone; it stays in place until replaced."""
    replaced = database_file.with_name(f"{database_file.name}.replaced-{_now()}")
    is_there = database_file.exists()
    if is_there:
        _make_whole(database_file)
        shutil.copymode(database_file, successor)
        os.link(database_file, replaced)
    # What is left now belongs to a damaged or lost file. SQLite would apply a log that lies beside the restored one.
    for side in _SIDE_FILES:
        log = database_file.with_name(database_file.name + side)
        if log.exists():
            log.rename(replaced.with_name(replaced.name + side))
    return replaced if is_there else None


def _make_whole(database_file: Path) -> None:
    """Move the write-ahead log into the file. SQLite does that only where no other connection is open."""
    try:
        with closing(_connect(database_file, "rw", timeout_s=1.0)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise DatabaseError(
                f"{database_file}: is in use by another process; stop the dashboard and restore again"
            ) from None
        raise
    except sqlite3.DatabaseError:
        pass  # damaged, which is why it is replaced: keep it as it is, log and all


@contextmanager
def _no_supervisor(lock: Path) -> Iterator[None]:
    """Hold the supervisor's lock, so that none is at work and none starts."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock.read_text().strip()
            process, end = (f" (process {owner})", f", then `kill {owner}`,") if owner.isdigit() else ("", "")
            raise DatabaseError(
                f"restore: a supervisor{process} is at work; stop the dashboard{end} and restore again"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _connect(path: Path, mode: str, timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=timeout_s)


def _why(error: sqlite3.Error) -> str:
    known = {sqlite3.SQLITE_NOTADB: "is not a database", sqlite3.SQLITE_CORRUPT: "is damaged"}
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return known.get(code, str(error))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def _remove(part: Path) -> None:
    for side in ("", *_SIDE_FILES):
        part.with_name(part.name + side).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have the new name on the disk, too: without this it may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
