"""System: the machine, the supervisor, what is stored, and pruning with a preview that asks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from app import formatting, host
from app.host import Host, Limits, Process
from db import runs
from db.models import Run
from db.session import Database
from engine import trouble
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]
GIB = 2**30
DAY_S = 86_400


def _dialog() -> None:
    from app import state
    from app.widgets import pruning

    pruning.preview(state.now_s() - 30 * 86_400, (pruning.SAMPLES, pruning.LOGS))


@pytest.fixture
def dialog(database: Database) -> AppTest:
    """The preview by itself: AppTest closes a dialog that a page opened with the next click."""
    return AppTest.from_function(_dialog, default_timeout=30)


@pytest.fixture
def old_run(database: Database, home: Path) -> int:
    """A run that ended 90 days ago, with samples and a log of 4 KiB."""
    run_id = stored.store(database, stored.init_document(), stored.result([0.2, 0.3]))
    with database.writing() as session:
        session.execute(update(Run).where(Run.id == run_id).values(finished_at=time.time() - 90 * DAY_S))
    folder = folder_of(database, home, run_id)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_bytes(b"x" * 4096)
    return run_id


def folder_of(database: Database, home: Path, run_id: int) -> Path:
    with database.reading() as session:
        (row,) = runs.get_rows(session, [run_id])
    return home / "runs" / row.uid


def numbers(app: AppTest) -> dict[str, str]:
    return {metric.label: f"{metric.value} {metric.delta}" for metric in app.metric}


def test_an_empty_home_shows_the_machine_and_what_to_do_next(open_page: Open) -> None:
    app = open_page("system")
    assert "No run is stored yet" in words(app)
    assert app.button(key="to_launch").label == "Launch a run"
    assert list(numbers(app)) == ["Supervisor", "Free memory", "Free disk", "Database"]
    assert "Test CPU, 2 cores" in app.dataframe[0].value["name"].tolist()
    assert app.dataframe[0].value["memory_bytes"].tolist() == ["16.0 GiB"]
    assert "The first run that is measured here" in words(app)


def test_the_queue_is_shown_by_state(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.result([0.2]))
    stored.store(database, stored.init_document(), stored.failure("failed", "no"))
    stored.queued(database, *(stored.init_document("gpt2", seed=seed) for seed in range(3)))
    app = open_page("system")
    for badge in ("Queued 3", "Running 0", "Succeeded 1", "Failed 1"):
        assert badge in words(app)
    assert "Cancelled" not in words(app)


def test_a_supervisor_that_went_silent_is_warned_of(open_page: Open, home: Path) -> None:
    assert numbers(open_page("system"))["Supervisor"] == "Ready heartbeat just now"
    five_minutes_ago = time.time() - 300
    os.utime(home / "supervisor.lock", (five_minutes_ago, five_minutes_ago))
    app = open_page("system")
    assert numbers(app)["Supervisor"] == "Ready heartbeat 5 min ago"
    assert "The supervisor has given no sign for 5 min" in app.error[0].value


def test_a_supervisor_that_waits_for_the_database_says_why(open_page: Open, home: Path) -> None:
    trouble.tell(home, "lab.sqlite3: another process has kept it locked for 30 s; try again")
    app = open_page("system")
    assert numbers(app)["Supervisor"] == "Waiting heartbeat just now"
    assert [shown.value for shown in app.error] == [
        formatting.plain(
            "Runs and results wait until the database can be used: "
            "lab.sqlite3: another process has kept it locked for 30 s; try again."
        )
    ]


def test_settings_are_those_that_the_newest_run_here_recorded(open_page: Open, database: Database) -> None:
    for threshold in ("1", "33554432"):
        outcome = stored.result([0.2])
        variables = {"MALLOC_MMAP_THRESHOLD_": threshold}
        outcome["environment"] = {**stored.ENVIRONMENT, "variables": variables, "transparent_huge_pages": "madvise"}
        stored.store(database, stored.init_document(), outcome)
    settings = open_page("system").table[1].value
    text = settings.to_string()
    assert "33554432" in text
    assert "madvise" in text


def test_a_program_named_like_markdown_stays_text(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Host(16 * GIB, GIB, 0, GIB, GIB * 9, 2, 2, (), Limits(), (Process(5, "[x](http://example.org)", 0.9, 1),))
    monkeypatch.setattr(host, "look", lambda *_: seen)
    (warning,) = open_page("system").warning
    assert "\\[x\\]" in warning.value


def test_the_preview_says_what_would_go_and_keeping_changes_nothing(
    dialog: AppTest, database: Database, home: Path, old_run: int
) -> None:
    dialog.run()
    assert "the memory samples of **1 run**: 180 samples, about" in words(dialog)
    assert "the logs and files of **1 run**: 4.00 KiB" in words(dialog)
    dialog.button(key="prune_keep").click().run()
    with database.reading() as session:
        run = runs.get_run(session, old_run)
    assert run is not None
    assert len(run.samples) == 180
    assert (folder_of(database, home, old_run) / "log.txt").exists()


def test_pruning_takes_samples_and_logs_and_the_runs_page_shows_the_rest(
    dialog: AppTest, open_page: Open, database: Database, home: Path, old_run: int
) -> None:
    new = stored.store(database, stored.init_document(), stored.result([0.2]))
    dialog.run()
    dialog.button(key="prune_now").click().run()
    assert not dialog.exception
    with database.reading() as session:
        pruned, kept = runs.get_run(session, old_run), runs.get_run(session, new)
    assert pruned is not None
    assert kept is not None
    assert pruned.samples == ()
    assert kept.samples
    assert len(pruned.metrics) > 5
    assert not folder_of(database, home, old_run).exists()
    page = open_page("run", id=str(old_run))
    assert "Init time" in numbers(page)


def test_where_nothing_is_old_the_preview_says_so(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.result([0.2]))
    app = open_page("system")
    app.button(key="prune_preview").click().run()
    assert not app.exception
    assert "has memory samples or logs and files left" in words(app)


def test_one_machine_alone_has_no_table_of_nodes(open_page: Open) -> None:
    assert not any("problem" in table.value for table in open_page("system").dataframe)


def test_several_nodes_are_listed_with_what_is_wrong_with_them(open_page: Open, database: Database) -> None:
    stored.devices(database, stored.node("old", state="differs", problem="torch 2.12.0 is not the head's 2.13.0"))
    tables = [table.value for table in open_page("system").dataframe]
    nodes = next(frame for frame in tables if "problem" in frame)
    assert list(nodes["node"]) == ["here (head)", "old"]
    assert list(nodes["problem"]) == ["", "torch 2.12.0 is not the head's 2.13.0"]
    devices = next(frame for frame in tables if "dtypes" in frame)
    assert list(devices["node"]) == ["here", "old"]
