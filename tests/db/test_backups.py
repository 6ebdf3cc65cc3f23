"""Backing a real SQLite file up while another process writes, putting it back, and what is refused."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db import backups, queue
from db.session import (
    REPOSITORY,
    VERSION_TABLE,
    Database,
    DatabaseError,
    open_database,
    schema_revisions,
)
from tests.db.conftest import new_run
from tests.db.test_migrations import migrate_to


@pytest.fixture
def url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "supervisor.lock"


def queued(file: Path) -> int:
    database = open_database(f"sqlite:///{file}", migrate=False)
    with database.reading() as session:
        depth = queue.queue_depth(session)
    database.close()
    return depth


def damage(file: Path) -> bytes:
    """Overwrite the second half of a database that is big enough, and give what the file holds."""
    content = bytearray(file.read_bytes())
    assert len(content) > 256 * 1024
    content[len(content) // 2 :] = b"\xa5" * (len(content) - len(content) // 2)
    file.write_bytes(content)
    return bytes(content)


def enqueue_pairs(url: str, stop: Any) -> None:
    database = open_database(url)
    while not stop.is_set():
        with database.writing() as session:
            queue.enqueue(session, [new_run(0), new_run(1)])
    database.close()


@contextmanager
def writing_process(url: str, file: Path, eventually: Callable[..., None]) -> Iterator[None]:
    """Another process that stores two runs in each transaction, as fast as it can."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    process = spawn.Process(target=enqueue_pairs, args=(url, stop))
    process.start()
    eventually(lambda: queued(file) > 0, "the other process has written")
    try:
        yield
    finally:
        stop.set()
        process.join(timeout=30)
    assert process.exitcode == 0


def test_backups_made_while_another_process_writes_are_whole_and_stop_no_writer(
    url: str, file: Path, database: Database, eventually: Callable[..., None]
) -> None:
    depths = []
    with writing_process(url, file, eventually):
        for _ in range(5):
            depths.append(queued(backups.back_up(file)))
            before = queued(file)
            eventually(lambda before=before: queued(file) > before, "the other process goes on writing")
    assert all(depth > 0 and depth % 2 == 0 for depth in depths)  # no transaction is in a backup by half
    assert depths == sorted(set(depths))
    made = sorted(backups.folder_of(file).glob("*.sqlite3"))
    assert [queued(backup) for backup in made] == depths


def test_a_backup_is_one_file_that_nobody_else_may_read_if_the_database_is(file: Path, enqueue) -> None:
    enqueue()
    file.chmod(0o600)
    backup = backups.back_up(file)
    visible = [path for path in backup.parent.iterdir() if not path.name.startswith(".")]
    assert visible == [backup]
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_the_copy_of_a_damaged_database_does_not_count_as_a_backup(file: Path, database: Database, enqueue) -> None:
    enqueue(500)
    database.close()
    damage(file)
    with pytest.raises(DatabaseError, match=r"^[^\n]*lab\.sqlite3: [^\n]*is damaged[^\n]*$"):
        backups.back_up(file)
    assert backups.newest(file) is None
    assert not list(backups.folder_of(file).glob(".*part*"))


def test_what_a_killed_backup_left_is_no_backup_and_goes_with_the_next(file: Path, database: Database) -> None:
    folder = backups.folder_of(file)
    folder.mkdir()
    left = folder / ".lab-20200101T000000.000000Z.sqlite3.part"
    left.write_bytes(b"half")
    assert backups.newest(file) is None
    made = backups.back_up(file)
    assert backups.newest(file) == made
    assert not left.exists()


def test_a_backup_is_put_back_and_what_it_replaces_is_kept_whole(
    url: str, file: Path, lock: Path, database: Database, enqueue
) -> None:
    enqueue(2)
    backup = backups.back_up(file)
    enqueue(3)
    database.close()
    replaced = backups.restore(backup, file, lock)
    assert replaced is not None
    assert (queued(file), queued(replaced), queued(backup)) == (2, 5, 2)
    again = backups.restore(replaced, file, lock)
    assert again not in (None, replaced)
    assert queued(file) == 5


def test_a_database_that_is_gone_is_restored(file: Path, lock: Path, database: Database, enqueue) -> None:
    enqueue(2)
    backup = backups.back_up(file)
    enqueue(3)
    file.unlink()  # its write-ahead log stays behind and is no part of the backup
    assert file.with_name(file.name + "-wal").stat().st_size > 0
    assert backups.restore(backup, file, lock) is None
    assert queued(file) == 2


def test_a_damaged_database_is_replaced_and_kept_as_it_was(file: Path, lock: Path, database: Database, enqueue) -> None:
    enqueue(500)
    backup = backups.back_up(file)
    database.close()
    file.write_bytes(b"no database at all")
    replaced = backups.restore(backup, file, lock)
    assert replaced is not None
    assert replaced.read_bytes() == b"no database at all"
    assert queued(file) == 500


def test_nothing_is_restored_while_a_supervisor_is_at_work(file: Path, lock: Path, database: Database) -> None:
    backup = backups.back_up(file)
    lock.write_text("4711")
    descriptor = os.open(lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    database.close()
    before = file.read_bytes()
    with pytest.raises(DatabaseError, match=r"^restore: a supervisor \(process 4711\) is at work; stop [^\n]+$"):
        backups.restore(backup, file, lock)
    os.close(descriptor)
    assert file.read_bytes() == before
    assert backups.restore(backup, file, lock)


def test_nothing_is_restored_while_another_process_has_the_database_open(
    url: str, file: Path, lock: Path, database: Database, eventually: Callable[..., None]
) -> None:
    backup = backups.back_up(file)
    database.close()
    with writing_process(url, file, eventually):
        with pytest.raises(DatabaseError, match=r"^.*lab\.sqlite3: is in use by another process; [^\n]+$"):
            backups.restore(backup, file, lock)
        before = queued(file)
        eventually(lambda: queued(file) > before, "the other process goes on writing")
    assert [path.name for path in file.parent.glob("*.re*")] == []


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (id INTEGER)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        connection.commit()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(b""), "is no database of PEFT Lab"),
        (lambda path: path.write_bytes(b"hello, " * 500), "is not a database"),
        (lambda path: (path.unlink(), other_program(path)), "is no database of PEFT Lab"),
        (newer, r"was written by a newer PEFT Lab \(schema 9999, this one knows up to \d{4}\); update PEFT Lab"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), "is damaged"),
        (damage, "is damaged"),
    ],
)
def test_what_is_no_whole_backup_of_ours_is_refused_in_one_sentence_and_nothing_changes(
    spoil: Callable[[Path], object], sentence: str, file: Path, lock: Path, database: Database, enqueue
) -> None:
    enqueue(500)
    backup = backups.back_up(file)
    database.close()
    before = file.read_bytes()
    spoil(backup)
    with pytest.raises(DatabaseError, match=rf"^{backup}: {sentence}[^\n]*$"):
        backups.restore(backup, file, lock)
    assert file.read_bytes() == before
    assert not list(file.parent.glob(f"{file.name}.re*"))


def test_the_database_is_no_backup_of_itself(file: Path, lock: Path, database: Database) -> None:
    with pytest.raises(DatabaseError, match="is the database itself"):
        backups.restore(file, file, lock)


def test_a_restore_that_fails_at_its_last_step_leaves_the_database_in_place(
    file: Path, lock: Path, database: Database, enqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = backups.back_up(file)
    enqueue(3)
    database.close()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DatabaseError, match="cannot be replaced: No space left on device"):
        backups.restore(backup, file, lock)
    assert queued(file) == 3


def test_a_database_is_backed_up_before_it_is_migrated_and_only_then(url: str, file: Path) -> None:
    migrate_to(url, schema_revisions()[0])
    open_database(url).close()
    (made,) = backups.folder_of(file).glob("*.sqlite3")
    assert made.name.endswith(f"Z-before-{schema_revisions()[-1]}.sqlite3")
    assert backups.check(made) == schema_revisions()[0]
    assert backups.check(file) == schema_revisions()[-1]
    open_database(url).close()
    assert list(backups.folder_of(file).glob("*.sqlite3")) == [made]


def test_a_new_database_has_nothing_to_back_up(file: Path, database: Database) -> None:
    assert not backups.folder_of(file).exists()


def test_a_database_that_cannot_be_backed_up_is_not_migrated(url: str, file: Path) -> None:
    migrate_to(url, schema_revisions()[0])
    backups.folder_of(file).write_text("in the way")
    with pytest.raises(DatabaseError, match=r"^.*lab\.sqlite3: cannot be backed up into .*backups: File exists$"):
        open_database(url)
    assert backups.check(file) == schema_revisions()[0]


def test_the_last_five_backups_before_migrations_are_kept_and_all_that_somebody_asked_for(
    file: Path, database: Database
) -> None:
    asked = backups.back_up(file)
    made = [backups.back_up_before(file, "0009") for _ in range(7)]
    assert sorted(backups.folder_of(file).glob("*.sqlite3")) == [asked, *made[-5:]]


def test_a_backup_of_an_older_version_is_brought_up_to_date_when_it_is_restored(home: Path) -> None:
    file = home / "peft-lab.sqlite3"
    migrate_to(f"sqlite:///{file}", schema_revisions()[0])
    (backup := home / "old.sqlite3").write_bytes(file.read_bytes())
    done = run("restore", str(backup))
    assert done.returncode == 0, done.stderr
    assert backups.check(file) == schema_revisions()[-1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "db", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_commands_say_in_one_line_what_they_did_or_what_is_missing(home: Path) -> None:
    nothing = run("backup")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (1, 1)
    assert "there is no database to back up" in nothing.stderr
    open_database().close()
    done = run("backup")
    backup = Path(done.stdout.strip())
    assert (done.returncode, backup.parent) == (0, home / "backups")
    unnamed = run("restore")
    assert (unnamed.returncode, unnamed.stderr) == (1, f"restore: name a backup; the newest is FILE={backup}\n")
    restored = run("restore", str(backup))
    assert restored.returncode == 0
    assert restored.stdout.startswith(f"Restored {home / 'peft-lab.sqlite3'}; the replaced database is {home}")


def test_a_database_of_a_server_is_left_to_its_own_tools(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_LAB_DATABASE_URL", "postgresql://host/lab")
    done = run("backup")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is not SQLite" in done.stderr


def test_a_file_that_is_no_database_is_refused_with_the_command_that_restores_it(
    url: str, file: Path, database: Database
) -> None:
    backup = backups.back_up(file)
    database.close()
    file.write_bytes(b"hello")
    with pytest.raises(DatabaseError, match=f"is not a database and was left as it is; .*make restore FILE={backup}"):
        open_database(url)
    assert file.read_bytes() == b"hello"


def test_damage_that_shows_only_when_a_page_reads_is_a_sentence_with_the_way_back(
    url: str, file: Path, database: Database, enqueue
) -> None:
    enqueue(500)
    backup = backups.back_up(file)
    database.close()
    before = damage(file)
    opened = open_database(url)
    sentence = f"is damaged and was left as it is; .*make restore FILE={backup}"
    with pytest.raises(DatabaseError, match=sentence), opened.reading() as session:
        session.scalar(text("SELECT sum(length(spec)) FROM runs"))
    opened.close()
    assert file.read_bytes() == before


def test_nothing_is_written_into_a_file_that_took_the_place_of_the_open_one_or_that_lost_its_name(
    url: str, file: Path, database: Database, enqueue
) -> None:
    enqueue()
    other = file.with_name("other.sqlite3")
    shutil.copy(backups.back_up(file), other)
    os.replace(other, file)
    with pytest.raises(DatabaseError, match="was moved away or replaced while it was open"):
        enqueue()
    file.unlink()
    with pytest.raises(DatabaseError, match="was moved away or replaced while it was open"):
        enqueue()
