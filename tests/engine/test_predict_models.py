"""Models whose code needs more than shapes: what can be answered without values is, and the rest is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from engine.jobs.train_memory import measure_memory
from engine.jobs.train_steps import prepare, sides_of
from engine.predict import predict
from engine.spec import InferenceSpec, SpecError, TrainSpec, parse_spec

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def spec_of(folder: Path, model_type: str, dtype: str, **sizes: int) -> TrainSpec:
    AutoConfig.for_model(model_type, **SIZES, **sizes).save_pretrained(folder)
    fields: dict[str, Any] = {"train": {"context_length": 8}, "adapter": {"target_modules": "attention"}}
    spec = parse_spec({"kind": "train", "model": str(folder), "dtype": dtype, **fields})
    assert isinstance(spec, TrainSpec)
    return spec


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_experts_are_predicted_to_the_byte_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    # PyTorch's fake kernel for their products refuses float32, which the real one takes.
    spec = spec_of(tmp_path, "mixtral", dtype)
    metrics = measure_memory(prepare(spec, lambda _: None), sides_of(spec)[0]).metrics
    measured = next(metric.value for metric in metrics if metric.name == "peak_bytes")
    assert predict(spec).peak.total_bytes == measured


def test_experts_whose_sizes_depend_on_values_are_refused_in_one_sentence_naming_the_operation(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "jetmoe", "float32", kv_channels=16)
    with pytest.raises(SpecError, match=r"^model: .*cannot be predicted: what .*split_with_sizes.* depends on values"):
        predict(spec)


def test_a_model_without_a_cache_is_one_sentence_for_a_request_as_it_is_for_the_real_one(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    AutoConfig.for_model("mamba", **sizes).save_pretrained(tmp_path)
    section = {"prompt_tokens": 2, "new_tokens": 2}
    spec = parse_spec(
        {"kind": "inference", "model": str(tmp_path), "attention": "eager", "adapter": None, "inference": section}
    )
    assert isinstance(spec, InferenceSpec)
    with pytest.raises(SpecError, match=r"^model: .*cannot be predicted: .*past_key_values"):
        predict(spec)
