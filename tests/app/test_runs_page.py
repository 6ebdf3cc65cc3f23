"""The Runs table: what is in it, filters in the address, archived runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from db import runs
from db.session import Database
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]


@pytest.fixture
def filled(database: Database) -> Database:
    stored.lora_and_dora(database)
    oom = stored.failure("out_of_memory", "The weights alone need 14.5 GiB")
    stored.store(database, stored.init_document("mistral-7b"), oom)
    with database.writing() as session:
        runs.set_tags(session, [1], ["paper"])
    return database


def ids(app: AppTest) -> list[int]:
    return list(app.dataframe[0].value["id"])


def test_an_empty_database_says_what_to_do_next(open_page: Open) -> None:
    app = open_page("runs")
    assert "No run is stored yet" in words(app)
    assert [button.label for button in app.button] == ["Launch a run"]


def test_every_run_is_a_row_and_bad_ones_carry_their_sentence(open_page: Open, filled: Database) -> None:
    table = open_page("runs").dataframe[0].value
    assert list(table["id"]) == [5, 4, 3, 2, 1]
    assert table["problem"].iloc[0] == "The weights alone need 14.5 GiB"
    assert table["init_s"].iloc[-1] == pytest.approx(0.21)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "Out of memory"}, [5]),
        ({"adapter": "LoRA"}, [5, 1]),
        ({"model": "TinyLlama 1.1B", "adapter": "LoRA"}, [1]),
        ({"tag": "paper"}, [1]),
        ({"q": "14.5"}, [5]),
        ({"q": "zero_b"}, [3]),
    ],
)
def test_filters_come_from_the_address(
    open_page: Open, filled: Database, query: dict[str, str], expected: list[int]
) -> None:
    assert ids(open_page("runs", **query)) == expected


def test_a_filter_value_that_no_run_has_is_ignored(open_page: Open, filled: Database) -> None:
    assert len(ids(open_page("runs", state="nonsense"))) == 5


def test_filters_that_nothing_passes_say_so(open_page: Open, filled: Database) -> None:
    assert "No run passes these filters" in words(open_page("runs", q="no such thing"))


def test_archived_runs_are_hidden_until_asked_for(open_page: Open, filled: Database) -> None:
    with filled.writing() as session:
        runs.archive(session, [2])
    app = open_page("runs")
    assert ids(app) == [5, 4, 3, 1]
    app.toggle(key="archived").set_value(True).run()
    assert ids(app) == [5, 4, 3, 2, 1]
