"""Results from elsewhere: stored once, given back unchanged, or refused with one sentence."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from sqlalchemy import func, select

from db import runs, transfer
from db.documents import DocumentRefused, parse_run
from db.models import MemorySample, Metric, Run, Tag
from db.session import Database
from tests.db.conftest import Document, metric, result_document, sample


def store(database: Database, document: Any) -> tuple[int, bool]:
    with database.writing() as session:
        (stored,) = transfer.store_runs(session, [parse_run(document)])
    return stored


def export(database: Database, run_id: int) -> Document:
    with database.reading() as session:
        return transfer.export_document(session, run_id)


def row_counts(database: Database) -> list[int | None]:
    with database.reading() as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in (Run, Metric, MemorySample, Tag)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"state": "out_of_memory", "error": {"kind": "out_of_memory", "text": "needed 9 GiB"}, "metrics": []},
        {"uid": "0" * 32, "name": "Ünï", "note": "two\nlines", "tags": ["a", "b"], "adapter": "DoRA"},
        {
            "inspection": {"groups": [{"name": "q_proj", "count": 22}]},
            "timing": {"created_at": 1.5, "finished_at": 9.25},
        },
        {"metrics": [metric("init_time_s", value) for value in (0, 1e-300, 1.7e308, -5, 2**53)]},
    ],
)
def test_an_imported_document_is_exported_unchanged(changes: Document, database: Database) -> None:
    document = result_document(**changes)
    run_id, created = store(database, json.loads(json.dumps(document)))
    assert created
    exported = export(database, run_id)
    timing = exported.pop("timing")
    assert {name: timing[name] for name in document.pop("timing", {})} == changes.get("timing", {})
    assert {name: exported[name] for name in document} == document


def test_an_export_imports_into_another_database_as_the_same_run(database: Database, another_url: str) -> None:
    from db.session import open_database

    exported = export(database, store(database, result_document(adapter="DoRA", adapter_type="lora"))[0])
    other = open_database(another_url)
    run_id, created = store(other, exported)
    assert created
    assert export(other, run_id) == exported
    other.close()


def test_a_run_measured_here_can_be_exported_and_is_known_when_it_comes_back(database: Database, finished) -> None:
    run_id = finished({"state": "succeeded", "metrics": [metric("init_time_s", 0.5)]})
    exported = export(database, run_id)
    assert (exported["state"], exported["metrics"][0]["value"], exported["adapter"]) == ("succeeded", 0.5, "DoRA")
    assert store(database, exported) == (run_id, False)


def test_a_document_is_stored_once_by_its_uid_or_else_by_its_content(database: Database) -> None:
    plain = result_document()
    first, created = store(database, plain)
    assert created
    assert store(database, dict(reversed(plain.items()))) == (first, False)
    assert store(database, export(database, first)) == (first, False)
    named, created = store(database, result_document(uid="a" * 32))
    assert created
    assert store(database, result_document(uid="a" * 32, state="failed")) == (named, False)
    other, created = store(database, result_document(state="failed"))
    assert created
    assert len({first, named, other}) == 3


def test_an_import_fills_the_columns_that_pages_filter_by(database: Database) -> None:
    run_id, _ = store(database, result_document(tags=["gpu box"], adapter="DoRA"))
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert (run.origin, run.kind, run.model, run.device) == ("import", "init", "tinyllama-1.1b", "cpu")
    assert (run.adapter, run.adapter_type, run.strategy, run.dtype) == ("DoRA", "lora", "zero_b_norm", "bfloat16")
    assert (run.tags, run.failed_checks) == (("gpu box",), 0)


def test_a_spec_without_hash_gets_the_hash_of_its_canonical_json(database: Database) -> None:
    one, two = result_document(spec_hash=None), result_document(spec_hash=None, state="failed")
    two["spec"] = dict(reversed(two["spec"].items()))
    ids = [store(database, document)[0] for document in (one, two)]
    with database.reading() as session:
        hashes = {runs.get_run(session, run_id).spec_hash for run_id in ids}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def changed(path: str, value: Any) -> Document:
    """A good document with one value replaced, by a path such as ``metrics.0.value``."""
    document = copy.deepcopy(result_document(tags=["x"], timing={"created_at": 1.0}, uid="b" * 32))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = document
    for part in parents:
        target = target[part]
    target[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("state", "running", "state"),
        ("state", ["succeeded"], "state"),
        ("state", None, "state"),
        ("spec", None, "spec"),
        ("spec", "tinyllama", "spec"),
        ("spec.seed", math.nan, "spec"),
        ("spec.model", None, "spec.model"),
        ("spec.model", "\ud800", "spec"),
        ("spec.device", 0, "spec.device"),
        ("spec.adapter", "lora", "spec.adapter"),
        ("spec_hash", "short", "spec_hash"),
        ("uid", "../../home", "uid"),
        ("uid", "B" * 32, "uid"),
        ("uid", 7, "uid"),
        ("metrics", {"init_time_s": 1}, "metrics"),
        ("metrics.1", 4, "metrics[1]"),
        ("metrics.1.name", None, "metrics[1].name"),
        ("metrics.1.name", 5, "metrics[1].name"),
        ("metrics.0.unit", "", "metrics[0].unit"),
        ("metrics.0.value", "1", "metrics[0].value"),
        ("metrics.0.value", True, "metrics[0].value"),
        ("metrics.0.value", None, "metrics[0].value"),
        ("metrics.0.value", math.nan, "metrics[0].value"),
        ("metrics.0.value", -math.inf, "metrics[0].value"),
        ("metrics.0.value", 10**400, "metrics[0].value"),
        ("metrics.0.x", "2", "metrics[0].x"),
        ("metrics.0.repeat", -1, "metrics[0].repeat"),
        ("metrics.0.repeat", 0.5, "metrics[0].repeat"),
        ("samples", "none", "samples"),
        ("samples.1.bytes", 2**63, "samples[1].bytes"),
        ("samples.1.bytes", 1.5, "samples[1].bytes"),
        ("samples.0.time_s", math.inf, "samples[0].time_s"),
        ("samples.0.category", None, "samples[0].category"),
        ("checks.0.passed", "yes", "checks[0].passed"),
        ("checks.0.name", None, "checks[0].name"),
        ("environment", [], "environment"),
        ("environment.cpu", math.nan, "environment"),
        ("environment.cpu", "nul \0", "environment"),
        ("environment.cpu", [{"\0": 1}], "environment"),
        ("environment.cpu", -(10**309), "environment"),
        ("error", "boom", "error"),
        ("error", {"kind": "x", "text": "nul \0"}, "error.text"),
        ("inspection", [1], "inspection"),
        ("timing.created_at", "yesterday", "timing.created_at"),
        ("tags.0", 3, "tags[0]"),
        ("name", 3, "name"),
    ],
)
def test_a_bad_document_is_refused_by_the_field_and_nothing_of_it_is_stored(
    path: str, value: Any, field: str, database: Database
) -> None:
    with pytest.raises(DocumentRefused) as refusal:
        store(database, changed(path, value))
    sentence = str(refusal.value)
    assert sentence.startswith(f"{field}: ") or (field, sentence) == ("spec", "spec: is missing")
    assert "\n" not in sentence
    assert len(sentence) < 200
    assert row_counts(database) == [0, 0, 0, 0]


@pytest.mark.parametrize("document", [None, [], "text", 3, {}])
def test_what_is_no_document_is_refused(document: Any, database: Database) -> None:
    with pytest.raises(DocumentRefused, match=r"^(document|state): must be "):
        store(database, document)


def test_a_failure_while_storing_leaves_the_rest_of_the_transaction_whole(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    with database.writing() as session:
        transfer.store_runs(session, [parse_run(result_document(uid="a" * 32))])
        monkeypatch.setattr(transfer, "insert_measurements", full_disk)
        with pytest.raises(OSError, match="no space"):
            transfer.store_runs(session, [parse_run(result_document(uid="b" * 32))])
    assert row_counts(database) == [1, 2, 2, 0]


def test_a_run_without_a_result_is_exported_as_it_is_but_not_imported(database: Database, enqueue) -> None:
    (run_id,) = enqueue()
    exported = export(database, run_id)
    assert (exported["state"], exported["metrics"], exported["error"]) == ("queued", [], None)
    with pytest.raises(DocumentRefused, match=r"^state: must be one of succeeded, .*, not 'queued'$"):
        store(database, exported)


def test_a_run_that_does_not_exist_cannot_be_exported(database: Database) -> None:
    with pytest.raises(transfer.UnknownRun, match=r"^there is no run 999$"):
        export(database, 999)


def test_a_long_import_is_thinned_like_a_run_measured_here(database: Database) -> None:
    samples = [sample(i / 10, 9999 if i == 77 else 1) for i in range(3000)]
    stored = export(database, store(database, result_document(samples=samples))[0])["samples"]
    assert len(stored) <= 600
    assert max(row["bytes"] for row in stored) == 9999
