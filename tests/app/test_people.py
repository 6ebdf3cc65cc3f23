"""Who may only look changes nothing, by no way that a page has; what the others do is recorded."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import formatting, people
from app.access import Connection
from db import actions, runs, transfer
from db.actions import ActionRow
from db.session import Database
from engine.__main__ import main
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]
ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = Connection("0.0.0.0", "192.0.2.9", {"host": "lab.example.org", "origin": "http://lab.example.org"})
REFUSAL = "Only who is on its own machine may change things here"


@pytest.fixture
def from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are visited from another machine."""
    monkeypatch.setattr(people, "connection", lambda: ELSEWHERE)


@pytest.fixture
def some_runs(database: Database) -> Database:
    """Two ended runs, one of them archived, and a queued one."""
    for seed in range(2):
        stored.store(database, stored.init_document(seed=seed), stored.result([1.0]))
    stored.queued(database, stored.init_document(seed=2))
    with database.writing() as session:
        runs.archive(session, [2])
    return database


def everything(database: Database) -> object:
    """What people could change."""
    with database.reading() as session:
        rows = runs.list_runs(session, include_archived=True)
        return [(row.id, row.state, row.name, row.note, row.tags, row.archived_at) for row in rows]


def records(database: Database) -> list[ActionRow]:
    with database.reading() as session:
        return list(actions.recent(session))


def _deeds() -> None:
    """Every function that pages call to change something; each says what became of it."""
    import streamlit as st

    from app import state
    from app.widgets import launching, manage, predictions, progress, pruning, samples
    from app.widgets.importing import _store
    from engine.spec import parse_spec

    spec = parse_spec({"model": "tiny-test"})
    deeds = {
        "launch": lambda: launching.launch([spec]),
        "cancel": lambda: progress.cancel([3]),
        "archive": lambda: manage._archive([1]),
        "restore": lambda: manage._restore([2]),
        "delete": lambda: manage.delete([2]),
        "load": samples.load,
        "remove": samples.remove,
        "prune": lambda: pruning.prune(pruning.OldSamples((1,), 1, 1), pruning.OldFolders((), 0)),
        "import": lambda: _store("x.json", st.session_state["file"], st.empty()),
        "predict": lambda: predictions.ask([spec]),
    }
    for name, deed in deeds.items():
        try:
            st.text(f"{name}: {deed()}")
        except Exception as error:
            st.text(f"{name}: {type(error).__name__}")
    with state.database().reading() as session:
        session.connection()


@pytest.mark.usefixtures("from_elsewhere")
def test_no_function_of_a_page_changes_anything_for_who_may_only_look(some_runs: Database) -> None:
    before = everything(some_runs)
    with some_runs.reading() as session:
        document = transfer.export_document(session, 1)
    app = AppTest.from_function(_deeds, default_timeout=30)
    app.session_state["file"] = gzip.compress(json.dumps({**document, "uid": "0" * 32}).encode())
    app.run()
    said = dict(text.value.split(": ", 1) for text in app.text)
    assert len(said) == 10
    refused = {name for name, outcome in said.items() if outcome == "NotAllowed"}
    assert refused == {"launch", "delete", "load", "remove", "prune"}
    assert all(said[name] == "None" for name in ("cancel", "archive", "restore"))
    assert REFUSAL in said["import"]
    assert said["predict"] == "[]"
    assert len(app.toast) == 3
    assert everything(some_runs) == before
    assert records(some_runs) == []


@pytest.mark.parametrize(
    ("page", "key"),
    [("overview", "measure_here"), ("overview", "samples_load"), ("runs", "import_open"), ("queue", "cancel_3")],
)
def test_buttons_are_grey_with_the_reason_and_one_that_was_shown_before_does_nothing(
    open_page: Open, database: Database, monkeypatch: pytest.MonkeyPatch, page: str, key: str
) -> None:
    if page != "overview":
        stored.store(database, stored.init_document(), stored.result([1.0]))
        stored.queued(database, stored.init_document(seed=2), stored.init_document(seed=3))
    before = everything(database)
    app = open_page(page)
    assert not app.button(key=key).disabled
    monkeypatch.setattr(people, "connection", lambda: ELSEWHERE)
    # Callbacks come before the page is drawn anew.
    app.button(key=key).click().run()
    assert not app.exception
    assert everything(database) == before
    assert records(database) == []
    assert app.button(key=key).disabled
    assert REFUSAL in app.button(key=key).help


@pytest.mark.usefixtures("from_elsewhere")
@pytest.mark.parametrize("page", ["launch", "merge_files"])
def test_forms_that_are_of_no_use_to_who_may_only_look_say_so_instead(open_page: Open, page: str) -> None:
    app = open_page(page)
    assert REFUSAL in words(app)
    assert not app.text_input
    assert not app.multiselect


@pytest.mark.usefixtures("from_elsewhere")
def test_every_page_can_be_looked_at_from_elsewhere_and_asks_for_nothing(open_page: Open, some_runs: Database) -> None:
    before = everything(some_runs)
    for page, query in {"run": {"id": "1"}, "case": {"id": "merge"}, "queue": {}}.items():
        assert "View only" in words(open_page(page, **query)), page
    assert "Being predicted" not in words(open_page("predict"))
    assert everything(some_runs) == before


@pytest.mark.usefixtures("from_elsewhere")
def test_who_may_only_look_is_told_what_was_done_but_not_by_whom(open_page: Open, database: Database) -> None:
    with database.writing() as session:
        actions.record(session, "ada@example.org", "delete", [4])
    app = open_page("system")
    (table,) = [frame.value for frame in app.dataframe if "what" in frame.value]
    assert table["what"].tolist() == ["delete"]
    assert "who" not in table
    assert "prune_preview" not in {button.key for button in app.button}


@pytest.mark.usefixtures("from_elsewhere")
@pytest.mark.parametrize(
    ("email", "is_verified", "may"),
    [("ada@example.org", True, True), ("ada@example.org", False, False), ("bob@example.org", True, False)],
)
def test_who_is_signed_in_and_on_the_list_may_launch_and_is_recorded_by_address(
    open_page: Open, database: Database, monkeypatch: pytest.MonkeyPatch, email: str, is_verified: bool, may: bool
) -> None:
    monkeypatch.setenv("PEFT_LAB_LAUNCHERS", "ada@example.org, eve@example.org")
    app = open_page("overview")
    app.user = {"is_logged_in": True, "email": email, "email_verified": is_verified}
    app.run()
    assert app.button(key="sign_out").label == "Sign out"
    assert formatting.plain(email) in words(app)
    assert app.button(key="measure_here").disabled is not may
    if may:
        app.button(key="measure_here").click().run()
        assert not app.exception
    assert [(row.person, row.action, row.run_ids) for row in records(database)] == (
        [(email, "launch", "1-4")] if may else []
    )


def test_what_is_done_on_this_machine_is_recorded_under_the_name_of_its_account(
    open_page: Open, database: Database
) -> None:
    app = open_page("overview")
    assert "View only" not in words(app)
    assert "sign_in_" not in {button.key for button in app.button}
    app.button(key="measure_here").click().run()
    app.switch_page("views/queue.py").run()
    app.button(key="cancel_all").click().run()
    assert not app.exception
    found = records(database)
    assert [row.action for row in found] == ["cancel", "launch"]
    assert {row.person for row in found} == {actions.os_user()}
    assert found[1].detail == "LoRA against DoRA"
    app.switch_page("views/system.py").run()
    (table,) = [frame.value for frame in app.dataframe if "what" in frame.value]
    assert table["who"].unique().tolist() == [actions.os_user()]
    assert table["runs"].tolist() == ["1-4", "1-4"]


def test_everything_that_can_be_done_to_stored_runs_is_recorded(some_runs: Database) -> None:
    with some_runs.reading() as session:
        document = transfer.export_document(session, 1)
    app = AppTest.from_function(_deeds, default_timeout=30)
    app.session_state["file"] = gzip.compress(json.dumps({**document, "uid": "0" * 32}).encode())
    app.run()
    assert not app.exception
    found = {row.action: row for row in records(some_runs)}
    # What is restored cannot be deleted, and a prediction is not a thing that somebody did.
    assert list(found) == [
        "import",
        "prune",
        "remove sample data",
        "load sample data",
        "restore",
        "archive",
        "cancel",
        "launch",
    ]
    assert (found["launch"].run_ids, found["cancel"].run_ids, found["restore"].run_ids) == ("4", "3", "2")
    assert found["import"].detail == "x.json"
    assert found["prune"].detail == "the samples of 1 run"
    assert found["load sample data"].run_ids == found["remove sample data"].run_ids != ""


def test_an_import_on_the_command_line_is_recorded_once_under_its_account(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.store(database, stored.init_document(), stored.result([1.0]))
    with database.reading() as session:
        document = transfer.export_document(session, 1)
    (tmp_path / "from-the-gpu-box.json").write_text(json.dumps({**document, "uid": "0" * 32}))
    for is_new in (True, False):
        assert main(["import", str(tmp_path / "from-the-gpu-box.json")]) == 0
        assert json.loads(capsys.readouterr().out)[0]["created"] is is_new
    (row,) = records(database)
    assert (row.person, row.action, row.run_ids) == (actions.os_user(), "import", "2")
    assert row.detail == "from-the-gpu-box.json"


def test_pages_write_through_the_one_gate_only() -> None:
    """Sessions that write are opened there alone; pruning, which opens its own, stands behind the gate's record."""
    found = {
        (path.name, writer)
        for path in (ROOT / "app").rglob("*.py")
        for writer in re.findall(r"\b(writing|delete_samples)\(", path.read_text())
    }
    assert found == {("people.py", "writing"), ("pruning.py", "delete_samples")}
