"""The page What fits: asks for a plan by a button, shows it best first, and says what to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets import plan_frames, plans
from app.widgets.launching import new_run
from db import queue, runs
from db.session import Database
from engine.spec import PlanSpec, parse_spec
from tests.app import stored
from tests.app.reading import words

GIB = 2**30
OpenPage = Callable[..., AppTest]
QUERY = {"model": "TinyLlama 1.1B", "context": "1024", "places": "This machine"}


def spec(*places: str, dora: bool = False) -> PlanSpec:
    """The plan that the form asks for with these places, and with LoRA and full fine-tuning alone."""
    section: dict[str, Any] = {"train": {"context_length": 1024}}
    methods = [stored.document("train", adapter=None, **section), stored.document("train", **section)]
    methods += [stored.document("train", dora=True, **section)] if dora else []
    found = parse_spec({"kind": "plan", "of": methods, "places": list(places)})
    assert isinstance(found, PlanSpec)
    return found


def an_answer(method: int, place: str, needed_gib: float, fit: str, **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "place": place,
        "error": None,
        "needed_bytes": int(needed_gib * GIB),
        "tensor_bytes": int(needed_gib * GIB),
        "fit": fit,
        "largest_context": 2048,
        "context_unit": 32,
        "context_end": 2048,
        "largest_batch": 3,
        "batch_end": 1024,
        "step_time_s": None,
        "changes": [],
        "together": None,
        **fields,
    }


CHECKPOINTING = {
    "id": "checkpointing",
    "label": "Gradient checkpointing",
    "cost": "one more forward pass in each step",
    "is_same_training": True,
    "needed_bytes": 4 * GIB,
    "saved_bytes": 9 * GIB,
    "fit": "fits",
}


def plan(request: PlanSpec) -> dict[str, Any]:
    """A plan as the engine makes it: on this machine LoRA fits, on the card only with a change."""
    places = {
        "this-machine": {"label": "This machine", "memory_bytes": 22 * GIB, "memory_source": "this machine's memory"},
        "rtx-3060": {"label": "RTX 3060 12 GB", "memory_bytes": 11 * GIB, "memory_source": "the driver"},
    }
    helped = {
        "changes": [CHECKPOINTING],
        "together": {"changes": ["checkpointing"], "labels": ["Gradient checkpointing"], "needed_bytes": 4 * GIB},
    }
    answers = [
        an_answer(0, "this-machine", 21, "tight"),
        an_answer(1, "this-machine", 9, "fits"),
        an_answer(0, "rtx-3060", 30, "will not fit", step_time_s=0.4),
        an_answer(1, "rtx-3060", 13, "will not fit", step_time_s=0.5, **helped),
    ]
    return {
        "model": "tinyllama-1.1b",
        "context_length": 1024,
        "batch_size": 1,
        "places": [{"id": name, "speed_source": "", **places[name]} for name in request.places],
        "methods": [
            {"label": label, "spec": one.model_dump(mode="json"), "spec_hash": "", "trained_parameters": trained}
            for label, one, trained in zip(
                ("Full fine-tuning", "LoRA"), request.of, (1_100_048_384, 12_615_680), strict=False
            )
        ],
        "base": [
            {
                "format": "nf4",
                "bytes": GIB,
                "largest_module": "lm_head",
                "largest_module_bytes": 2**27,
                "unquantised_bytes": 2**28,
                "fits": dict.fromkeys(request.places, "fits"),
            }
        ],
        "answers": [answer for answer in answers if answer["place"] in request.places],
        "rules": {"fit": "by memory", "ranking": "by need", "step_time": "estimated", "process": "as seen"},
        "predictions": 31,
        "plan_time_s": 40.0,
    }


def store_plan(database: Database, request: PlanSpec, outcome: dict[str, Any]) -> None:
    with database.writing() as session:
        queue.enqueue(session, [new_run(request)], None)
    with database.writing() as session:
        claimed = queue.claim(session, supervisor="1@1", devices=["cpu"], kinds=["plan"])
        assert claimed is not None
        queue.finish(session, claimed.id, outcome)


def planned(database: Database, *places: str) -> None:
    request = spec(*places)
    store_plan(database, request, {**stored.succeeded([], [], "none"), "inspection": plan(request)})


def open_two_methods(open_page: OpenPage, **query: Any) -> AppTest:
    """The page with full fine-tuning and LoRA, which are what the stored plans are of."""
    app = open_page("fit", **{**QUERY, **query})
    methods = app.multiselect(key="methods")
    return methods.set_value(methods.value[:2]).run()


def queued(database: Database) -> list[runs.RunRow]:
    with database.reading() as session:
        return list(runs.list_runs(session, kinds=["plan"], states=["queued"]))


def test_without_a_plan_there_is_one_sentence_and_one_button_that_queues_it_once(
    open_page: OpenPage, database: Database
) -> None:
    app = open_two_methods(open_page)
    assert "Not planned yet" in words(app)
    (button,) = (button for button in app.button if button.label == "Plan what fits")
    button.click().run()
    (row,) = queued(database)
    assert row.spec == spec("this-machine").model_dump(mode="json")
    assert "Plan what fits" not in [button.label for button in app.button]
    plans.ask(spec("this-machine"))
    assert len(queued(database)) == 1


def test_the_recommendation_comes_first_and_the_table_is_ranked(open_page: OpenPage, database: Database) -> None:
    planned(database, "this-machine")
    app = open_two_methods(open_page)
    (card,) = app.metric
    assert (card.label, card.value) == ("This machine", "LoRA")
    assert "**LoRA** fits with 9.00 GiB of 22.0 GiB" in words(app)
    assert "is not measured here" in words(app)
    table = app.dataframe[0].value
    assert list(table["Method"]) == ["LoRA", "Full fine-tuning"]
    assert list(table["Fits"]) == [["fits"], ["tight"]]
    assert list(table["Largest context"]) == ["2,048 (all)"] * 2


def test_where_nothing_fits_it_says_what_makes_it_fit_and_what_each_change_saves(
    open_page: OpenPage, database: Database
) -> None:
    planned(database, "rtx-3060")
    app = open_two_methods(open_page, places="RTX 3060 12 GB")
    assert "nothing fits as it is; **LoRA** does with gradient checkpointing: 4.00 GiB" in words(app)
    assert "What to change first" in words(app)
    changes = app.dataframe[1].value
    assert list(changes["Change"]) == ["Gradient checkpointing"]
    assert list(changes["Saves"]) == ["9.00 GiB"]


def test_a_step_that_was_measured_here_is_shown_and_decides_the_order(open_page: OpenPage, database: Database) -> None:
    planned(database, "this-machine")
    stored.store(
        database,
        stored.document("train", train={"context_length": 1024}),
        stored.train_result([7.0, 7.2, 7.4], trainable=12_615_680),
    )
    table = open_two_methods(open_page).dataframe[0].value
    assert list(table["A step takes"]) == ["7.20 s, measured here", "–"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"context": "512, 1024"}, "Context length: give one number"),
        ({"context": "many"}, "Context length: 'many' is not a whole number"),
        ({"context": "1"}, "context_length"),
    ],
)
def test_bad_input_is_one_sentence(
    query: dict[str, str], sentence: str, open_page: OpenPage, database: Database
) -> None:
    app = open_page("fit", **{**QUERY, **query})
    assert any(sentence in error.value.replace("\\", "") for error in app.error)
    assert not queued(database)


def test_a_plan_that_failed_says_why_and_can_be_asked_for_again(open_page: OpenPage, database: Database) -> None:
    store_plan(database, spec("this-machine"), stored.failure("failed", "model: cannot be built"))
    app = open_two_methods(open_page)
    assert "cannot be built" in words(app)
    next(button for button in app.button if button.label == "Plan what fits").click().run()
    assert len(queued(database)) == 1


def test_cards_recommendation_and_table_agree_on_what_comes_first() -> None:
    document = plan(spec("this-machine", "rtx-3060"))
    times = {(0, "this-machine"): 1.0, (1, "this-machine"): 2.0}
    frame = plan_frames.table(document, times)
    assert list(frame[frame["rank"] == 1]["method"]) == ["LoRA", "Full fine-tuning"]
    assert [card.value for card in plan_frames.cards(document, times)] == ["LoRA", "Nothing as it is"]
