"""What the dashboard's server does before the first visit."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import server, state
from db import runs
from db.session import Database, DatabaseError
from tests.app import stored


def test_a_database_that_cannot_be_opened_keeps_no_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFT_LAB_DATABASE_URL", f"sqlite:///{tmp_path}")
    server.preload()
    with pytest.raises(DatabaseError):
        state.database()


def test_the_runs_page_has_run_before_its_first_visit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = stored.lora_and_dora(database)
    asked: list[list[int]] = []
    medians = runs.medians
    monkeypatch.setattr(
        runs, "medians", lambda session, found, fields: asked.append(sorted(found)) or medians(session, found, fields)
    )
    server.preload()
    assert asked == [sorted(ids)]


def test_a_page_that_breaks_keeps_no_server_from_starting(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.lora_and_dora(database)
    monkeypatch.delattr(runs, "medians")
    server.preload()
