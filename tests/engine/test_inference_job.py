"""The inference job from spec to outcome, on real models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from engine import adapters, catalog
from engine.jobs import inference_variants as variants
from engine.jobs import run_job
from engine.jobs.inference_loop import timed_request
from engine.jobs.outcome import Outcome
from engine.models import build_model
from engine.spec import FreshAdapter, InferenceSpec, SpecError, parse_spec
from tests.engine.conftest import Engine

DORA = {"options": {"use_dora": True}}
SHORT = {"prompt_tokens": 10, "new_tokens": 4}


def outcome(section: dict[str, Any] | None = None, **fields: Any) -> Outcome:
    fields = {"kind": "inference", "model": "tiny-test", "repeats": 1, "warmup": 0, **fields}
    return run_job(parse_spec({**fields, "inference": {**SHORT, **(section or {})}}), lambda _: None)


def values(result: Outcome, name: str, variant: str | None = None) -> list[float]:
    return [metric.value for metric in result.metrics if (metric.name, metric.variant) == (name, variant)]


def checks(result: Outcome) -> dict[str, bool]:
    return {check.name: check.passed for check in result.checks}


@pytest.fixture(scope="module")
def lora() -> Outcome:
    return outcome(repeats=3, warmup=1, strategy="fused", seed=3)


def test_every_variant_has_every_metric_once_per_repeat(lora: Outcome) -> None:
    wanted = {"base", "adapter_disabled", "adapter", "fused", "merged"}
    for name in ("prefill_time_s", "decode_token_time_s", "decode_tokens_per_s", "request_time_s"):
        found = [(metric.variant, metric.repeat) for metric in lora.metrics if metric.name == name]
        assert sorted(found) == sorted((variant, repeat) for variant in wanted for repeat in range(3))
    assert {metric.variant for metric in lora.metrics if metric.name == "overhead_ratio"} == wanted - {"base"}
    assert {metric.variant for metric in lora.metrics if metric.name == "peak_bytes"} == wanted
    assert all(math.isfinite(metric.value) and metric.value > 0 for metric in lora.metrics)


def test_a_request_is_its_prompt_and_all_its_tokens(lora: Outcome) -> None:
    for variant in ("base", "adapter", "merged"):
        prefill, decode, request = (
            values(lora, name, variant) for name in ("prefill_time_s", "decode_token_time_s", "request_time_s")
        )
        for first, step, whole in zip(prefill, decode, request, strict=True):
            assert first + 3 * step == pytest.approx(whole, rel=0.05)


def test_rate_and_overhead_follow_from_the_decoding_times_of_the_same_repeat(lora: Outcome) -> None:
    base = values(lora, "decode_token_time_s", "base")
    ours = values(lora, "decode_token_time_s", "adapter")
    assert values(lora, "decode_tokens_per_s", "adapter") == pytest.approx([1 / seconds for seconds in ours])
    ratios = [seconds / other for seconds, other in zip(ours, base, strict=True)]
    assert values(lora, "overhead_ratio", "adapter") == pytest.approx(ratios)


def test_every_form_is_proven_and_the_base_is_untouched(lora: Outcome) -> None:
    assert checks(lora) == {
        "adapter_disabled_logits_equal": True,
        "fused_logits_equal": True,
        "fused_logits_equal_in_float32": True,
        "merged_logits_equal": True,
        "merged_logits_equal_in_float32": True,
        "base_unchanged": True,
    }


def test_memory_counts_the_weights_of_each_form_and_what_a_strategy_keeps(lora: Outcome) -> None:
    weights = catalog.model("tiny-test").parameters * 2
    adapter = sum(
        group.added_parameters(16) * 4
        for group in catalog.model("tiny-test").groups
        if group.role not in ("lm_head", "embedding")
    )
    (base,), (stock,), (fused,) = (values(lora, "peak_bytes", name) for name in ("base", "adapter", "fused"))
    assert values(lora, "peak_bytes", "merged") == [base]
    assert weights < base < weights * 2
    assert stock - base >= adapter
    assert adapter * 0.9 < fused - stock < adapter * 1.1
    (read,), (more,) = (values(lora, "weight_bytes_per_token", name) for name in ("base", "adapter"))
    assert more - read == adapter
    assert values(lora, "weight_bytes_per_token", "adapter_disabled") == [read]
    assert read < weights


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_forms_agree_in_other_dtypes(dtype: str) -> None:
    result = outcome(dtype=dtype, strategy="fused")
    assert all(check.passed for check in result.checks), result.checks


@pytest.mark.parametrize("strategy", ["fused", "dora_cached"])
def test_dora_strategies_prove_themselves(strategy: str) -> None:
    result = outcome(adapter=DORA, strategy=strategy)
    assert all(check.passed for check in result.checks), result.checks
    assert values(result, "decode_token_time_s", strategy)


def test_an_adapter_in_half_precision_is_proven_too() -> None:
    result = outcome(adapter={"adapter_dtype": "bfloat16"}, strategy="fused")
    assert all(check.passed for check in result.checks), result.checks


def test_a_compiled_run_tells_compiling_apart_and_is_proven(tmp_path: Path) -> None:
    LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
    ).save_pretrained(tmp_path)
    section = {"variants": ["base", "adapter"], "new_tokens": 3}
    adapter = {"target_modules": ["q_proj"], "rank": 2}
    result = outcome(section, model=str(tmp_path), adapter=adapter, dtype="float32", strategy="compiled", repeats=2)
    (compiling,) = values(result, "compile_time_s", "compiled")
    assert compiling > 10 * max(values(result, "decode_token_time_s", "compiled"))
    assert values(result, "graph_breaks", "compiled") == [0]
    assert values(result, "recompiles", "compiled") == [0]
    assert checks(result)["compiled_logits_equal"]


def test_several_adapters_share_a_batch_and_are_swapped() -> None:
    result = outcome({"adapters": 2, "batch_size": 3}, repeats=2)
    assert checks(result)["mixed_batch_logits_equal"]
    assert len(values(result, "decode_token_time_s", "mixed_batch")) == 2
    assert len(values(result, "adapter_swap_time_s", "adapter")) == 4
    assert values(result, "decode_tokens_per_s", "base")[0] == pytest.approx(
        3 / values(result, "decode_token_time_s", "base")[0]
    )


def test_the_bare_model_is_a_run_of_its_own() -> None:
    result = outcome(adapter=None)
    assert {metric.variant for metric in result.metrics} == {"base"}
    assert checks(result) == {"base_unchanged": True}


def test_one_new_token_is_a_prompt_alone() -> None:
    result = outcome({"new_tokens": 1, "variants": ["base", "adapter"]})
    assert values(result, "request_time_s", "adapter")
    assert not values(result, "decode_token_time_s", "adapter")
    assert not values(result, "overhead_ratio", "adapter")


INFERRING = [
    name
    for name, entry in catalog.adapter_types().items()
    if entry.unavailable_reason is None and "inference" not in entry.cannot
]


@pytest.mark.parametrize("name", INFERRING)
def test_every_adapter_type_answers_and_its_forms_agree(name: str) -> None:
    result = outcome({"new_tokens": 2, "prompt_tokens": 6}, adapter={"type": name}, dtype="float32")
    assert values(result, "overhead_ratio", "adapter")
    assert all(check.passed for check in result.checks), result.checks


def test_merged_is_measured_last_where_a_second_copy_of_the_weights_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.jobs.inference._SHARE_FOR_MERGED", 0.0)
    result = outcome(repeats=2)
    assert checks(result)["merged_interleaved"] is False
    assert checks(result)["merged_logits_equal"]
    assert checks(result)["base_unchanged"]
    assert len(values(result, "overhead_ratio", "merged")) == 2


def test_the_proof_stands_on_the_first_blocks_where_float32_copies_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.jobs.inference_proof.free_bytes", lambda _: 600_000)
    result = outcome(strategy="fused")
    found = {check.name: check for check in result.checks}
    assert "on the first 1 blocks" in found["fused_logits_equal_in_float32"].detail
    assert all(check.passed for check in result.checks), result.checks


def test_olora_writes_into_weights_of_its_own() -> None:
    adapter = {"options": {"init_lora_weights": "olora"}}
    result = outcome({"variants": ["base", "adapter", "merged"]}, adapter=adapter, dtype="float32")
    assert checks(result)["base_unchanged"]
    assert checks(result)["merged_logits_equal"]


def test_pissa_switched_off_is_not_the_base_and_the_check_says_why() -> None:
    result = outcome(adapter={"options": {"init_lora_weights": "pissa"}})
    check = next(check for check in result.checks if check.name == "adapter_disabled_logits_equal")
    assert not check.passed
    assert "not the base model" in check.detail


def test_a_saved_adapter_is_measured_too(tmp_path: Path) -> None:
    model = build_model(InferenceSpec(model="tiny-test"))
    adapters.attach(model, FreshAdapter()).save_pretrained(tmp_path)
    result = outcome({"adapters": 2, "batch_size": 2}, adapter={"path": str(tmp_path)}, strategy="fused")
    assert all(check.passed for check in result.checks), result.checks


SMALL = {
    "gpt2": GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=256, n_positions=64, bos_token_id=0, eos_token_id=0)
}
SMALL["mixtral"] = MixtralConfig(  # type: ignore[assignment]
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    vocab_size=256,
    max_position_embeddings=64,
)


@pytest.mark.parametrize("name", SMALL)
def test_forms_agree_on_other_architectures(name: str, tmp_path: Path) -> None:
    SMALL[name].save_pretrained(tmp_path)
    result = outcome(model=str(tmp_path), strategy="fused", adapter={"rank": 4}, dtype="float32")
    assert all(check.passed for check in result.checks), result.checks


def test_of_fused_experts_only_those_that_a_token_uses_are_counted(tmp_path: Path) -> None:
    SMALL["mixtral"].save_pretrained(tmp_path)
    one, four = (
        values(
            outcome({"batch_size": size, "variants": ["base"]}, model=str(tmp_path), adapter={"rank": 4}),
            "weight_bytes_per_token",
            "base",
        )[0]
        * size
        for size in (1, 4)
    )
    # Two of four experts of three matrices in each of two layers.
    assert four - one == 2 * 2 * 3 * 64 * 96 * 2


def test_a_request_takes_exactly_the_tokens_asked_for() -> None:
    spec = parse_spec({"kind": "inference", "model": "tiny-test"})
    assert isinstance(spec, InferenceSpec)
    base = build_model(spec)
    base.generation_config.eos_token_id = list(range(base.config.vocab_size))
    calls: list[int] = []
    base.register_forward_pre_hook(lambda _, __, named: calls.append(named["input_ids"].shape[1]), with_kwargs=True)
    side = variants.base_side(variants.Trees(base, None))
    timed_request(side, torch.zeros(1, 7, dtype=torch.long), 5, torch.device("cpu"))
    assert calls == [7, 1, 1, 1, 1]


# --- what cannot work -------------------------------------------------------------------------------------------------


def spec_text(**fields: Any) -> str:
    return json.dumps({"kind": "inference", "model": "tiny-test", "repeats": 1, "warmup": 0, **fields})


def test_the_command_line_measures_in_a_worker_process(engine: Engine) -> None:
    done = engine("measure", "-", stdin=spec_text(inference=SHORT, strategy="fused"))
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"]) == (0, "succeeded")
    assert all(check["passed"] for check in document["checks"])


def test_a_spec_that_cannot_work_is_one_sentence_and_exit_status_2(engine: Engine) -> None:
    done = engine("measure", "-", stdin=spec_text(inference={"prompt_tokens": 10**6, "new_tokens": 4}))
    assert done.returncode == 2
    assert done.stderr.startswith("inference.prompt_tokens: 1000000 prompt and 4 new tokens are more than the model's")
    assert done.stderr.count("\n") == 1


def problems(**document: Any) -> list[str]:
    from engine.catalog import requirements
    from engine.measure.environment import devices

    spec = parse_spec({"kind": "inference", "model": "tiny-test", **document})
    return [str(problem) for problem in requirements.problems(spec, devices(), None)]


def test_sections_out_of_bounds_name_their_field() -> None:
    for name in ("batch_size", "new_tokens", "prompt_tokens", "adapters"):
        with pytest.raises(SpecError) as caught:
            parse_spec({"kind": "inference", "model": "tiny-test", "inference": {name: 0}})
        assert str(caught.value) == f"inference.{name}: should be greater than or equal to 1 (got 0)"


def test_types_that_cannot_merge_leave_merged_out_and_refuse_it_when_asked() -> None:
    for name in ("prompt_tuning", "lily", "beft"):
        left_out = parse_spec({"kind": "inference", "model": "tiny-test", "adapter": {"type": name}})
        assert isinstance(left_out, InferenceSpec)
        assert left_out.inference.variants == ("base", "adapter_disabled", "adapter")
        assert problems(adapter={"type": name}, inference=SHORT) == []
        (problem,) = problems(adapter={"type": name}, inference={**SHORT, "variants": ["base", "merged"]})
        assert problem.startswith("inference.variants: must not name merged for")


def test_what_peft_cannot_mix_in_a_batch_is_refused() -> None:
    section = {**SHORT, "adapters": 2, "batch_size": 2}
    for adapter in (DORA, {"type": "vera"}, {"options": {"init_lora_weights": "pissa"}}):
        (problem,) = problems(adapter=adapter, inference=section)
        assert problem.startswith("inference.adapters: must be 1 for")
    (problem,) = problems(inference={**SHORT, "adapters": 3, "batch_size": 2})
    assert problem.endswith("raise inference.batch_size to at least 3")


def test_strategies_that_an_adapter_lacks_are_refused() -> None:
    assert problems(adapter={"type": "ia3"}, strategy="fused", inference=SHORT)[0].startswith(
        "strategy: fused works on"
    )
    assert problems(strategy="dora_cached", inference=SHORT)[0].startswith("strategy: dora_cached replaces")
    found = problems(adapter={"type": "prompt_tuning"}, strategy="compiled", inference=SHORT)
    assert found[0].startswith("strategy: compiled has nothing to win")


def test_virtual_tokens_count_as_positions() -> None:
    positions = catalog.model("tiny-test").config["max_position_embeddings"]
    section = {"prompt_tokens": positions - 10, "new_tokens": 10}
    assert problems(inference=section) == []
    assert problems(adapter={"type": "prompt_tuning"}, inference=section)[0].startswith("inference.prompt_tokens:")


def test_a_saved_adapter_of_another_model_is_refused_by_its_first_mismatch(tmp_path: Path) -> None:
    MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
    ).save_pretrained(tmp_path / "model")
    other = build_model(InferenceSpec(model=str(tmp_path / "model")))
    adapter = FreshAdapter(rank=2, target_modules=("q_proj", "k_proj"))
    adapters.attach(other, adapter).save_pretrained(tmp_path / "adapter")
    (problem,) = problems(adapter={"path": str(tmp_path / "adapter")}, inference=SHORT)
    inputs = next(group for group in catalog.model("tiny-test").groups if group.name == "k_proj").in_features
    mismatch = f"its model.layers.0.self_attn.k_proj.lora_A has 32 inputs and this model's layer {inputs}"
    assert problem.endswith(f"does not belong to this model: {mismatch}")
