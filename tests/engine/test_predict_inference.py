"""The predicted peak of a request is the tracked peak of the real one in every form of the model, to the byte."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from transformers import MistralConfig

from engine.jobs import inference_variants as variants
from engine.jobs.inference_loop import peak_bytes, random_tokens
from engine.jobs.inference_variants import Trees
from engine.jobs.module_trees import sharing_copy
from engine.models import build_model, copied_weight, model_config
from engine.predict import history, predict
from engine.prediction import inference
from engine.prediction.stream import joined, peak
from engine.spec import InferenceSpec, parse_spec


def spec_of(model: str = "tiny-test", **fields: Any) -> InferenceSpec:
    section = {"prompt_tokens": 24, "new_tokens": 6, **fields.pop("inference", {})}
    spec = parse_spec({"kind": "inference", "model": model, "inference": section, **fields})
    assert isinstance(spec, InferenceSpec)
    return spec


def measured(spec: InferenceSpec) -> dict[str | None, int]:
    """Peaks of the real request, as the job's memory pass takes them."""
    section = spec.inference
    base = sharing_copy(build_model(spec))
    trees = Trees(base, None if spec.adapter is None else variants.attached(base, spec).model)
    prompt = random_tokens(base.config.get_text_config().vocab_size, section.batch_size, section.prompt_tokens, 0)
    found: dict[str | None, int] = {}
    for form in inference.forms(spec):
        with contextlib.ExitStack() as stack:
            if form == "merged":
                side = variants.merged_side(trees, copied_weight)
            elif form == "mixed_batch":
                several = variants.attached(base, spec, section.adapters)
                side = variants.mixed_side(several, section.batch_size)
            elif form == spec.strategy:
                side = stack.enter_context(variants.strategy_side(trees, spec))
            else:
                build = {"base": variants.base_side, "adapter_disabled": variants.disabled_side}
                side = build.get(form, variants.adapter_side)(trees)
            found[form] = peak_bytes(side, prompt, section.new_tokens)
    return found


def predicted(spec: InferenceSpec) -> dict[str | None, int]:
    return {form.variant: form.peak.total_bytes for form in predict(spec).forms}


DORA = {"options": {"use_dora": True}}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"adapter": DORA},
        {"adapter": {"type": "prefix_tuning"}},
        {"strategy": "fused", "inference": {"batch_size": 2}},
        {"strategy": "dora_cached", "adapter": DORA},
        {"inference": {"adapters": 2, "batch_size": 2, "variants": ["adapter"]}},
        {"dtype": "float32", "attention": "eager"},
    ],
    ids=str,
)
def test_every_form_of_the_model_is_predicted_to_the_byte(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    assert predicted(spec) == measured(spec)


@pytest.mark.parametrize("new_tokens", [1, 40])
def test_the_cache_has_the_length_that_it_has_at_the_last_token(new_tokens: int) -> None:
    spec = spec_of(adapter=None, inference={"prompt_tokens": 2, "new_tokens": new_tokens, "batch_size": 8})
    assert predicted(spec) == measured(spec)


def test_a_cache_that_keeps_only_a_window_is_predicted_to_the_byte(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    config.save_pretrained(tmp_path)
    spec = spec_of(str(tmp_path), adapter=None, inference={"prompt_tokens": 5, "new_tokens": 9, "batch_size": 64})
    assert predicted(spec) == measured(spec)


def test_the_cache_takes_keys_and_values_by_batch_and_length() -> None:
    def cache_bytes(prompt_tokens: int, batch_size: int) -> int:
        section = {"prompt_tokens": prompt_tokens, "new_tokens": 2, "batch_size": batch_size}
        _, parts = history(spec_of("tinyllama-1.1b", adapter=None, inference=section), "base")
        return sum(change.bytes for part in parts[:1] for change in part.changes if change.category == "cache")

    # 22 blocks, keys and values of 4 heads of 64 numbers in two bytes.
    per_token = 22 * 2 * 4 * 64 * 2
    assert cache_bytes(512, 4) == 512 * 4 * per_token


def test_two_shallow_models_give_the_full_depth_to_the_byte() -> None:
    spec = spec_of("qwen2.5-0.5b")
    full = inference.record(spec, "adapter", model_config("qwen2.5-0.5b"))
    assert peak(*history(spec, "adapter")) == peak(*joined(*full, "between"))
