"""Merge files: three folders and a button, what is wrong as a sentence, live progress with cancel, what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets.launching import new_run
from db import queue, runs
from db.runs import RunRow
from db.session import Database
from engine.merging.weight_file import TensorEntry, WeightFileWriter
from engine.spec import parse_spec
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]


def tensor_file(path: Path, *names: str) -> None:
    entries = [TensorEntry(name, "F32", (2, 2), 0, 16) for name in names]
    with WeightFileWriter(path, entries, {}) as writer:
        writer.write(memoryview(bytes(16 * len(names))))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """A base and an adapter as far as headers and configs go, and a place for the output."""
    base, adapter = tmp_path / "base", tmp_path / "my-adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    tensor_file(base / "model.safetensors", "model.layers.0.self_attn.q_proj.weight")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensor_file(adapter / "adapter_model.safetensors", f"{module}.lora_A.weight", f"{module}.lora_B.weight")
    return {"base": str(base), "adapter": str(adapter), "out": str(tmp_path / "out")}


def fill(app: AppTest, folders: dict[str, str]) -> AppTest:
    for field, folder in folders.items():
        app.text_input(key=f"merge_{field}").set_value(folder)
    app.run()
    assert not app.exception, app.exception
    return app


def document(folders: dict[str, str]) -> dict[str, Any]:
    return {"kind": "merge_files", **folders}


def all_runs(database: Database) -> list[RunRow]:
    with database.reading() as session:
        return list(runs.list_runs(session))


def test_empty_fields_ask_for_folders(open_page: Open) -> None:
    app = open_page("merge_files")
    assert "Name three folders to go on." in words(app)
    assert app.button(key="merge_button").disabled


def test_one_press_queues_the_merge_ahead_of_measurements(
    open_page: Open, database: Database, folders: dict[str, str]
) -> None:
    app = fill(open_page("merge_files"), folders)
    assert "Writes **" in words(app)
    app.button(key="merge_button").click().run()
    assert not app.exception, app.exception
    (row,) = all_runs(database)
    assert (row.kind, row.state, row.priority) == ("merge_files", "queued", 1)
    assert {field: row.spec[field] for field in folders} == folders
    assert "waits for its turn" in words(app)
    assert app.button(key="merge_button").disabled, "the same merge is not queued twice"


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("base", "{base}/none", "not a folder"),
        ("base", "/etc", "outside of the model folders"),
        ("adapter", "~nobody-of-this-name/adapter", "whole path"),
        ("adapter", "relative/path", "whole path"),
        ("out", "{base}/x", "inside"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_can_be_queued(
    open_page: Open, folders: dict[str, str], field: str, value: str, word: str
) -> None:
    app = fill(open_page("merge_files"), {**folders, field: value.format(**folders)})
    shown = words(app).replace("\\", "")
    assert f"{field}: " in shown
    assert word in shown
    assert app.button(key="merge_button").disabled


def test_a_running_merge_shows_its_progress_and_can_be_cancelled(
    open_page: Open, database: Database, folders: dict[str, str]
) -> None:
    progress = {"phase": "merging", "done": 100, "total": 400, "eta_s": None}
    run_id = stored.store(database, document(folders), None, progress=progress)
    app = open_page("merge_files")
    (bar,) = app.get("progress")
    assert bar.value == 25
    assert "Merging · 100 of 400" in bar.text
    app.button(key=f"cancel_{run_id}").click().run()
    assert "being cancelled" in app.get("progress")[0].text


def test_a_merge_that_ended_says_where_the_model_is_or_why_there_is_none(
    open_page: Open, database: Database, folders: dict[str, str]
) -> None:
    done = {"state": "succeeded", "metrics": [], "checks": [], "samples": [], "error": None}
    stored.store(database, document(folders), done)
    stored.store(database, document(folders), stored.failure("failed", "adapter: it does not belong to this base"))
    stored.store(database, document(folders), stored.failure("cancelled", "Cancelled while it was running"))
    shown = words(open_page("merge_files")).replace("\\", "")
    assert f"AutoModelForCausalLM.from_pretrained('{folders['out']}')" in shown
    assert "adapter: it does not belong to this base." in shown
    assert "the same merge goes on from there" in shown


def test_an_interrupted_merge_is_named_before_it_is_resumed(open_page: Open, folders: dict[str, str]) -> None:
    partial = Path(f"{folders['out']}.partial")
    partial.mkdir()
    (partial / ".peft-lab-merge.json").write_text(json.dumps({"made_from": "x", "shards": {}}))
    assert "goes on from there" in words(fill(open_page("merge_files"), folders))


@pytest.mark.parametrize("page", ["queue", "runs", "overview"])
def test_other_pages_show_merges_of_files_among_their_runs(
    page: str, open_page: Open, database: Database, folders: dict[str, str]
) -> None:
    stored.store(database, document(folders), {"state": "succeeded", "metrics": [], "checks": [], "samples": []})
    with database.writing() as session:
        queue.enqueue(session, [new_run(parse_spec(document(folders)))])
    assert not open_page(page).exception


def test_the_run_page_shows_what_a_merge_wrote(open_page: Open, database: Database, folders: dict[str, str]) -> None:
    result = {
        "state": "succeeded",
        "metrics": [
            stored.metric("merge_files_time_s", "s", 12.0),
            stored.metric("written_bytes", "bytes", 2.0**30),
            stored.metric("merged_tensors", "count", 224),
        ],
        "checks": [{"name": "written_whole", "passed": True, "detail": "3 weight files"}],
        "samples": [],
        "environment": stored.ENVIRONMENT,
        "error": None,
    }
    run_id = stored.store(database, document(folders), result)
    app = open_page("run", id=str(run_id))
    assert "Written whole" in words(app)
    assert "my" in words(app)
