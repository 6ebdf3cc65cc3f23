"""Whatever the parsers are given, they take it or refuse it with one sentence, and at once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import strategies as st

from app.comparison import selection
from app.filtering import FilterError, Known, parse, pointed
from app.filtering.fields import columns, spec_fields
from app.widgets import fields, labels
from db import runs, transfer
from db.runs import StoredMetric
from db.session import Database, open_database
from engine import catalog
from engine.catalog import requirements
from engine.catalog.documents import document_spec
from engine.merging.weight_file import WeightFileError, read_header
from engine.result import Device
from engine.spec import Measured, SpecError, canonical_json, parse_spec, prediction_key, spec_hash
from tests.app import stored
from tests.fuzz import inputs

CPU = Device("cpu", "cpu", "A processor", 2**34, ("float32", "bfloat16", "float16"))
KNOWN = Known.of([StoredMetric("step_time_s", ("stock",), "s")], [("cores",), ("packages", "peft")])
ADAPTERS = [
    {"type": "lora", "rank": 8, "alpha": 16.0, "options": {"use_dora": True, "rank_pattern": {"q_proj": 4}}},
    {"type": "adalora", "options": {"target_r": 4}},
    {"type": "ia3"},
    {"type": "prefix_tuning", "options": {"num_virtual_tokens": 5}},
    {"type": "lora", "target_modules": ["q_proj", "v_proj"], "options": {"init_lora_weights": "pissa"}},
    {"type": "lora", "target_modules": ".*q_proj"},
    {"path": "/models/adapter"},
    None,
]
SPECS: list[Any] = [
    {"kind": kind, "model": "tiny-test", "adapter": adapter, **section}
    for adapter in ADAPTERS
    for kind, section in (
        ("init", {"repeats": 3, "warmup": 1, "device": "cpu", "dtype": "bfloat16"}),
        ("merge", {"strategy": "row_blocks", "memory_limit_bytes": 2**30, "timeout_s": 60}),
        ("train", {"train": {"context_length": 64, "batch_size": 2, "optimizer": "sgd"}, "quantization": "nf4"}),
        ("inference", {"inference": {"prompt_tokens": 8, "new_tokens": 4, "variants": ["base", "adapter"]}}),
    )
] + [
    {"kind": "inspect", "model": "gpt2"},
    {"kind": "merge_files", "base": "/models/a", "adapter": "/models/b", "out": "/models/c"},
    {"kind": "predict", "of": [{"kind": "train", "model": "tiny-test"}], "card": "h100-80gb"},
    {"kind": "plan", "of": [{"model": "tiny-test", "adapter": None}], "places": ["this-machine"]},
]
WORDS = (
    *("and", "OR", "not", "in", "(", ")", ",", "=", "!=", "<=", ">", "~", "==", '"', "'", "@", "."),
    *("state", "kind", "model", "tag", "id", "created", "finished", "step_time_s", "step_time_s@stock"),
    *("train.context_length", "adapter.rank", "environment.cores", "environment.packages.peft", "failed_checks"),
    *(
        "failed",
        "succeeded",
        "2GiB",
        "500ms",
        "30%",
        "12.6M",
        "2026-03-01",
        "2026-03-01T14:05",
        "null",
        "true",
        "1e400",
    ),
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is asked for what reads as a hub id."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'lab.sqlite3'}")
    yield opened
    opened.close()


def read_spec(document: Any) -> None:
    spec = parse_spec(document)
    assert parse_spec(canonical_json(spec)) == spec
    spec_hash(spec)


def points_into(text: str, error: FilterError) -> bool:
    """Whether a refusal is one line, and the place that it names can be shown below the text."""
    is_one_line = len(str(error).splitlines()) == 1
    return is_one_line and 0 <= error.position <= len(text) and len(pointed(text, error.position).splitlines()) == 2


def test_there_are_twenty_thousand_inputs_or_more() -> None:
    assert sum(inputs.INPUTS.values()) >= 20_000


def test_a_spec_is_taken_or_refused_with_one_sentence() -> None:
    inputs.try_all("spec", inputs.changed(SPECS), read_spec, SpecError)


def test_a_text_that_should_be_a_spec_is_taken_or_refused_with_one_sentence() -> None:
    texts = [json.dumps(spec).encode() for spec in SPECS]
    inputs.try_all("spec as text", inputs.damaged(texts), read_spec, SpecError)


def test_what_keeps_a_spec_from_running_is_told_in_sentences() -> None:
    def look(document: Any) -> None:
        spec = parse_spec(document)
        for problem in requirements.problems(spec, [CPU], None):
            assert str(problem).isprintable(), problem
        if isinstance(spec, Measured):
            prediction_key(spec)
            catalog.snippet(spec)

    inputs.try_all("what a machine says of a spec", inputs.changed(SPECS), look, SpecError)


def test_a_filter_is_taken_or_refused_where_it_is_wrong() -> None:
    def read(text: str) -> None:
        parse(text, KNOWN, ZoneInfo("UTC"))

    words = inputs.words_of((*WORDS, *columns(), *spec_fields()))
    inputs.try_all("filter", words, read, FilterError, is_fit=points_into)


def test_a_filter_that_is_taken_can_be_asked_of_the_stored_runs(database: Database) -> None:
    values = st.sampled_from(
        ["1", "-1e308", "99999999999999999999", "'a''b'", '"%_"', "é", "2026-03-01", "null", "30%"]
    )
    names = st.sampled_from((*columns(), *spec_fields(), *WORDS[25:36]))
    one = st.builds(lambda *parts: " ".join(parts), names, st.sampled_from(["=", "!=", "<", ">=", "~"]), values)
    text = st.lists(one, min_size=1, max_size=4).flatmap(
        lambda parts: st.sampled_from([" and ", " or not ", " or "]).map(lambda word: word.join(parts))
    )

    def ask(text: str) -> None:
        where = parse(text, KNOWN, ZoneInfo("UTC"))
        with database.reading() as session:
            assert runs.list_ids(session, where=where) == []

    inputs.try_all("filter over stored runs", text, ask, FilterError, is_fit=points_into)


def documents() -> list[Any]:
    """Result documents as they are exported."""
    made = [{**stored.result([0.5, 0.6]), "spec": parse_spec(spec).model_dump(mode="json")} for spec in SPECS[::5]]
    for number, document in enumerate(made):
        document.pop("spec_hash", None)
        document |= {"name": "a run", "note": "a note", "tags": ["one"], "timing": {"created_at": 1.7e9 + number}}
        document |= {"format": 1, "error": {"kind": "Error", "text": "what went wrong"}, "inspection": None}
    return [*made, made[:2]]


def test_a_file_to_import_is_stored_or_refused_with_one_sentence(database: Database) -> None:
    def read(document: Any) -> None:
        data = json.dumps(document).encode()
        checked = transfer.check_file(data, document_spec, largest_bytes=2**22)
        with database.writing() as session:
            transfer.store_runs(session, checked)
            session.rollback()

    inputs.try_all("import", inputs.changed(documents()), read, transfer.ImportRefused)


def test_bytes_to_import_are_stored_or_refused_with_one_sentence() -> None:
    texts = [json.dumps(document).encode() for document in documents()]
    texts += [gzip.compress(text, mtime=0) for text in texts]

    def read(data: bytes) -> None:
        transfer.check_file(data, document_spec, largest_bytes=2**22)

    inputs.try_all("bytes of an import", inputs.damaged(texts), read, transfer.ImportRefused)


def test_a_folder_of_a_model_and_an_adapter_is_taken_or_refused_with_sentences(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 128,
        "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
    }
    adapter = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "use_dora": False,
        "alpha_pattern": {"q_proj": 4},
        "init_lora_weights": True,
    }
    weights = b"{}"
    (tmp_path / "adapter_model.safetensors").write_bytes(len(weights).to_bytes(8, "little") + weights)

    def read(both: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(both.get("config") if isinstance(both, dict) else both))
        (tmp_path / "adapter_config.json").write_text(
            json.dumps(both.get("adapter") if isinstance(both, dict) else both)
        )
        for model in (str(tmp_path), "tiny-test"):
            spec = parse_spec({"model": model, "adapter": {"path": str(tmp_path)}})
            for problem in requirements.problems(spec, [CPU], None):
                assert str(problem).isprintable(), problem
        labels.adapter_label({"path": str(tmp_path)})

    inputs.try_all("model folder", inputs.changed([{"config": config, "adapter": adapter}]), read)


def test_a_weight_file_is_read_or_refused_with_one_sentence(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.a.lora_A.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [16, 18]},
        "__metadata__": {"format": "pt"},
    }
    path = tmp_path / "adapter_model.safetensors"

    def read(given: tuple[Any, int]) -> None:
        header = json.dumps(given[0]).encode()
        path.write_bytes((len(header) + given[1]).to_bytes(8, "little") + header + b"\0" * 18)
        read_header(path)

    lengths = st.sampled_from([0, 0, 0, 1, -1, 7, 10_000, 2**40])
    inputs.try_all(
        "safetensors header", st.tuples(inputs.changed([tensors]), lengths), read, WeightFileError, OverflowError
    )


def test_run_ids_in_an_address_are_read_as_far_as_they_can_be() -> None:
    def read(text: str) -> None:
        asked = selection.parse_ids(text)
        assert all(0 < run_id < 2**63 for run_id in asked.ids)
        sentence = selection.missing_sentence(asked, asked.ids[1:])
        assert sentence is None or len(sentence) < 300

    words = (
        "1",
        "2",
        "3",
        ",",
        ",,",
        " ",
        "-1",
        "0",
        "01",
        "9" * 19,
        "9" * 400,
        "1.5",
        "1e3",
        "²",
        "٣",
        "0x1",
        "1_000",
    )
    inputs.try_all("run ids in an address", inputs.words_of(words), read)


def test_numbers_typed_into_a_field_or_an_address_are_read_or_refused_with_one_sentence() -> None:
    def read(text: str) -> None:
        fields.parse_numbers("Context lengths", text, whole=True)
        fields.parse_numbers("Alpha", text, whole=False)
        fields.parse_list("Ranks", text, whole=True)

    words = (
        "1",
        "16",
        "512,1024",
        ",",
        ";",
        "-5",
        "1.5",
        "1e3",
        "nan",
        "inf",
        "9" * 400,
        "9" * 5000,
        "1_0",
        "٣",
        "0x1",
    )
    inputs.try_all("numbers in a field", inputs.words_of(words), read, fields.FieldError)
