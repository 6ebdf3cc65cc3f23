"""What a visitor sees when the database file cannot be used: one sentence and the way back, never a traceback."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import state
from db import backups
from db.session import Database, open_database
from tests.app.conftest import MAIN


@pytest.fixture
def file(home: Path) -> Iterator[Path]:
    yield home / "peft-lab.sqlite3"
    state.forget_database()


def errors(app: AppTest) -> list[str]:
    assert not app.exception
    return [error.value.replace("\\", "") for error in app.error]


def visit() -> AppTest:
    return AppTest.from_file(str(MAIN), default_timeout=30).run()


def test_a_file_that_is_no_database_is_named_with_the_command_that_restores_it(database: Database, file: Path) -> None:
    backup = backups.back_up(file)
    database.close()
    file.write_bytes(b"hello")
    (sentence,) = errors(visit())
    assert sentence.startswith(f"{file}: is not a database and was left as it is;")
    assert sentence.endswith(f"make restore FILE={backup}")
    assert file.read_bytes() == b"hello"


def test_the_database_of_another_program_is_left_to_it(home: Path, file: Path) -> None:
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE bookmarks (id INTEGER)")
    other.close()
    before = file.read_bytes()
    (sentence,) = errors(visit())
    assert "holds the tables of another program" in sentence
    assert file.read_bytes() == before


def test_a_file_that_is_replaced_while_pages_are_open_is_told_once_and_then_opened(
    open_page: Callable[..., AppTest], database: Database, file: Path
) -> None:
    app = open_page("runs")
    other = file.with_name("other.sqlite3")
    shutil.copy(backups.back_up(file), other)
    database.close()
    os.replace(other, file)
    assert any("was moved away or replaced while it was open" in sentence for sentence in errors(app.run()))
    assert errors(app.run()) == []
    open_database().close()
