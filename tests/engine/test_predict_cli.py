"""``python -m engine predict`` and the request of the same name: one document, or one sentence."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main
from engine.jobs import predict as job
from engine.predict import predict
from engine.result import Progress
from engine.spec import PredictSpec, TrainSpec, parse_spec, prediction_key, spec_hash

SPEC: dict[str, Any] = {"kind": "train", "model": "tiny-test", "train": {"context_length": 16}}


def run(spec: Any, monkeypatch: pytest.MonkeyPatch, *command: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(spec if isinstance(spec, str) else json.dumps(spec)))
    return main([*(command or ("predict",)), "-"])


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(SPEC, monkeypatch) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_prediction_is_one_result_document_with_the_peak_and_its_parts(document: dict[str, Any]) -> None:
    values = {metric["name"]: metric["value"] for metric in document["metrics"]}
    parts = ("parameters", "buffers", "gradients", "optimizer_state", "activations", "temporary")
    assert document["state"] == "succeeded"
    assert values["peak_bytes"] == sum(values[f"{part}_bytes"] for part in parts) > values["parameters_bytes"] > 0
    assert values["predict_time_s"] > 0


def test_a_prediction_says_in_which_part_the_peak_is_and_what_takes_most_there(document: dict[str, Any]) -> None:
    inspection = document["inspection"]
    sizes = [tensors["bytes"] for tensors in inspection["top_tensors"]]
    assert inspection["peak_part"] in ("forward", "backward", "optimizer")
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < len(sizes) <= 10
    assert all(set(tensors) == {"category", "module", "bytes"} for tensors in inspection["top_tensors"])
    assert inspection["notes"]


def test_the_course_reaches_the_peak_and_names_the_parts_in_their_order(document: dict[str, Any]) -> None:
    totals: dict[float, int] = {}
    parts = dict.fromkeys(sample["phase"] for sample in document["samples"])
    for sample in document["samples"]:
        totals[sample["time_s"]] = totals.get(sample["time_s"], 0) + sample["bytes"]
    peak = next(metric["value"] for metric in document["metrics"] if metric["name"] == "peak_bytes")
    assert max(totals.values()) == peak
    assert list(parts) == [part for part in ("forward", "backward", "optimizer", "release") if part in parts]


def test_a_prediction_is_never_taken_for_a_measurement(
    document: dict[str, Any], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert document["spec"]["kind"] == "predict"
    assert parse_spec(document["spec"]["of"][0]) == parse_spec(SPEC)
    path = tmp_path / "prediction.json"
    path.write_text(json.dumps(document))
    assert main(["import", str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


BAD: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "spec:"),
    "unknown model": ({**SPEC, "model": "tinylama-1.1b"}, "model:"),
    "rank larger than the layer": ({**SPEC, "adapter": {"rank": 4096}}, "adapter.rank:"),
    "context beyond the model's": ({**SPEC, "train": {"context_length": 2**20}}, "train.context_length:"),
    "targets match nothing": ({**SPEC, "adapter": {"target_modules": ["q_prj"]}}, "adapter.target_modules:"),
    "saved adapter that is not there": ({**SPEC, "adapter": {"path": "no/such/folder"}}, "adapter.path:"),
    "a kind that has no peak": ({"kind": "inspect", "model": "tiny-test"}, "kind:"),
    "compiled code": ({**SPEC, "strategy": "compiled"}, "strategy:"),
    "quantised weights that PEFT cannot adapt": (
        {**SPEC, "quantization": "nf4", "adapter": {"type": "boft"}},
        "quantization:",
    ),
    "one bad spec in a request": ({"kind": "predict", "of": [SPEC, {**SPEC, "dtype": "int3"}]}, "of.1.dtype:"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_that_names_the_field(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, field = BAD[name]
    assert run(spec, monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith(field), printed.err


def test_a_prediction_is_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"kind": "predict", "of": [SPEC]}, monkeypatch, "measure") == 2
    assert "python -m engine predict" in capsys.readouterr().err


def test_a_request_has_an_entry_for_each_spec_and_one_that_fails_keeps_no_other_from_it() -> None:
    full = {**SPEC, "adapter": None}
    request = parse_spec({"kind": "predict", "of": [SPEC, {**SPEC, "adapter": {"rank": 4096}}, full]})
    assert isinstance(request, PredictSpec)
    reports: list[Progress] = []
    found = job.run(request, reports.append)
    assert found.inspection is not None
    first, second, third = found.inspection["predictions"]
    assert [entry["spec_hash"] for entry in (first, second, third)] == [spec_hash(spec) for spec in request.of]
    assert third["key"] == prediction_key(request.of[2])  # type: ignore[arg-type]
    assert second["error"]["field"] == "adapter.rank"
    for entry, spec in ((first, request.of[0]), (third, request.of[2])):
        assert isinstance(spec, TrainSpec)
        peak = next(metric["value"] for metric in entry["metrics"] if metric["name"] == "peak_bytes")
        assert entry["error"] is None
        assert peak == predict(spec).peak.total_bytes == max(sum(m["bytes"].values()) for m in entry["course"])
    assert [(progress.done, progress.total) for progress in reports] == [(0, 3), (1, 3), (2, 3)]
    assert json.loads(json.dumps(found.inspection)) == found.inspection
