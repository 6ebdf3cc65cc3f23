"""The predicted peak of a training step is the tracked peak of the real one, to the byte, at any depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from engine.adapters import attach
from engine.jobs.train_memory import measure_memory
from engine.jobs.train_steps import prepare, sides_of
from engine.models import build_model, model_config
from engine.predict import history, predict
from engine.prediction import train
from engine.prediction.stream import peak
from engine.spec import SpecError, TrainSpec, parse_spec

SAVERS = {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 2}


def spec_of(model: str = "tiny-test", **fields: Any) -> TrainSpec:
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


# They compute with sparse tensors.
NOT_PREDICTED = {"frod": "", "shira": "Sparse"}
# One of each way in which types differ for a prediction: a loss of their own, numbers read while attaching, indices
# kept beside the parameters, random choices, virtual tokens, vectors that layers share.
TYPES = ("adalora", "boft", "cpt", "fourierft", "ln_tuning", "prefix_tuning", "unilora", "vblora", "waveft")


@pytest.mark.parametrize("kind", TYPES)
def test_adapters_of_all_sorts_are_predicted_to_the_byte(kind: str) -> None:
    spec = spec_of("tiny-test", adapter={"type": kind})
    assert predicted(spec) == measured(spec)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("adapter", [None, {"options": {"use_dora": True}}], ids=["full", "dora"])
def test_an_update_seen_at_another_context_length_is_the_one_that_runs(
    optimizer: str, adapter: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (
        spec_of(adapter=adapter, train={"context_length": length, "optimizer": optimizer}) for length in (16, 40)
    )
    monkeypatch.setattr(train, "_SEEN", {})
    alone = history(long)
    monkeypatch.setattr(train, "_SEEN", {})
    history(short)
    seen = dict(train._SEEN)
    assert history(long) == alone
    assert seen == train._SEEN


def test_an_update_whose_gradients_were_made_elsewhere_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over slices of the logits the head's gradients are made in the forward pass."""
    adapter = {"target_modules": ["lm_head", "q_proj"]}
    monkeypatch.setattr(train, "_SEEN", {})
    alone = history(spec_of(adapter=adapter, train={"loss_chunks": 3}))
    monkeypatch.setattr(train, "_SEEN", {})
    history(spec_of(adapter=adapter))
    assert history(spec_of(adapter=adapter, train={"loss_chunks": 3})) == alone


@pytest.mark.parametrize("kind", NOT_PREDICTED)
def test_a_type_that_needs_values_is_refused_in_one_sentence_naming_the_operation(kind: str) -> None:
    with pytest.raises(
        SpecError, match=f"^adapter.type: .*cannot be predicted: what .*{NOT_PREDICTED[kind]}"
    ) as caught:
        predict(spec_of("tiny-test", adapter={"type": kind}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "differ"),
    [
        ({}, False),
        ({"target_modules": r".*layers\.[0-2]\..*q_proj"}, True),
        ({"options": {"rank_pattern": {"layers.1.self_attn.q_proj": 4}}}, True),
        ({"type": "adaption_prompt", "options": {"adapter_layers": 3}}, True),
    ],
    ids=str,
)
def test_an_adapter_of_some_blocks_alone_is_followed_over_all_of_them(
    adapter: dict[str, Any] | None, differ: bool, tmp_path: Path
) -> None:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 8, "vocab_size": 96}
    LlamaConfig(hidden_size=64, intermediate_size=96, **sizes).save_pretrained(tmp_path)
    spec = spec_of(str(tmp_path), adapter=adapter)
    found = predict(spec)
    assert found.notes == (
        ("seen over all blocks",) if differ else ("seen over 2 and 3 blocks; all others do the same",)
    )
    assert predicted(spec) == measured(spec)


def test_a_saved_adapter_is_predicted_to_the_byte(tmp_path: Path) -> None:
    fresh = spec_of()
    assert fresh.adapter is not None
    attach(build_model(fresh), fresh.adapter).save_pretrained(str(tmp_path))
    spec = spec_of(adapter={"path": str(tmp_path)})
    assert predicted(spec) == measured(spec)


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": None, "dtype": "float32", "train": {"optimizer": "adafactor"}},
        {"adapter": {"options": {"use_dora": True}}},
        {"adapter": {"adapter_dtype": "bfloat16"}},
        {"adapter": {"target_modules": "lm_head"}},
        {"attention": "eager", "train": {"batch_size": 3}},
        {"strategy": "fused", "train": {**SAVERS, "accumulation": 2}},
        {"task": "sequence_classification"},
    ],
    ids=str,
)
def test_every_way_to_train_is_predicted_to_the_byte(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    assert predicted(spec) == measured(spec)


def test_another_architecture_is_predicted_to_the_byte(tmp_path: Path) -> None:
    GPT2Config(n_embd=64, n_layer=4, n_head=4, vocab_size=96, n_positions=64).save_pretrained(tmp_path)
    assert predicted(spec_of(str(tmp_path))) == measured(spec_of(str(tmp_path)))


@pytest.mark.parametrize(
    ("model", "fields"),
    [
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
