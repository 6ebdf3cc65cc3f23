"""The predicted peak of attaching or merging is the tracked peak of the real thing, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.adapters import attach
from engine.jobs import init as init_job
from engine.jobs import merge as merge_job
from engine.jobs.attaching import Bench
from engine.jobs.merge_bench import MergeBench
from engine.models import build_model, model_config
from engine.predict import history, predict
from engine.prediction import init, merge
from engine.prediction.stream import peak
from engine.spec import InitSpec, MergeSpec, parse_spec

DORA = {"options": {"use_dora": True}}


def init_spec(model: str = "tiny-test", **fields: Any) -> InitSpec:
    spec = parse_spec({"kind": "init", "model": model, **fields})
    assert isinstance(spec, InitSpec)
    return spec


def merge_spec(model: str = "tiny-test", **fields: Any) -> MergeSpec:
    spec = parse_spec({"kind": "merge", "model": model, **fields})
    assert isinstance(spec, MergeSpec)
    return spec


def predicted(spec: InitSpec | MergeSpec) -> dict[str, float]:
    names = ("init_peak_extra_bytes", "merge_peak_extra_bytes", "merge_peak_extra_weights")
    return {metric.name: metric.value for metric in predict(spec).metrics() if metric.name in names}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "minimind-26m", "adapter": DORA},
        {"adapter": DORA, "strategy": "zero_b_norm"},
        {"adapter": DORA, "strategy": "factored_norm"},
        {"adapter": DORA, "strategy": "batched_norm"},
        {"adapter": DORA, "strategy": "deferred"},
        {"adapter": {"adapter_dtype": "bfloat16"}},
        {"dtype": "float32", "strategy": "staged"},
        {"adapter": {"type": "ia3"}},
        # Layers that PEFT copies, and weights that it replaces.
        {"adapter": {"type": "ln_tuning"}},
        {"adapter": {"options": {"init_lora_weights": "pissa"}}},
    ],
    ids=str,
)
def test_attaching_is_predicted_to_the_byte(fields: dict[str, Any]) -> None:
    spec = init_spec(**fields)
    metrics, _ = init_job._tensor_memory(Bench(spec, lambda _: None, 1))
    assert predicted(spec) == {metric.name: metric.value for metric in metrics}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "minimind-26m"},
        {"strategy": "safe"},
        {"adapter": DORA},
        {"adapter": DORA, "strategy": "row_blocks"},
        {"strategy": "addmm"},
        {"strategy": "out_of_place"},
        {"dtype": "float32"},
        {"adapter": {"type": "ia3"}},
        {"adapter": {"target_modules": "lm_head"}, "strategy": "row_blocks"},
    ],
    ids=str,
)
def test_merging_is_predicted_to_the_byte(fields: dict[str, Any]) -> None:
    spec = merge_spec(**fields)
    metrics, _ = merge_job._tensor_memory(MergeBench(spec, lambda _: None))
    measured = {metric.name: metric.value for metric in metrics if metric.name != "merge_retained_extra_bytes"}
    assert predicted(spec) == measured


def test_two_shallow_models_give_the_full_depth_to_the_byte() -> None:
    attaching, merging = init_spec("qwen2.5-0.5b", adapter=DORA), merge_spec("gpt2")
    for spec, found in (
        (attaching, init.record(attaching, model_config(attaching.model))),
        (merging, merge.record(merging, model_config(merging.model))),
    ):
        ((before, parts),) = found
        assert peak(*history(spec)) == peak(before, parts)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_attaching_a_saved_adapter_is_predicted_to_the_byte(tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    fresh = init_spec("minimind-26m", adapter=DORA)
    attach(build_model(fresh), fresh.adapter).save_pretrained(str(tmp_path))
    spec = init_spec("minimind-26m", adapter={"path": str(tmp_path), "low_cpu_mem_usage": low_cpu_mem_usage})
    metrics, _ = init_job._tensor_memory(Bench(spec, lambda _: None, 1))
    assert predicted(spec) == {metric.name: metric.value for metric in metrics}
