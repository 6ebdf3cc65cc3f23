"""What people do with stored runs: name, tag, note, archive, restore, and delete what is archived."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from db import runs
from db.runs import RunRow
from db.session import Database
from tests.app import stored
from tests.app.reading import words


def _page() -> None:
    import streamlit as st

    from app import state
    from app.widgets import manage
    from db import runs

    with state.database().reading() as session:
        rows = runs.list_runs(session, include_archived=True)
    with st.container(horizontal=True):
        manage.actions(rows)


def _dialog() -> None:
    from app import state
    from app.widgets import manage
    from db import runs

    with state.database().reading() as session:
        rows = runs.list_runs(session, include_archived=True)
    if rows:
        manage.confirm_deletion([row for row in rows if row.archived_at is not None])


@pytest.fixture
def page(database: Database) -> AppTest:
    """The actions on all runs there are."""
    return AppTest.from_function(_page, default_timeout=30)


@pytest.fixture
def dialog(database: Database) -> AppTest:
    """The dialog that asks whether to delete what is archived, which AppTest would close with the next click."""
    return AppTest.from_function(_dialog, default_timeout=30)


@pytest.fixture
def three(database: Database) -> Database:
    for seed in range(3):
        stored.store(database, stored.init_document(seed=seed), stored.result([1.0]))
    with database.writing() as session:
        runs.set_tags(session, [1, 2], ["paper"])
        runs.set_note(session, 1, "first")
    return database


def rows(database: Database) -> dict[int, RunRow]:
    with database.reading() as session:
        return {row.id: row for row in runs.list_runs(session, include_archived=True)}


def press(app: AppTest, key: str) -> AppTest:
    app.button(key=key).click().run()
    assert not app.exception, app.exception
    return app


def save(app: AppTest) -> None:
    app.get("form_submit_button")[0].click().run()
    assert not app.exception, app.exception


def field(app: AppTest, kind: str, label: str):
    return next(widget for widget in app.get(kind) if widget.label == label)


def test_no_runs_have_no_actions(page: AppTest) -> None:
    page.run()
    assert not page.button
    assert not page.exception


def test_several_runs_get_one_name_more_tags_and_more_note_at_once(page: AppTest, three: Database) -> None:
    page.run()
    field(page, "text_input", "Name").set_value("sweep A")
    field(page, "multiselect", "Add tags").set_value(["paper"])
    field(page, "text_area", "Add to the notes").set_value("later\0")
    save(page)
    assert {(row.name, row.tags) for row in rows(three).values()} == {("sweep A", ("paper",))}
    assert {run_id: row.note for run_id, row in rows(three).items()} == {1: "first\n\nlater", 2: "later", 3: "later"}


def test_fields_left_empty_change_nothing_on_several_runs(page: AppTest, three: Database) -> None:
    before = rows(three)
    page.run()
    save(page)
    assert rows(three) == before


def test_a_tag_is_taken_off_those_of_several_runs_that_have_it(page: AppTest, three: Database) -> None:
    page.run()
    assert field(page, "multiselect", "Remove tags").options == ["paper"]
    field(page, "multiselect", "Remove tags").set_value(["paper"])
    save(page)
    assert {row.tags for row in rows(three).values()} == {()}


def test_a_note_that_would_grow_too_long_is_refused_and_nothing_is_changed(page: AppTest, three: Database) -> None:
    with three.writing() as session:
        runs.set_note(session, 2, "x" * 19_999)
    before = rows(three)
    page.run()
    field(page, "text_input", "Name").set_value("new")
    field(page, "text_area", "Add to the notes").set_value("more")
    save(page)
    assert "Note: that of run 2 would have more than 20000 characters" in page.error[0].value
    assert rows(three) == before


def test_runs_are_archived_and_restored_together(page: AppTest, three: Database) -> None:
    page.run()
    press(page, "manage_archive")
    assert all(row.archived_at is not None for row in rows(three).values())
    press(page, "manage_restore")
    assert all(row.archived_at is None for row in rows(three).values())


def test_only_archived_runs_offer_to_be_deleted(page: AppTest, three: Database) -> None:
    page.run()
    assert "Delete" not in [button.label for button in page.button]
    with three.writing() as session:
        runs.archive(session, [2])
    page.run()
    press(page, "manage_delete")
    assert "Run 2:" in words(page)
    assert "Run 1:" not in words(page)


def test_deleting_asks_first_and_then_takes_the_run_its_numbers_and_its_folder(
    dialog: AppTest, three: Database, home: Path
) -> None:
    with three.writing() as session:
        runs.archive(session, [2])
    uids = {run_id: row.uid for run_id, row in rows(three).items()}
    for uid in uids.values():
        (home / "runs" / uid).mkdir(parents=True)
        (home / "runs" / uid / "log.txt").write_text("words")
    dialog.run()
    assert set(rows(three)) == {1, 2, 3}
    press(dialog, "manage_delete_now")
    assert set(rows(three)) == {1, 3}
    with three.reading() as session:
        assert runs.metric_values(session, [2]) == []
    assert {path.name for path in (home / "runs").iterdir()} == {uids[1], uids[3]}


def test_whoever_keeps_the_runs_loses_nothing(dialog: AppTest, three: Database) -> None:
    with three.writing() as session:
        runs.archive(session, [1, 2, 3])
    dialog.run()
    press(dialog, "manage_keep")
    assert set(rows(three)) == {1, 2, 3}


def test_the_dialog_names_five_runs_and_counts_the_rest(dialog: AppTest, database: Database) -> None:
    for seed in range(7):
        stored.store(database, stored.init_document(seed=seed), stored.result([1.0]))
    with database.writing() as session:
        runs.archive(session, range(1, 8))
    dialog.run()
    assert "7 runs with all numbers" in words(dialog)
    assert words(dialog).count("- Run ") == 5
    assert "and 2 more" in words(dialog)
