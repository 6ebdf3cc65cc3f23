"""Pages over a lab that PostgreSQL keeps: what is stored there shows, and what is done on a page is kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from db import runs
from db.session import Database
from tests.app import stored
from tests.app.reading import words
from tests.postgresql import Server

Open = Callable[..., AppTest]
PREDICTING = ("predict", "fit", "accuracy")


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch, postgresql_server: Server) -> Iterator[Path]:
    """A home whose lab is on the server."""
    name = postgresql_server.create()
    monkeypatch.setenv("PEFT_LAB_DATABASE_URL", postgresql_server.url(name))
    yield home
    postgresql_server.drop(name)


def test_every_page_shows_what_is_stored(open_page: Open, database: Database) -> None:
    inits = stored.lora_and_dora(database)
    by_kind = stored.one_of_each_kind(database)
    stored.queued(database, stored.init_document("gpt2"))
    addresses: list[tuple[str, dict[str, str]]] = [
        (name, {}) for name in ("overview", "cases", "launch", "queue", "runs", "merge_files", "system", *PREDICTING)
    ]
    addresses += [("case", {"id": name}) for name in ("init", "merge", "train_memory")]
    addresses += [("run", {"id": str(ids[0])}) for ids in (inits, *by_kind.values())]
    addresses += [("compare", {"ids": ",".join(map(str, ids))}) for ids in (inits, *by_kind.values())]
    for name, query in addresses:
        assert words(open_page(name, **query)), name


def test_the_size_on_system_is_that_of_the_database_on_its_server(open_page: Open) -> None:
    cards = {card.label: card.delta for card in open_page("system").metric}
    assert cards["Database"].startswith("on PostgreSQL")


def test_a_filter_expression_narrows_the_runs(open_page: Open, database: Database) -> None:
    stored.lora_and_dora(database)
    app = open_page("runs", filter="adapter = DoRA and init_time_s < 1s and not tag = x")
    assert app.dataframe[0].value["id"].tolist() == [4, 3]


def test_launched_runs_wait_in_the_queue(open_page: Open, database: Database) -> None:
    open_page("launch").button(key="launch_button").click().run()
    with database.reading() as session:
        waiting = runs.queued_and_running(session)
    assert [row.adapter for row in waiting if row.kind == "init"] == ["LoRA", "DoRA"]
