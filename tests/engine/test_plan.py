"""Plans of what fits: every figure is the predictor's, the largest that fits is the largest, and savings are real."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest

from engine.__main__ import main
from engine.catalog import card
from engine.models import build_meta
from engine.planning import plan as planning
from engine.planning.base_weights import base_weights
from engine.planning.needs import Needs
from engine.planning.places import Place, place
from engine.planning.step_time import step
from engine.predict import predict
from engine.spec import PlanSpec, TrainSpec, parse_spec

LORA: dict[str, Any] = {"kind": "train", "model": "tiny-test", "train": {"context_length": 64, "batch_size": 2}}
# Only tensors count there, so that what fits can be checked to the byte.
SMALL = Place("small", "Small", "mps", 2_300_000, "made up", ("float32", "bfloat16"))
LARGE = dataclasses.replace(SMALL, id="large", label="Large", memory_bytes=2**30)


def spec_of(document: dict[str, Any]) -> TrainSpec:
    spec = parse_spec(document)
    assert isinstance(spec, TrainSpec)
    return spec


def peak_bytes(document: dict[str, Any], **section: Any) -> int:
    train = {**document["train"], **section}
    return predict(spec_of({**document, "device": "mps", "train": train})).peak.total_bytes


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """LoRA, full fine-tuning and one that cannot be, in a small and a large memory."""
    request = parse_spec(
        {
            "kind": "plan",
            "of": [LORA, {**LORA, "adapter": None}, {**LORA, "adapter": {"target_modules": ["nothing"]}}],
            "places": ["rtx-3060", "rtx-4090"],
        }
    )
    assert isinstance(request, PlanSpec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "place", {"rtx-3060": SMALL, "rtx-4090": LARGE}.__getitem__)
        made = json.loads(json.dumps(planning.plan(request, lambda _: None)))
    return made  # type: ignore[no-any-return]


def answer(found: dict[str, Any], method: int, where: str) -> dict[str, Any]:
    (one,) = (one for one in found["answers"] if (one["method"], one["place"]) == (method, where))
    assert isinstance(one, dict)
    return one


def test_the_need_is_the_predicted_peak(found: dict[str, Any]) -> None:
    assert answer(found, 0, "small")["needed_bytes"] == peak_bytes(LORA)
    assert answer(found, 1, "large")["needed_bytes"] == peak_bytes({**LORA, "adapter": None})


def test_the_largest_context_and_batch_fit_and_the_next_do_not(found: dict[str, Any]) -> None:
    one = answer(found, 0, "small")
    length, unit, batch = one["largest_context"], one["context_unit"], one["largest_batch"]
    assert 0 < length < one["context_end"]
    assert peak_bytes(LORA, context_length=length) <= SMALL.memory_bytes
    assert peak_bytes(LORA, context_length=length + unit) > SMALL.memory_bytes
    assert batch > 0
    assert peak_bytes(LORA, batch_size=batch) <= SMALL.memory_bytes < peak_bytes(LORA, batch_size=batch + 1)


def test_no_context_is_longer_than_the_model_reads(found: dict[str, Any]) -> None:
    one = answer(found, 0, "large")
    assert one["largest_context"] == one["context_end"] == build_meta("tiny-test").config.max_position_embeddings


def test_each_change_saves_what_the_predictor_says(found: dict[str, Any]) -> None:
    changes = {change["id"]: change for change in answer(found, 0, "small")["changes"]}
    assert {"checkpointing", "loss_chunks", "context", "batch"} <= changes.keys()
    for name, section in (("checkpointing", {"gradient_checkpointing": True}), ("context", {"context_length": 32})):
        assert changes[name]["saved_bytes"] == peak_bytes(LORA) - peak_bytes(LORA, **section)
    savings = [change["saved_bytes"] for change in changes.values()]
    assert savings == sorted(savings, reverse=True)


def test_what_makes_it_fit_does(found: dict[str, Any]) -> None:
    together = answer(found, 0, "small")["together"]
    assert answer(found, 0, "small")["fit"] != "fits"
    assert predict(spec_of({**together["spec"], "device": "mps"})).peak.total_bytes == together["needed_bytes"]
    assert together["needed_bytes"] <= 0.9 * SMALL.memory_bytes


def test_nothing_needs_a_change_where_it_fits(found: dict[str, Any]) -> None:
    assert answer(found, 0, "large")["changes"] == []
    assert answer(found, 0, "large")["together"] is None


def test_a_method_that_cannot_be_has_a_sentence_and_comes_last(found: dict[str, Any]) -> None:
    assert "nothing" in answer(found, 2, "large")["error"]
    assert found["rankings"]["large"][-1] == 2
    assert set(found["rankings"]["large"][:2]) == {0, 1}


def test_trained_parameters_are_those_of_the_whole_model(found: dict[str, Any]) -> None:
    full = sum(parameter.numel() for parameter in build_meta("tiny-test").parameters())
    assert found["methods"][1]["trained_parameters"] == full
    assert 0 < found["methods"][0]["trained_parameters"] < full


def test_cards_with_the_same_attention_kernel_share_their_predictions() -> None:
    needs, spec = Needs(), spec_of(LORA)
    alike = [needs.need(spec, place(name)) for name in ("a100-40gb", "a100-80gb", "rtx-4090")]
    assert needs.predictions == 1
    assert len({need.tensor_bytes for need in alike}) == 1
    needs.need(spec, place("h100-80gb"))
    assert needs.predictions == 2


def test_a_card_needs_what_the_predictor_says_for_it() -> None:
    spec = spec_of({**LORA, "device": "cuda:0"})
    assert Needs().need(spec, place("h100-80gb")).bytes == predict(spec, card("h100-80gb")).needed_bytes


def test_base_weights_in_each_format() -> None:
    half, int8, nf4 = base_weights("minimind-26m")
    model = build_meta("minimind-26m")
    layer = model.model.layers[0].mlp.down_proj.weight
    assert half.bytes == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert nf4.bytes < int8.bytes < half.bytes
    linear = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "head" not in n)
    assert half.bytes - int8.unquantised_bytes == 2 * linear
    assert (layer.numel() + 4 * layer.shape[0]) <= int8.largest_module_bytes


def test_the_arithmetic_of_a_full_training_step_is_six_per_weight_and_token() -> None:
    spec = spec_of({**LORA, "model": "minimind-26m", "adapter": None})
    found = step(spec, place("a100-80gb"))
    few, more = (sum(work.half_flops for work in ops) for ops in (found.shallow, found.deeper))
    flops = few + found.further_periods * (more - few)
    assert flops == pytest.approx(6 * found.trainable_parameters * 128, rel=0.15)


def test_a_faster_card_takes_a_shorter_step_down_to_what_launching_takes() -> None:
    spec = spec_of({**LORA, "model": "minimind-26m", "train": {"context_length": 2048, "batch_size": 8}})
    slow = place("rtx-3060")
    found = step(spec, slow)
    times = [
        found.seconds(dataclasses.replace(slow, half_flops_per_s=speed * 1e12, bandwidth_bytes_per_s=speed * 1e10))
        for speed in (1, 2, 1e6, 2e6)
    ]
    assert None not in times
    first, second, third, last = (float(seconds or 0) for seconds in times)
    assert 0.5 <= second / first < 0.6
    assert third == last > 0


def test_no_time_is_estimated_where_no_data_sheet_says_how_fast() -> None:
    assert step(spec_of(LORA), place("rtx-3060")).seconds(place("this-machine")) is None


def run(document: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(document)))
    return main(["predict", "-"])


def test_the_command_line_prints_a_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = {**LORA, "train": {"context_length": 256}}
    assert run({"kind": "plan", "of": [short]}, monkeypatch) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["spec"]["kind"] == "plan"
    (only,) = document["inspection"]["answers"]
    assert (only["place"], only["fit"], only["largest_context"]) == ("this-machine", "fits", 256)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"of": []}, "of: must hold at least one spec"),
        ({"of": [{**LORA, "kind": "merge"}]}, "of.0"),
        ({"of": [LORA, {**LORA, "model": "gpt2"}]}, "of.1.model: must be tiny-test as in the first, not gpt2"),
        ({"of": [LORA, {**LORA, "train": {"context_length": 8, "batch_size": 2}}]}, "of.1.train.context_length: must"),
        ({"of": [LORA], "places": ["h10"]}, "places.0: unknown card 'h10'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_sentence(
    change: dict[str, Any],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run({"kind": "plan", **change}, monkeypatch) == 2
    assert sentence in capsys.readouterr().err
