"""Sample data: loaded and removed in one click, marked wherever it is shown, and never taken for this machine's."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.kinds import KINDS
from app.widgets import samples
from db import runs
from db.runs import RunRow
from db.session import Database
from engine.spec import parse_spec, spec_hash
from tests.app import stored
from tests.app.reading import words
from tests.benchmarks.pack_samples import packed

Open = Callable[..., AppTest]


def _page() -> None:
    from app.widgets import samples

    samples.offer()
    samples.remove_offer()


@pytest.fixture
def page(database: Database) -> AppTest:
    return AppTest.from_function(_page, default_timeout=60)


def listed(database: Database) -> list[RunRow]:
    with database.reading() as session:
        return runs.list_runs(session, include_archived=True)


def test_one_click_loads_the_samples_and_one_removes_them_and_nothing_else(page: AppTest, database: Database) -> None:
    own = stored.store(database, stored.init_document(), stored.result([1.0]))
    page.run()
    assert [button.label for button in page.button] == ["Load sample data"]
    page.button(key="samples_load").click().run()
    assert not page.exception
    loaded = [row for row in listed(database) if row.origin == "sample"]
    assert loaded
    assert f"{len(loaded)} runs here are sample data" in words(page)
    assert [button.label for button in page.button] == ["Remove sample data"]
    page.button(key="samples_remove").click().run()
    assert [row.id for row in listed(database)] == [own]
    assert [button.label for button in page.button] == ["Load sample data"]


def test_loading_twice_stores_them_once(database: Database) -> None:
    assert samples.load() > 0
    assert samples.load() == 0
    assert samples.are_loaded()


def test_archived_samples_are_removed_too(database: Database) -> None:
    samples.load()
    with database.writing() as session:
        runs.archive(session, [listed(database)[0].id])
    samples.remove()
    assert listed(database) == []


def test_there_is_a_measured_sample_of_every_kind_with_its_environment(database: Database) -> None:
    samples.load()
    rows = listed(database)
    assert {row.kind for row in rows} == set(KINDS)
    with database.reading() as session:
        environments = runs.environments(session, [row.id for row in rows])
    # A worker that was ended because memory ran out could not write its own.
    succeeded = [row.id for row in rows if row.state == "succeeded"]
    assert len(succeeded) > len(rows) / 2
    assert all(environments[run_id]["packages"]["peft"] for run_id in succeeded)


def test_samples_never_count_as_measured_here(database: Database) -> None:
    samples.load()
    with database.reading() as session:
        assert runs.measured_hashes(session) == {}
        assert runs.durations(session) == []


def test_the_page_of_a_sample_run_says_so(open_page: Open, database: Database) -> None:
    samples.load()
    text = words(open_page("run", id=str(listed(database)[0].id)))
    assert "Sample data" in text
    assert "· imported" not in text.replace("\\", "")


def test_the_bundled_documents_carry_nothing_of_the_database_they_come_from() -> None:
    documents = json.loads(gzip.decompress(samples.FILE.read_bytes()))
    assert not {"uid", "name", "note", "tags"} & set().union(*documents)
    assert {document["format"] for document in documents} == {1}


def test_packing_prefers_undisturbed_runs_and_keeps_memory_over_time_of_one_run_of_a_spec() -> None:
    def document(share: float, seed: int, uid: str) -> dict[str, Any]:
        spec = parse_spec(stored.init_document(seed=seed))
        result = stored.result([1.0])
        result["metrics"][-1]["value"] = share
        return {"spec": spec.model_dump(mode="json"), "spec_hash": spec_hash(spec), "uid": uid, **result}

    quiet, again, busy = document(0.01, 0, "a" * 32), document(0.05, 0, "b" * 32), document(0.4, 0, "c" * 32)
    only = document(0.4, 1, "d" * 32)
    data = packed([json.dumps([busy, quiet]).encode(), gzip.compress(json.dumps([again, only]).encode())])
    kept = json.loads(gzip.decompress(data))
    assert [one["metrics"][-1]["value"] for one in kept] == [0.01, 0.05, 0.4]
    assert [bool(one["samples"]) for one in kept] == [True, False, True]
    assert kept[0]["metrics"] == quiet["metrics"]
