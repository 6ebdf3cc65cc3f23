"""Quantised bases and the 8-bit optimizer are predicted without bitsandbytes as they are with it."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from engine.catalog import card
from engine.jobs.train_memory import measure_memory
from engine.jobs.train_steps import prepare, sides_of
from engine.predict import predict
from engine.spec import SpecError, TrainSpec, parse_spec

DORA = {"options": {"use_dora": True}}
CHECKPOINTED = {"gradient_checkpointing": True}
# What the tracked step took with bitsandbytes 0.50.2.
MEASURED_BYTES: list[tuple[dict[str, Any], int]] = [
    ({"quantization": "nf4"}, 917304),
    ({"quantization": "nf4", "train": CHECKPOINTED}, 768440),
    ({"quantization": "nf4", "adapter": DORA}, 1150152),
    ({"quantization": "nf4", "adapter": {"type": "hira"}}, 1305400),
    ({"quantization": "int8"}, 974264),
    ({"quantization": "int8", "train": CHECKPOINTED}, 834616),
    ({"adapter": None, "train": {"optimizer": "adamw_8bit"}}, 897864),
]


def spec_of(**fields: Any) -> TrainSpec:
    section = {"context_length": 24, **fields.pop("train", {})}
    spec = parse_spec({"kind": "train", "model": "tiny-test", "train": section, **fields})
    assert isinstance(spec, TrainSpec)
    return spec


@pytest.mark.parametrize(("fields", "measured_bytes"), MEASURED_BYTES, ids=str)
def test_what_bitsandbytes_takes_is_predicted_to_the_byte(fields: dict[str, Any], measured_bytes: int) -> None:
    assert predict(spec_of(**fields)).peak.total_bytes == measured_bytes


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes, which is optional, is not installed"
)
@pytest.mark.parametrize("fields", [fields for fields, _ in MEASURED_BYTES], ids=str)
def test_the_installed_bitsandbytes_takes_what_is_predicted(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    metrics = measure_memory(prepare(spec, lambda _: None), sides_of(spec)[0]).metrics
    measured = next(metric.value for metric in metrics if metric.name == "peak_bytes")
    assert predict(spec).peak.total_bytes == measured


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_on_a_card_a_quantised_base_takes_less_than_a_plain_one(quantization: str) -> None:
    plain, quantised = (
        predict(spec_of(train={"context_length": 2}, **fields), card("t4")).peak.total_bytes
        for fields in ({}, {"quantization": quantization})
    )
    assert quantised < plain


def test_a_step_that_fails_over_its_dtypes_is_refused_in_one_sentence() -> None:
    with pytest.raises(SpecError, match=r"^model: .* a product of float32 and bfloat16 fails"):
        predict(spec_of(quantization="nf4", adapter={"type": "road"}))


def test_the_stand_in_is_gone_after_a_prediction() -> None:
    before = {name: module for name, module in sys.modules.items() if "bitsandbytes" in name or name.endswith(".bnb")}
    predict(spec_of(quantization="nf4"))
    after = {name: module for name, module in sys.modules.items() if "bitsandbytes" in name or name.endswith(".bnb")}
    after.pop("engine.prediction.fake_bitsandbytes")
    before.pop("engine.prediction.fake_bitsandbytes")
    assert after == before
