"""The predicted peak of a training step is the tracked peak of the real one, to the byte, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

from engine import catalog
from engine.jobs.train_memory import measure_memory
from engine.jobs.train_steps import prepare, sides_of
from engine.models import model_config
from engine.predict import history, predict
from engine.prediction import train
from engine.prediction.stream import peak
from engine.spec import TrainSpec, parse_spec

SAVERS = {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 2}


def spec_of(model: str = "minimind-26m", **fields: Any) -> TrainSpec:
    section = {"context_length": 24, **fields.pop("train", {})}
    spec = parse_spec({"kind": "train", "model": model, "train": section, **fields})
    assert isinstance(spec, TrainSpec)
    return spec


def measured(spec: TrainSpec) -> dict[str, float]:
    """The real step's peak and its parts in bytes, by the metric names of a run."""
    metrics = measure_memory(prepare(spec, lambda _: None), sides_of(spec)[0]).metrics
    return {metric.name: metric.value for metric in metrics if metric.name.endswith("_bytes")}


def predicted(spec: TrainSpec) -> dict[str, float]:
    found = predict(spec).peak
    names = ("parameters", "buffers", "gradients", "optimizer state", "activations", "temporary")
    parts = {f"{name.replace(' ', '_')}_bytes": found.bytes.get(name, 0) for name in names}
    return {"peak_bytes": found.total_bytes, **parts}


TYPES = [entry.id for entry in catalog.adapter_types().values() if "train" not in entry.cannot]


@pytest.mark.parametrize("kind", TYPES)
def test_every_adapter_type_is_predicted_to_the_byte(kind: str) -> None:
    spec = spec_of("tiny-test", adapter={"type": kind})
    assert predicted(spec) == measured(spec)


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": None},
        {"adapter": None, "dtype": "float32", "train": {"optimizer": "adafactor"}},
        {"adapter": None, "train": {"optimizer": "sgd", "gradient_checkpointing": True}},
        {"adapter": {"options": {"use_dora": True}}},
        {"adapter": {"adapter_dtype": "bfloat16"}},
        {"adapter": {"dropout": 0.1, "rank": 4, "target_modules": "qv"}},
        {"adapter": {"target_modules": "lm_head"}},
        {"attention": "eager", "train": {"batch_size": 3}},
        {"strategy": "fused"},
        {"train": SAVERS},
        {"strategy": "fused", "train": {**SAVERS, "accumulation": 2}},
        {"task": "sequence_classification"},
    ],
    ids=str,
)
def test_every_way_to_train_is_predicted_to_the_byte(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    assert predicted(spec) == measured(spec)


@pytest.mark.parametrize("model", ["gpt2", "smollm2-135m"])
def test_other_architectures_are_predicted_to_the_byte(model: str) -> None:
    assert predicted(spec_of(model)) == measured(spec_of(model))


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("gemma-2-9b", {"attention": "eager"}),
        ("mixtral-8x7b", {}),
        # A long context: the peak is in the forward pass. A short one: in the update.
        ("qwen2.5-0.5b", {"adapter": None, "train": {"context_length": 2048, "loss_chunks": 8}}),
        ("qwen2.5-0.5b", {"adapter": None, "train": {"context_length": 2, "gradient_checkpointing": True}}),
    ],
    ids=str,
)
def test_two_shallow_models_give_the_full_depth_to_the_byte(model: str, fields: dict[str, Any]) -> None:
    spec = spec_of(model, **fields)
    assert peak(*history(spec)) == peak(*train.record(spec, model_config(model)))
