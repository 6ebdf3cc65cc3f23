"""The Queue: what runs with its progress and log, what waits, cancelling, what ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamlit.testing.v1 import AppTest

from app import formatting
from db import runs
from db.session import Database
from engine import trouble
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]


def states(database: Database) -> dict[int, str]:
    with database.reading() as session:
        return {row.id: row.state for row in runs.list_runs(session)}


def test_an_empty_queue_says_what_to_do_next_with_one_button(open_page: Open) -> None:
    app = open_page("queue")
    assert "Nothing runs and nothing waits" in words(app)
    assert [button.label for button in app.button] == ["Launch a run"]


def test_what_keeps_the_supervisor_from_its_work_is_said_as_long_as_it_does(open_page: Open, home: Path) -> None:
    trouble.tell(home, "/lab/*x*.sqlite3: cannot be written, because the disk is full")
    app = open_page("queue")
    assert "Worker waits" in words(app)
    said = "Runs and results wait until the database can be used: /lab/*x*.sqlite3: cannot be written"
    assert formatting.plain(said) in words(app)
    trouble.tell(home, "")
    app.run()
    assert "Worker ready" in words(app)
    assert "wait until" not in words(app)


def test_a_running_run_shows_phase_steps_time_and_the_end_of_its_log(
    open_page: Open, database: Database, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text("first line\nlast line\n")
    stored.store(
        database,
        stored.init_document(),
        None,
        folder=tmp_path,
        progress={"phase": "weights", "done": 77, "total": 154, "eta_s": None},
    )
    app = open_page("queue")
    (bar,) = app.get("progress")
    assert bar.value == 50
    assert "Weights · 77 of 154" in bar.text
    assert "last line" in app.code[0].value


def test_a_running_run_says_which_node_it_went_to(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), None, progress={"phase": "weights", "node": "north"})
    assert "cpu on north" in words(open_page("queue"))


def test_cancelling_a_running_run_asks_the_supervisor_and_says_so(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), None)
    app = open_page("queue")
    app.button(key=f"cancel_{run_id}").click().run()
    assert states(database)[run_id] == "running", "only the supervisor ends a running run"
    assert "being cancelled" in app.get("progress")[0].text
    assert app.button(key=f"cancel_{run_id}").disabled


def test_one_or_all_waiting_runs_can_be_cancelled(open_page: Open, database: Database) -> None:
    first, second, third = stored.queued(
        database, stored.init_document(), stored.init_document(dora=True), stored.init_document("gpt2")
    )
    app = open_page("queue")
    app.button(key=f"cancel_{second}").click().run()
    assert states(database) == {first: "queued", second: "cancelled", third: "queued"}
    app.button(key="cancel_all").click().run()
    assert set(states(database).values()) == {"cancelled"}


def test_what_ended_badly_is_listed_with_its_sentence(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.failure("lost", "The worker was ended by SIGKILL"))
    assert "The worker was ended by SIGKILL" in words(open_page("queue"))


def test_a_name_that_looks_like_markdown_stays_text(open_page: Open, database: Database) -> None:
    (run_id,) = stored.queued(database, stored.init_document())
    with database.writing() as session:
        runs.rename(session, run_id, "[click](http://example.org) :red[x]")
    assert "\\[click\\]" in words(open_page("queue"))


def test_a_long_queue_shows_its_start_and_says_how_many_more(open_page: Open, database: Database) -> None:
    stored.queued(database, *(stored.init_document("tiny-test", seed=seed) for seed in range(30)))
    app = open_page("queue")
    assert "30 runs waiting" in words(app)
    assert "and 5 more runs" in words(app)
    app.button(key="cancel_all").click().run()
    assert set(states(database).values()) == {"cancelled"}


def test_once_the_job_knows_what_is_left_the_bar_is_that_of_the_whole_run(open_page: Open, database: Database) -> None:
    progress = {"phase": "repeat 2 of 5", "done": 154, "total": 154, "eta_s": 4000.0}
    stored.store(database, stored.init_document(), None, progress=progress)
    (bar,) = open_page("queue").get("progress")
    assert bar.value == 0
    assert "about 1 h 07 min left" in bar.text


def test_a_lost_run_can_be_started_again_with_one_press(open_page: Open, database: Database) -> None:
    lost = stored.store(database, stored.init_document(), {"state": "lost", "error": {"kind": "lost", "text": "gone"}})
    app = open_page("queue")
    app.button(key=f"again_{lost}").click().run()
    assert sorted(states(database).values()) == ["lost", "queued"]


def test_a_lost_run_of_a_node_that_is_still_gone_is_not_queued_and_the_page_says_why(
    open_page: Open, database: Database
) -> None:
    stored.devices(database, stored.node("box", state="lost", problem="it does not answer"))
    lost = stored.store(
        database, stored.init_document(node="box"), {"state": "lost", "error": {"kind": "lost", "text": "gone"}}
    )
    app = open_page("queue")
    app.button(key=f"again_{lost}").click().run()
    assert list(states(database).values()) == ["lost"]
    assert formatting.plain("box takes no runs now: it does not answer") in words(app)


def test_a_lost_run_for_a_device_that_no_node_has_is_not_queued_and_the_page_says_what_there_is(
    open_page: Open, database: Database
) -> None:
    stored.devices(database, stored.node("box"))
    lost = stored.store(
        database, stored.init_document(device="cuda:1"), {"state": "lost", "error": {"kind": "lost", "text": "gone"}}
    )
    app = open_page("queue")
    app.button(key=f"again_{lost}").click().run()
    assert list(states(database).values()) == ["lost"]
    assert formatting.plain(f"no node has cuda:1; there is cpu ({stored.CPU['name']})") in words(app)


def test_waiting_runs_for_other_places_can_be_told_apart(open_page: Open, database: Database) -> None:
    stored.queued(database, stored.init_document(node="here"), stored.init_document(node="box"))
    shown = words(open_page("queue"))
    assert "cpu on here" in shown
    assert "cpu on box" in shown


def test_a_run_that_waits_for_an_absent_node_says_so(open_page: Open, database: Database) -> None:
    stored.queued(database, stored.init_document(node="box"))
    assert "waits for the node box, which is not there" in words(open_page("queue"))
