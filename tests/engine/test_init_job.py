"""The init job from spec to outcome, on real models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig

from engine import adapters, catalog
from engine.jobs import run_job
from engine.jobs.init import run
from engine.jobs.outcome import Outcome
from engine.measure.process_memory import read_process_memory
from engine.models import build_model
from engine.result import Progress
from engine.spec import FreshAdapter, InitSpec, SpecError, parse_spec
from engine.strategies import row_norms

DORA = {"options": {"use_dora": True}}


def outcome(progress: list[Progress] | None = None, **fields: Any) -> Outcome:
    fields = {"model": "tiny-test", "repeats": 2, "warmup": 0, **fields}
    return run_job(parse_spec(fields), (progress if progress is not None else []).append)


def values(result: Outcome, name: str, variant: str | None = None) -> list[float]:
    return [metric.value for metric in result.metrics if (metric.name, metric.variant) == (name, variant)]


def checks(result: Outcome) -> dict[str, bool]:
    return {check.name: check.passed for check in result.checks}


def test_a_lora_run_has_every_metric_with_its_unit() -> None:
    result = outcome(repeats=3)
    units = {metric.name: metric.unit for metric in result.metrics}
    assert units == {
        "first_forward_time_s": "s",
        "first_attach_time_s": "s",
        "init_time_s": "s",
        "init_peak_extra_bytes": "bytes",
        "init_peak_extra_rss_bytes": "bytes",
        "adapter_parameters": "parameters",
        "adapted_modules": "modules",
    }
    assert len(values(result, "init_time_s")) == 3
    assert [metric.repeat for metric in result.metrics if metric.name == "init_time_s"] == [0, 1, 2]
    assert values(result, "first_forward_time_s", "base")
    assert values(result, "first_forward_time_s", "adapter")
    assert all(math.isfinite(metric.value) for metric in result.metrics)
    assert checks(result) == {"no_meta_parameters": True}


def test_counts_are_those_of_the_catalog() -> None:
    groups = [group for group in catalog.model("tiny-test").groups if group.role not in ("lm_head", "embedding")]
    result = outcome()
    assert values(result, "adapted_modules") == [sum(group.count for group in groups)]
    assert values(result, "adapter_parameters") == [sum(group.added_parameters(16) for group in groups)]


def test_peak_tensor_memory_is_at_least_the_adapter_and_samples_show_it() -> None:
    result = outcome(adapter=DORA)
    (peak,) = values(result, "init_peak_extra_bytes")
    adapter_bytes = values(result, "adapter_parameters")[0] * 4
    assert peak >= adapter_bytes
    at_end = {sample.category: sample.bytes for sample in result.samples}
    assert at_end["adapter parameters"] == adapter_bytes
    assert at_end["base parameters"] == catalog.model("tiny-test").parameters * 2
    by_time: dict[float, int] = {}
    for sample in result.samples:
        by_time[sample.time_s] = by_time.get(sample.time_s, 0) + sample.bytes
    assert max(by_time.values()) - at_end["base parameters"] >= peak
    assert all(sample.source == "tensors" for sample in result.samples)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("strategy", ["zero_b_norm", "factored_norm", "batched_norm", "deferred", "staged"])
def test_every_strategy_proves_itself_in_every_dtype(strategy: str, dtype: str) -> None:
    result = outcome(strategy=strategy, dtype=dtype, adapter=DORA)
    wanted = {"no_meta_parameters", "no_zero_norm_rows", "magnitude_equal", "logits_equal"}
    wanted |= {"magnitude_equal_with_noise"} if strategy == "factored_norm" else set()
    assert set(checks(result)) == wanted
    assert all(check.passed for check in result.checks), result.checks


@pytest.mark.parametrize("strategy", ["factored_norm", "batched_norm", "deferred", "staged"])
def test_strategies_prove_themselves_where_b_is_not_zero(strategy: str) -> None:
    result = outcome(strategy=strategy, adapter={"options": {"use_dora": True, "init_lora_weights": False}})
    assert all(check.passed for check in result.checks), result.checks


def test_a_strategy_wrong_by_one_percent_does_not_pass_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        return row_norms.row_norms(weight, transposed) * 1.01

    monkeypatch.setattr("engine.strategies.overlap.row_norms", wrong)
    result = outcome(strategy="zero_b_norm", adapter=DORA)
    assert checks(result)["magnitude_equal"] is False
    assert checks(result)["logits_equal"] is False


def test_stages_are_cumulative_and_end_before_the_attach_does() -> None:
    result = outcome(strategy="staged", repeats=1)
    stages = [metric for metric in result.metrics if metric.variant == "stage"]
    assert [metric.x for metric in stages] == [1, 2, 3, 4, 5, 6, 7]
    seconds = [metric.value for metric in stages]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= values(result, "init_time_s")[0]


def test_a_saved_adapter_is_attached_both_ways_and_proven(tmp_path: Path) -> None:
    model = build_model(InitSpec(model="tiny-test"))
    adapters.attach(model, FreshAdapter(options={"use_dora": True})).save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        for strategy in ("stock", "zero_b_norm"):
            adapter = {"path": str(tmp_path), "low_cpu_mem_usage": low_cpu_mem_usage}
            result = outcome(adapter=adapter, strategy=strategy)
            assert all(check.passed for check in result.checks), result.checks
            assert values(result, "adapted_modules") == [14]


def test_zero_rows_are_reported_and_no_metric_is_nan(tmp_path: Path) -> None:
    model = build_model(InitSpec(model="tiny-test"))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0] = 0
    model.save_pretrained(tmp_path)
    for strategy in ("stock", "zero_b_norm"):
        result = outcome(model=str(tmp_path), weights="pretrained", strategy=strategy, adapter=DORA)
        found = next(check for check in result.checks if check.name == "no_zero_norm_rows")
        assert not found.passed
        assert "1 rows of zero norm" in found.detail
        assert all(math.isfinite(metric.value) for metric in result.metrics)
    assert checks(result)["magnitude_equal"]


AVAILABLE = [name for name, entry in catalog.adapter_types().items() if entry.unavailable_reason is None]


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_available_adapter_type_goes_through_stock(name: str) -> None:
    result = outcome(adapter={"type": name}, repeats=1)
    assert values(result, "adapter_parameters")[0] > 0
    assert all(math.isfinite(metric.value) for metric in result.metrics)


@pytest.mark.parametrize("name", ["lora", "ia3", "glora", "prompt_tuning", "vera"])
def test_other_adapters_than_dora_prove_the_staged_strategy(name: str) -> None:
    result = outcome(adapter={"type": name}, strategy="staged", repeats=1)
    assert all(check.passed for check in result.checks), result.checks


def test_progress_names_the_phase_counts_modules_and_knows_what_is_left() -> None:
    progress: list[Progress] = []
    outcome(progress, adapter=DORA, strategy="zero_b_norm", repeats=2, warmup=1)
    phases = list(dict.fromkeys(step.phase for step in progress))
    assert phases[0] == "building model"
    attaching = ["first attach", "warm-up 1 of 1", "repeat 1 of 2", "repeat 2 of 2"]
    assert [phase for phase in phases if phase in attaching] == attaching
    later = [step for step in progress if step.phase == "repeat 1 of 2"]
    assert later[0].total == 14
    assert later[0].eta_s is not None
    assert progress[-1].eta_s < later[0].eta_s + 1


def test_progress_within_an_attach_is_reported_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(10**6))
    monkeypatch.setattr("engine.jobs.attaching.time.perf_counter", lambda: next(clock))
    progress: list[Progress] = []
    outcome(progress, repeats=1)
    first = [step.done for step in progress if step.phase == "first attach"]
    assert first == list(range(15))


def test_a_spec_that_peft_refuses_is_one_sentence() -> None:
    with pytest.raises(SpecError) as caught:
        outcome(adapter={"target_modules": ["no_such_module"]})
    assert "\n" not in str(caught.value)


def test_the_model_is_as_before_and_memory_does_not_grow_from_attach_to_attach() -> None:
    run(InitSpec(model="tiny-test", repeats=1), lambda _: None)
    before = read_process_memory()
    run(InitSpec(model="tiny-test", repeats=30), lambda _: None)
    after = read_process_memory()
    assert before is not None
    assert after is not None
    assert after.rss_bytes - before.rss_bytes < 30 * 2**20


def test_a_small_models_job_takes_little_more_than_its_attaches() -> None:
    import time

    start = time.perf_counter()
    result = outcome(repeats=1)
    attaches = values(result, "first_attach_time_s")[0] + 4 * values(result, "init_time_s")[0]
    assert time.perf_counter() - start - attaches < 1.0


def test_lora_on_a_mixture_of_experts_adapts_attention_and_the_fused_experts(tmp_path: Path) -> None:
    MixtralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=256,
    ).save_pretrained(tmp_path)
    result = outcome(model=str(tmp_path), adapter={"rank": 4})
    # Per layer: q, k, v, o and the two fused tensors of experts.
    assert values(result, "adapted_modules") == [12]
    attention = 4 * ((64 + 64) + (64 + 32) + (64 + 32) + (64 + 64))
    experts = 4 * 4 * ((64 + 192) + (96 + 64))
    assert values(result, "adapter_parameters") == [2 * (attention + experts)]
    assert all(checks(result).values())
