"""What people did, as the database keeps it."""

from __future__ import annotations

import pytest

from db import actions
from db.session import Database


def test_actions_are_kept_in_order_with_who_what_and_which_runs(database: Database) -> None:
    with database.writing() as session:
        actions.record(session, "root", "launch", [3, 1, 2, 9], "Init: LoRA")
        actions.record(session, "ada@example.org", "prune", detail="the samples of 4 runs")
    with database.reading() as session:
        newest, first = actions.recent(session)
        assert [row.action for row in actions.recent(session, limit=1)] == ["prune"]
    assert (first.person, first.action, first.run_ids, first.detail) == ("root", "launch", "1-3, 9", "Init: LoRA")
    assert (newest.person, newest.run_ids) == ("ada@example.org", "")
    assert 0 <= newest.done_at - first.done_at < 5


def test_a_change_that_is_rolled_back_leaves_no_record(database: Database) -> None:
    def delete_and_fail() -> None:
        with database.writing() as session:
            actions.record(session, "root", "delete", [1])
            raise RuntimeError("something in between")

    with pytest.raises(RuntimeError, match="in between"):
        delete_and_fail()
    with database.reading() as session:
        assert actions.recent(session) == []


def test_a_file_name_with_control_characters_is_one_short_line(database: Database) -> None:
    with database.writing() as session:
        actions.record(session, "root", "import", [1], "a\nb\0c\ud800" + "x" * 1000)
    with database.reading() as session:
        (row,) = actions.recent(session)
    assert row.detail.startswith("abcxxx")
    assert len(row.detail) == 500
