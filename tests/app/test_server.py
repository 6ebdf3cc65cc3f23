"""What the dashboard's server does before the first visit."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import server, state
from db.session import DatabaseError


def test_a_database_that_cannot_be_opened_keeps_no_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFT_LAB_DATABASE_URL", f"sqlite:///{tmp_path}")
    server.preload()
    with pytest.raises(DatabaseError):
        state.database()
