from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.spec import (
    MEASURED_KINDS,
    InitSpec,
    InspectSpec,
    MergeFilesSpec,
    PredictSpec,
    SavedAdapter,
    SpecError,
    canonical_json,
    parse_spec,
    prediction_key,
    spec_hash,
)


def refusal(spec: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_spec_with_only_a_model_is_lora_on_all_linear_layers() -> None:
    spec = parse_spec({"model": "tiny-test"})
    assert isinstance(spec, InitSpec)
    assert spec.model_dump(mode="json")["adapter"] == {
        "type": "lora",
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "adapter_dtype": "float32",
        "options": {},
    }


def test_what_was_left_out_and_what_was_written_out_have_one_hash() -> None:
    short = parse_spec({"model": "tiny-test"})
    long = parse_spec(canonical_json(short))
    assert spec_hash(short) == spec_hash(long)
    assert spec_hash(short) == spec_hash(
        parse_spec({"model": "tiny-test", "adapter": {"options": {"use_dora": False}}})
    )


def test_the_order_of_target_modules_does_not_change_the_hash() -> None:
    one = parse_spec({"model": "tiny-test", "adapter": {"target_modules": ["v_proj", "q_proj", "q_proj"]}})
    other = parse_spec({"model": "tiny-test", "adapter": {"target_modules": ["q_proj", "v_proj"]}})
    assert spec_hash(one) == spec_hash(other)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float16"}, {"seed": 1}, {"strategy": "staged"}, {"adapter": {"options": {"use_dora": True}}}],
)
def test_whatever_decides_a_measurement_changes_the_hash(change: dict[str, Any]) -> None:
    assert spec_hash(parse_spec({"model": "tiny-test"})) != spec_hash(parse_spec({"model": "tiny-test", **change}))


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec({"model": "tiny-test"})
    with pytest.raises(ValidationError, match="frozen"):
        spec.model = "gpt2"  # type: ignore[misc]


def test_cuda_is_the_first_gpu() -> None:
    spec = parse_spec({"model": "tiny-test", "device": "cuda"})
    assert spec.device == "cuda:0"


def test_fields_that_a_type_lacks_are_null() -> None:
    spec = parse_spec({"model": "tiny-test", "adapter": {"type": "prompt_tuning"}})
    assert isinstance(spec, InitSpec)
    adapter = spec.model_dump()["adapter"]
    assert [adapter[name] for name in ("rank", "alpha", "dropout", "target_modules")] == [None] * 4


def test_a_saved_adapter_keeps_its_absolute_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = parse_spec({"model": "tiny-test", "adapter": {"path": "mine"}})
    assert isinstance(spec, InitSpec)
    assert isinstance(spec.adapter, SavedAdapter)
    assert spec.adapter.path == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{", "spec: is not valid JSON (line 1, column 2)"),
        ("[" * 100_000, "spec: is not valid JSON"),
        ("[]", "spec: must be a JSON object, not a list"),
        ({}, "model: is missing"),
        ({"model": ""}, "model: "),
        (
            {"model": "m", "kind": "trian"},
            "kind: must be one of init, merge, train, inference, inspect, predict, plan, merge_files, not 'trian'",
        ),
        ({"model": "m", "modle": 1}, "modle: is not a field of this spec"),
        ({"model": "m", "train": {}}, "train: is not a field of this spec"),
        ({"model": "m", "dtype": "int8"}, "dtype: "),
        ({"model": "m", "device": "gpu"}, "device: must be cpu, mps or cuda:N, not 'gpu'"),
        (
            {"model": "m", "strategy": "zero_norm"},
            "strategy: unknown init strategy 'zero_norm'; the nearest is zero_b_norm",
        ),
        ({"model": "m", "repeats": 0}, "repeats: "),
        ({"model": "m", "timeout_s": float("inf")}, "timeout_s: must be a finite number, not inf"),
        (
            {"model": "m", "adapter": {"type": "loora"}},
            "adapter.type: unknown adapter type 'loora'; the nearest is lora",
        ),
        ({"model": "m", "adapter": {"rank": 0}}, "adapter.rank: "),
        ({"model": "m", "adapter": {"rank": "x"}}, "adapter.rank: "),
        ({"model": "m", "adapter": {"alpha": float("inf")}}, "adapter.alpha: must be a finite number, not inf"),
        ({"model": "m", "adapter": {"alpha": float("nan")}}, "adapter.alpha: must be a finite number, not nan"),
        ({"model": "m", "adapter": {"dropout": 1}}, "adapter.dropout: "),
        ({"model": "m", "adapter": {"target_modules": []}}, "adapter.target_modules: give a preset"),
        ({"model": "m", "adapter": {"type": "ia3", "rank": 4}}, "adapter.rank: IA³ has no rank; leave it out"),
        ({"model": "m", "adapter": {"type": "ia3", "options": {"use_dora": True}}}, "DoRA is a form of LoRA"),
        ({"model": "m", "adapter": {"adapter_dtype": "float16"}}, "adapter.adapter_dtype: must be float32"),
        ({"model": "m", "adapter": 3}, "adapter"),
        ({"model": "m", "adapter": {"type": "prompt_tuning", "target_modules": "mlp"}}, "adapts no modules"),
        ({"kind": "predict", "of": []}, "of: must hold at least one spec"),
        ({"kind": "predict", "of": {"model": "m"}}, "of: must be a list of specs, not an object"),
        ({"kind": "predict", "of": [{"kind": "train"}]}, "of.0.model: is missing"),
        (
            {"kind": "predict", "of": [{"model": "m"}, {"kind": "inspect", "model": "m"}]},
            "of.1.kind: must be one of init, merge, train, inference, not 'inspect'",
        ),
    ],
)
def test_a_spec_that_cannot_work_is_refused_in_one_sentence_naming_the_field(spec: Any, expected: str) -> None:
    assert expected in refusal(spec)


def test_the_canonical_text_is_json_with_every_field() -> None:
    document = json.loads(canonical_json(parse_spec({"model": "tiny-test", "device_type": "NVIDIA H200"})))
    assert set(document) == set(InitSpec.model_fields)


def test_a_spec_that_asks_for_no_type_of_device_has_the_hash_that_it_had_before_there_was_one() -> None:
    spec = parse_spec({"model": "tiny-test"})
    assert "device_type" not in json.loads(canonical_json(spec))
    assert spec_hash(spec) == "a1036ac1fd58c2759141644f2638079901add65a2b21f7a23fdbbe45fce8b657"


def test_a_request_to_predict_keeps_each_spec_as_a_spec_of_its_kind() -> None:
    specs = [parse_spec({"kind": kind, "model": "tiny-test"}) for kind in MEASURED_KINDS]
    request = parse_spec({"kind": "predict", "of": [spec.model_dump(mode="json") for spec in specs]})
    assert isinstance(request, PredictSpec)
    assert list(request.of) == specs
    assert parse_spec(canonical_json(request)) == request


def key_of(card: str | None = None, **fields: Any) -> str:
    spec = parse_spec({"kind": "train", "model": "tiny-test", **fields})
    assert not isinstance(spec, InspectSpec | MergeFilesSpec | PredictSpec)
    return prediction_key(spec, card)


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"train": {"context_length": 64}}, {"device": "cuda:0"}, {"card": "t4"}], ids=str
)
def test_whatever_decides_a_prediction_changes_its_key(change: dict[str, Any]) -> None:
    assert key_of(**change) != key_of()


def test_how_often_and_from_which_numbers_a_spec_is_measured_does_not_change_its_predictions_key() -> None:
    measured = {"repeats": 3, "warmup": 0, "seed": 7, "threads": 1, "timeout_s": 9, "memory_limit_bytes": 2**30}
    assert key_of(**measured) == key_of()


def test_a_local_model_that_has_changed_has_another_key(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    before = key_of(model=str(tmp_path))
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    assert key_of(model=str(tmp_path)) != before


def test_a_request_to_predict_on_a_card_that_is_not_known_names_the_nearest() -> None:
    spec = {"kind": "train", "model": "tiny-test"}
    assert refusal({"kind": "predict", "of": [spec], "card": "h10"}).startswith("card: unknown card 'h10'; the nearest")
    assert parse_spec({"kind": "predict", "of": [spec], "card": "t4"}).card == "t4"  # type: ignore[union-attr]
