"""Files of results: read whole or refused with one sentence, and nothing of a refused file is stored."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from sqlalchemy import func, select

from db import queue, runs, transfer
from db.downsampling import Sample
from db.models import MemorySample, Metric, Run
from db.packing import PackedSamples
from db.session import Database
from engine.catalog.documents import document_spec
from tests.db.conftest import Document, metric, result_document, sample

LIMIT_BYTES = 2**24


def document(**changes: Any) -> Document:
    """A document whose hash is that of its spec, as ``engine measure`` prints it."""
    return result_document(**{"spec_hash": None, **changes})


def packed(*documents: Document) -> bytes:
    return gzip.compress(json.dumps(documents).encode())


def check(data: bytes, largest_bytes: int = LIMIT_BYTES) -> list[transfer.ParsedRun]:
    return transfer.check_file(data, document_spec, largest_bytes=largest_bytes)


def store(database: Database, data: bytes, **more: Any) -> list[tuple[int, bool]]:
    checked = check(data)
    with database.writing() as session:
        return transfer.store_runs(session, checked, **more)


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(document()).encode(),
        b"\xef\xbb\xbf" + json.dumps(document(), indent=2).encode() + b"\n\n",
        json.dumps([document()]).encode(),
        packed(document()),
        gzip.compress(b" [ ") + gzip.compress(json.dumps(document()).encode()) + gzip.compress(b"\n]"),
    ],
)
def test_one_document_or_a_list_packed_or_not_is_the_same_file(data: bytes, database: Database) -> None:
    ((run_id, created),) = store(database, data)
    assert created
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    assert [row.value for row in run.metrics] == [0.25, 0.5]
    assert (run.origin, run.adapter, run.failed_checks) == ("import", "DoRA", 0)


def test_a_file_cut_off_anywhere_is_refused_as_cut_off() -> None:
    text = json.dumps([document(name='quoted "\\ é', checks=[{"name": "a", "passed": False}])])
    for end in range(1, len(text)):
        with pytest.raises(transfer.ImportRefused, match=r"^is cut off; export or copy it again$"):
            check(text[:end].encode())
    data = gzip.compress(text.encode())
    for end in (20, len(data) // 2, len(data) - 1):
        with pytest.raises(transfer.ImportRefused, match=r"^is cut off; export or copy it again$"):
            check(data[:end])


def test_a_file_of_many_pieces_is_read_whole_wherever_a_piece_ends() -> None:
    many = [document(note="é\n" * 9_000 + "x" * number, uid=f"{number:032x}") for number in range(120)]
    data = json.dumps(many, ensure_ascii=False).encode()
    assert len(data) > 3 * 2**20
    assert [run.note for run in check(data)] == [one["note"] for one in many]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"[]", "holds no runs"),
        (b"no JSON", "is not valid JSON"),
        (b'{"state": succeeded}', "is not valid JSON"),
        (b"nul", "is not valid JSON"),
        (b"[" + json.dumps(document()).encode() + b" {}]", "is not valid JSON"),
        (json.dumps([document()]).encode() + b"]", "is not valid JSON: something follows its end"),
        (b"PK\x03\x04\xff\xfe", "is neither JSON nor JSON packed with gzip"),
        (b"\x1f\x8b\x08\x00garbage that is no gzip", "is damaged and cannot be unpacked; export or copy it again"),
        (b'{"state": ' + b"9" * 5000 + b"}", "is not valid JSON: a number in it is too long"),
        (b"[" * 100_000, "is no list of results: its JSON is nested too deep"),
        (b'{"name": "something", "version": "1.0"}', "document: must be a result of PEFT Lab, with a state and a spec"),
        (b'["text"]', "document 1: document: must be a JSON object, not 'text'"),
        (json.dumps(document(format=2)).encode(), "format: 2 is of a newer PEFT Lab; this one reads 1, so update it"),
        (json.dumps(document(format="1")).encode(), "format: must be a whole number of at least 1, not '1'"),
    ],
)
def test_what_is_no_file_of_ours_gets_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(transfer.ImportRefused) as refusal:
        check(data)
    assert str(refusal.value) == sentence


def test_a_small_file_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked_whole() -> None:
    bomb = gzip.compress(b"[" + b" " * (64 * 2**20) + b"]")
    assert len(bomb) < 2**17
    with pytest.raises(transfer.ImportRefused, match=r"^holds more than 16 MiB; export fewer runs at a time$"):
        check(bomb)


def changed_spec(**changes: Any) -> Document:
    spec = result_document()["spec"]
    return document(spec={**spec, **changes})


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (changed_spec(strategy="of_a_later_version"), "spec.strategy: "),
        (changed_spec(train={}), "spec.train: "),
        (changed_spec(kind="inspect"), "spec.kind: must be one of init, merge, train, inference, not inspect"),
        (changed_spec(adapter={"type": "lora", "rank": 0}), "spec.adapter.rank: "),
        (document(spec_hash="ab" * 32), "spec_hash: must be the hash of this spec"),
        (document(inspection={"groups": [{"path": "{:>9999999999}"}]}), "inspection: must be null"),
        (document(timing={"finished_at": 1e300}), "timing.finished_at: must be seconds since 1970"),
        (document(timing={"finished_at": -1}), "timing.finished_at: must be seconds since 1970"),
        (document(environment=json.loads('{"a": ' * 30 + "1" + "}" * 30)), "environment: must have at most 20 levels"),
        (document(environment={"gpus": "H100"}), "environment.gpus: must be a list, not 'H100'"),
        (document(environment={"gpus": [1]}), "environment.gpus[0]: must be a JSON object, not 1"),
        (document(environment={"gpus": [{"name": "H100"}]}), "environment.gpus[0].id: must be a text, not null"),
        (document(environment={"packages": ["peft"]}), "environment.packages: must be a JSON object, not a list"),
        (document(environment={"packages": {"peft": 21}}), "environment.packages.peft: must be a text, not 21"),
        (document(name="x" * 201), "name: must have at most 200 characters, not 201"),
        (document(tags=["x" * 201]), "tags[0]: must have at most 200 characters, not 201"),
        (document(adapter="x" * 201), "adapter: must have at most 200 characters, not 201"),
        (document(note="x" * 20_001), "note: must have at most 20000 characters, not 20001"),
        (document(name="\ud800"), "name: holds characters that cannot be stored"),
        (document(metrics=[metric("init_time_s", float("nan"))]), "metrics[0].value: must be a finite number, not nan"),
    ],
)
def test_nothing_of_a_file_is_stored_when_its_last_document_is_bad(
    bad: Document, sentence: str, database: Database
) -> None:
    good = [document(uid=f"{number:032x}") for number in range(3)]
    with pytest.raises(transfer.ImportRefused) as refusal:
        store(database, json.dumps([*good, bad]).encode())
    assert str(refusal.value).startswith(f"document 4: {sentence}")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250
    with database.reading() as session:
        assert [session.scalar(select(func.count()).select_from(table)) for table in (Run, Metric)] == [0, 0]


def test_documents_that_are_here_already_are_counted_and_not_stored_again(database: Database) -> None:
    first, second = document(uid="a" * 32), document(uid="b" * 32)
    assert [created for _, created in store(database, packed(first))] == [True]
    assert [created for _, created in store(database, packed(first, second, second))] == [False, True, False]
    assert [created for _, created in store(database, packed(second, first))] == [False, False]


def test_an_exported_run_names_its_format_and_comes_back_as_the_same_run(database: Database, another_url: str) -> None:
    from db.session import open_database

    ((run_id, _),) = store(database, packed(document(name="Ünï", tags=["a"], note="two\nlines")))
    with database.reading() as session:
        exported = transfer.export_document(session, run_id)
    assert exported["format"] == 1
    other = open_database(another_url)
    ((other_id, created),) = store(other, json.dumps(exported).encode())
    assert created
    with other.reading() as session:
        assert transfer.export_document(session, other_id) == exported
    other.close()


def test_a_spec_with_fields_left_out_is_stored_whole_under_the_hash_of_its_whole_form(database: Database) -> None:
    from engine.spec import parse_spec, spec_hash

    short = {"kind": "train", "model": "tiny-test", "adapter": None, "device": "cpu", "train": {}}
    ((run_id, _),) = store(database, packed(document(spec=short)))
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    assert run.spec["train"]["context_length"] == 512
    assert run.spec_hash == spec_hash(parse_spec(short))
    assert run.adapter == "Full fine-tuning"


def test_the_folder_of_a_saved_adapter_stays_as_the_other_machine_has_it(database: Database) -> None:
    ((run_id, _),) = store(database, packed(changed_spec(adapter={"path": "../not/here"}, strategy="stock")))
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    assert run.spec["adapter"]["path"] == "../not/here"


def test_thousands_of_samples_wait_in_little_memory_and_are_stored_as_they_were(database: Database) -> None:
    samples = [sample(step / 10, step, category) for step in range(500) for category in ("weights", "temporary")]
    checked = check(packed(document(samples=samples)))
    assert isinstance(checked[0].result.samples, PackedSamples)
    with database.writing() as session:
        transfer.store_runs(session, checked)
    with database.reading() as session:
        rows = session.execute(select(MemorySample.category, MemorySample.bytes).order_by(MemorySample.id)).all()
    assert [tuple(row) for row in rows] == [(one["category"], one["bytes"]) for one in samples]


def test_packed_samples_are_the_samples_that_were_packed() -> None:
    samples = [Sample("a", 0.1, "p", "c", 2**62), Sample("b", -1e300, "p", "c", 0), Sample("a", 0.1, "q", "c", 1)]
    packed_samples = PackedSamples(samples)
    assert list(packed_samples) == samples
    assert [packed_samples[0], packed_samples[-1], packed_samples[1:]] == [samples[0], samples[2], samples[1:]]


def test_a_sample_that_looks_like_a_known_one_is_checked_all_the_same() -> None:
    for bad in ({"bytes": -1}, {"bytes": True}, {"time_s": float("inf")}, {"bytes": 2**63}, {"category": ""}):
        samples = [sample(0.0, 1), {**sample(0.5, 1), **bad}]
        with pytest.raises(transfer.ImportRefused, match=r"^samples\[1\]\."):
            check(json.dumps(document(samples=samples)).encode())


def test_the_progress_counts_every_document_while_checking_and_storing(database: Database) -> None:
    data = packed(*(document(uid=f"{number:032x}") for number in range(5)))
    seen: list[int] = []
    checked = transfer.check_file(data, document_spec, largest_bytes=LIMIT_BYTES, progress=seen.append)
    with database.writing() as session:
        transfer.store_runs(session, checked, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5] * 2


def test_imported_runs_and_samples_are_no_replicas_of_what_is_measured_here(database: Database) -> None:
    spec = {"kind": "init", "model": "tiny-test", "device": "cpu", "seed": 1}
    for origin in ("import", "sample"):
        files = [packed(document(spec=spec, note=f"{origin} {number}")) for number in (1, 2)]
        ids = [store(database, data, origin=origin)[0][0] for data in files]
        with database.reading() as session:
            rows = {row.id: row for row in runs.list_runs(session)}
        assert [rows[run_id].replica for run_id in ids] == [0, 1]
    with database.reading() as session:
        assert set(queue.next_replicas(session, {row.spec_hash for row in rows.values()}).values()) <= {0}
