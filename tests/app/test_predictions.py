"""Predictions on pages: known at once, asked for once, cancelled where a form moved on, and errors as answers."""

from __future__ import annotations

import time
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import state
from app.widgets import predictions as shown
from db import predictions, queue, runs
from db.session import Database
from engine.spec import Measured, parse_spec, prediction_key, spec_hash
from tests.app import predicted, stored


def train(length: int = 64, **fields: Any) -> Measured:
    document = stored.document("train", "tiny-test", train={"context_length": length}, **fields)
    spec = parse_spec(document)
    assert isinstance(spec, Measured)
    return spec


def predict(database: Database, spec: Measured, peak_bytes: float = 1000.0, card: str | None = None) -> None:
    peaks = {"peak_bytes": peak_bytes, "parameters_bytes": peak_bytes - 300, "activations_bytes": 300}
    course = [{"number": 0, "part": "forward", "bytes": {"parameters": peak_bytes - 300}}]
    predicted.store(database, spec.model_dump(mode="json"), peaks, card, course=course)


def requests(database: Database) -> list[runs.RunRow]:
    with database.reading() as session:
        return sorted(runs.list_runs(session, kinds=["predict"], include_archived=True), key=lambda row: row.id)


def end(database: Database, outcome: dict[str, Any]) -> None:
    """End the next waiting request this way."""
    with database.writing() as session:
        claimed = queue.claim(session, supervisor="1@1", devices=["cpu"], kinds=["predict"])
        assert claimed is not None
        queue.finish(session, claimed.id, outcome)


@pytest.mark.usefixtures("database")
def test_nothing_is_known_and_nothing_waits_before_anyone_asked() -> None:
    assert shown.known([train()]) == {}
    assert shown.waiting([train()]) == set()


def test_what_is_stored_is_known_with_peak_parts_and_course(database: Database) -> None:
    spec = train()
    predict(database, spec)
    found = shown.known([spec])[spec_hash(spec)]
    assert (found.peak_bytes, found.parts) == (1000, {"parameters": 700, "activations": 300})
    assert found.course == ()
    assert shown.known([spec], with_course=True)[spec_hash(spec)].course


def test_a_prediction_for_a_card_is_not_one_for_this_machine(database: Database) -> None:
    spec = train(device="cuda:0")
    predict(database, spec, card="h100-80gb")
    assert shown.known([spec]) == {}
    assert shown.known([spec], "h100-80gb")


def test_specs_that_differ_only_in_repeats_and_seed_share_a_prediction(database: Database) -> None:
    spec, other = train(), train(repeats=9, seed=3)
    predict(database, spec, 5000.0)
    assert shown.known([other])[spec_hash(other)].peak_bytes == 5000
    assert shown.ask([other]) == []


def test_asking_twice_queues_once(database: Database) -> None:
    specs = [train(64), train(128)]
    assert len(shown.ask(specs)) == 2
    assert shown.ask(specs) == []
    assert shown.waiting([*specs, train(32)]) == {spec_hash(spec) for spec in specs}
    asked = [one["train"]["context_length"] for row in requests(database) for one in row.spec["of"]]
    assert asked == [64, 128]


def test_many_specs_are_asked_for_in_a_few_requests_so_that_the_first_answers_come_soon(database: Database) -> None:
    shown.ask([train(length) for length in range(10, 20)])
    assert [len(row.spec["of"]) for row in requests(database)] == [1, 4, 4, 1]


def test_a_request_that_ended_without_an_answer_is_a_sentence_and_not_asked_for_again_by_itself(
    database: Database,
) -> None:
    specs = [train(64), train(128)]
    for _ in shown.ask(specs):
        end(database, stored.failure("failed", "The worker ended by signal SIGABRT"))
    for found in shown.known(specs).values():
        assert found.peak_bytes is None
        assert "SIGABRT" in str(found.error)
    assert shown.ask(specs) == []
    assert len(shown.ask(specs, again=True)) == 2, "each by itself, as one may have ended the other"


def test_what_is_said_of_a_model_that_cannot_be_had_is_no_answer_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train()
    sentence = "model: the hub cannot be reached"
    predicted.store(database, spec.model_dump(mode="json"), {}, error={"field": "model", "text": sentence})
    found = shown.known([spec])[spec_hash(spec)]
    assert (found.error, found.is_broken_off) == (sentence, True)
    assert shown.ask([spec]) == []
    later_s = time.time() + 301
    monkeypatch.setattr(state, "now_s", lambda: later_s)
    assert shown.known([spec]) == {}
    assert len(shown.ask([spec])) == 1


def test_a_cancelled_request_is_asked_for_again(database: Database) -> None:
    with database.writing() as session:
        queue.request_cancel(session, shown.ask([train()]))
    assert shown.known([train()]) == {}
    assert shown.ask([train()])


def test_a_sentence_of_the_predictor_is_an_answer(database: Database) -> None:
    spec = train()
    entry = {"key": prediction_key(spec), "spec_hash": spec_hash(spec), "error": {"field": "a", "text": "a: no"}}
    with database.writing() as session:
        predictions.store(session, [entry])
    assert shown.known([spec])[spec_hash(spec)].error == "a: no"
    assert shown.ask([spec]) == []


def test_a_form_that_moved_on_cancels_what_it_asked_for_before(database: Database) -> None:
    def page() -> None:
        import streamlit as st

        from app.widgets import predictions as shown
        from tests.app.test_predictions import train

        shown.ask([train(length) for length in st.session_state["lengths"]], place="form")

    def states() -> list[str]:
        return [row.state for row in requests(database)]

    app = AppTest.from_function(page)
    app.session_state["lengths"] = [16, 17]
    app.run()
    app.session_state["lengths"] = [17, 18]
    app.run()
    assert states() == ["cancelled", "queued", "queued"], "17 is wanted still"
    app.session_state["lengths"] = [99]
    app.run()
    assert not app.exception
    assert states() == ["cancelled", "cancelled", "cancelled", "queued"]


def test_the_page_says_how_many_are_to_come_and_nothing_when_all_are_there(database: Database) -> None:
    def page() -> None:
        from app.widgets import predictions as shown
        from tests.app.test_predictions import train

        shown.ask([train(16), train(17)])
        shown.follow([train(16), train(17), train(18)])

    app = AppTest.from_function(page).run()
    assert "2 predictions to come" in app.markdown[0].value
    for spec in (train(16), train(17)):
        predict(database, spec)
        end(database, {"state": "succeeded"})
    app.run()
    assert not app.exception
    assert not app.markdown
