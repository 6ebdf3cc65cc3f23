"""The merge job from spec to outcome, on real models, and in a real worker process."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from engine import adapters, catalog
from engine.catalog.requirements import problems
from engine.jobs import merge_proof, originals, run_job
from engine.jobs.merge_bench import MergeBench
from engine.jobs.merge_reference import WeightError
from engine.jobs.outcome import Outcome
from engine.measure.environment import devices
from engine.models import build_model
from engine.result import Progress
from engine.spec import FreshAdapter, MergeSpec, SpecError, parse_spec
from engine.strategies import merge_blocks
from engine.strategies.merge_blocks import Piece
from tests.engine.conftest import Engine

DORA = {"options": {"use_dora": True}}
DTYPES = ("float32", "bfloat16", "float16")
ALWAYS = {"weight_dtype_kept", "merged_model_runs", "weights_equal", "logits_equal", "saved_and_reloaded"}


def spec(**fields: Any) -> MergeSpec:
    parsed = parse_spec({"kind": "merge", "model": "tiny-test", "repeats": 1, "warmup": 0, **fields})
    assert isinstance(parsed, MergeSpec)
    return parsed


def outcome(progress: list[Progress] | None = None, **fields: Any) -> Outcome:
    return run_job(spec(**fields), (progress if progress is not None else []).append)


def values(result: Outcome, name: str, variant: str | None = None) -> list[float]:
    return [metric.value for metric in result.metrics if (metric.name, metric.variant) == (name, variant)]


def checks(result: Outcome) -> dict[str, bool]:
    return {check.name: check.passed for check in result.checks}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with the configs of a GPT-2 (Conv1D), a Mixtral (fused experts) and a Llama with tied weights."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    configs = {
        "conv1d": GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=2, n_positions=64),
        "experts": MixtralConfig(intermediate_size=96, num_local_experts=4, vocab_size=256, **sizes),
        "tied": LlamaConfig(intermediate_size=160, vocab_size=96, tie_word_embeddings=True, **sizes),
    }
    made = {}
    for name, config in configs.items():
        folder = tmp_path_factory.mktemp(name)
        config.save_pretrained(folder)
        made[name] = str(folder)
    return made


def test_a_run_has_every_metric_with_its_unit() -> None:
    result = outcome(repeats=3)
    units = {metric.name: metric.unit for metric in result.metrics}
    assert units == {
        "largest_weight_bytes": "bytes",
        "merge_time_s": "s",
        "unmerge_time_s": "s",
        "merge_peak_extra_bytes": "bytes",
        "merge_peak_extra_weights": "W",
        "merge_retained_extra_bytes": "bytes",
        "merge_peak_extra_rss_bytes": "bytes",
        "relative_weight_error": "ratio",
        "relative_logit_error": "ratio",
        "merge_drift": "ratio",
    }
    assert [metric.repeat for metric in result.metrics if metric.name == "merge_time_s"] == [0, 1, 2]
    assert [metric.x for metric in result.metrics if metric.name == "merge_drift"] == list(range(1, 11))
    assert len(values(result, "unmerge_time_s")) == 3
    assert values(result, "merge_peak_extra_rss_bytes", "anonymous")
    assert all(math.isfinite(metric.value) for metric in result.metrics)


def test_the_largest_weight_is_the_largest_adapted_one() -> None:
    sizes = {group.name: group.in_features * group.out_features * 2 for group in catalog.model("tiny-test").groups}
    assert values(outcome(), "largest_weight_bytes") == [sizes["gate_proj"]]
    assert values(outcome(adapter={"target_modules": ["q_proj"]}), "largest_weight_bytes") == [sizes["q_proj"]]


def test_stocks_peak_is_four_weights_and_the_samples_show_it() -> None:
    result = outcome()
    assert values(result, "merge_peak_extra_weights")[0] == pytest.approx(4, abs=0.01)
    (peak,), (largest,) = values(result, "merge_peak_extra_bytes"), values(result, "largest_weight_bytes")
    assert peak == values(result, "merge_peak_extra_weights")[0] * largest
    temporary = max(sample.bytes for sample in result.samples if sample.category == "temporary")
    assert temporary == peak
    assert values(result, "merge_retained_extra_bytes") == [0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["stock", "safe", "addmm", "row_blocks"])
def test_every_strategy_proves_itself_in_every_dtype(strategy: str, dtype: str) -> None:
    result = outcome(strategy=strategy, dtype=dtype)
    assert set(checks(result)) == ALWAYS
    assert all(check.passed for check in result.checks), result.checks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["stock", "safe", "row_blocks"])
def test_dora_is_proven_in_every_dtype(strategy: str, dtype: str) -> None:
    result = outcome(strategy=strategy, dtype=dtype, adapter=DORA)
    assert all(check.passed for check in result.checks), result.checks


@pytest.mark.parametrize("strategy", ["stock", "row_blocks", "addmm"])
@pytest.mark.parametrize("name", ["conv1d", "experts"])
def test_other_layers_than_linear_are_proven(name: str, strategy: str, folders: dict[str, str]) -> None:
    result = outcome(model=folders[name], strategy=strategy, adapter={"rank": 4})
    assert all(check.passed for check in result.checks), result.checks


def test_embeddings_are_proven() -> None:
    for strategy in ("stock", "row_blocks"):
        result = outcome(strategy=strategy, adapter={"target_modules": ["embed_tokens"]})
        assert all(check.passed for check in result.checks), result.checks


def test_out_of_place_keeps_float32_weights_and_is_recorded_so() -> None:
    result = outcome(strategy="out_of_place")
    found = checks(result)
    assert not found["weight_dtype_kept"]
    assert not found["merged_model_runs"]
    assert found["weights_equal"]
    adapted = sum(group.in_features * group.out_features * group.count for group in _adapted_groups())
    assert values(result, "merge_retained_extra_bytes") == [2 * adapted]


def _adapted_groups() -> list[Any]:
    return [group for group in catalog.model("tiny-test").groups if group.role not in ("lm_head", "embedding")]


def test_out_of_place_keeps_the_dtype_of_a_float32_model() -> None:
    result = outcome(strategy="out_of_place", dtype="float32")
    assert all(check.passed for check in result.checks), result.checks
    assert values(result, "merge_retained_extra_bytes") == [0]


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"]])
def test_stock_is_recorded_as_unequal_on_a_tied_weight_and_ours_as_equal(
    targets: list[str], folders: dict[str, str]
) -> None:
    for adapter in ({"rank": 4, "target_modules": targets}, {"rank": 4, "target_modules": targets, **DORA}):
        stock = outcome(model=folders["tied"], adapter=adapter)
        assert checks(stock)["logits_equal"] is False
        ours = outcome(model=folders["tied"], adapter=adapter, strategy="row_blocks")
        assert all(check.passed for check in ours.checks), ours.checks
        assert values(ours, "merge_retained_extra_bytes") == [96 * 64 * 2]


# --- a wrong result does not pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_whose_change_is_one_percent_too_large_does_not_pass(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = merge_blocks.add_rounded_once
    monkeypatch.setattr(
        "engine.strategies.merge.add_rounded_once", lambda piece, sign=1.0: original(piece, 1.01 * sign)
    )
    assert checks(outcome(strategy="row_blocks", dtype=dtype))["weights_equal"] is False


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_scaled_by_one_percent_do_not_pass(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = merge_blocks.add_and_scale

    def wrong(piece: Piece) -> torch.Tensor:
        norms = original(piece)
        piece.weight.mul_(1.01)
        return norms

    monkeypatch.setattr("engine.strategies.merge.add_and_scale", wrong)
    found = checks(outcome(strategy="row_blocks", dtype=dtype, adapter=DORA))
    assert found["weights_equal"] is False
    assert found["logits_equal"] is False


def test_weights_are_equal_up_to_1_1_times_stocks_error_and_only_with_the_whole_effect() -> None:
    stock = WeightError(0.01, 1.0, 1e-6)
    assert merge_proof.check_weights(WeightError(0.0109, 1.0, 1e-6), stock).passed
    assert not merge_proof.check_weights(WeightError(0.0111, 1.0, 1e-6), stock).passed
    assert not merge_proof.check_weights(WeightError(0.0109, 1.01, 1e-6), stock).passed
    assert not merge_proof.check_weights(WeightError(0.0109, 0.99, 1e-6), None).passed
    assert not merge_proof.check_weights(WeightError(math.nan, math.nan, 1e-6), stock).passed


def test_logits_are_equal_near_stocks_error_only() -> None:
    assert merge_proof.check_logits(0.011, 0.01).passed
    assert not merge_proof.check_logits(0.02, 0.01).passed
    assert not merge_proof.check_logits(math.nan, 0.01).passed
    assert merge_proof.check_logits(0.05, None).passed
    assert not merge_proof.check_logits(0.7, None).passed


def test_a_reloaded_model_must_give_the_same_logits() -> None:
    logits = torch.ones(2, 3, dtype=torch.float64)
    assert merge_proof.check_saved(logits, logits.clone()).passed
    assert not merge_proof.check_saved(logits, logits * 1.01).passed


# --- the weights are put back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [{}, DORA, {"type": "ia3"}, {"options": {"init_lora_weights": "pissa"}}])
@pytest.mark.parametrize("strategy", ["stock", "safe"])
def test_every_merge_starts_from_the_same_weights(strategy: str, adapter: dict[str, Any]) -> None:
    bench = MergeBench(spec(adapter=adapter), lambda _: None)
    before = {name: tensor.clone() for name, tensor in bench.root.state_dict().items()}
    for _ in range(2):
        with bench.put_back("merge"):
            merged = bench.merge_and_unload(strategy, contextlib.nullcontext())
            assert not any("lora" in name or "ia3" in name for name, _ in merged.named_parameters())
        after = bench.root.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_tied_weights_are_tied_again(folders: dict[str, str]) -> None:
    adapter = {"rank": 4, "target_modules": ["lm_head"]}
    bench = MergeBench(spec(model=folders["tied"], adapter=adapter), lambda _: None)
    with bench.put_back("merge"):
        bench.merge_and_unload("row_blocks", contextlib.nullcontext())
    assert bench.root.config.tie_word_embeddings is True
    assert bench.root.lm_head.base_layer.weight is bench.root.model.embed_tokens.weight


def test_weights_come_back_from_a_file_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build_model(spec()).save_pretrained(tmp_path)
    monkeypatch.setattr(originals, "_MEMORY_SHARE", 0)
    bench = MergeBench(spec(model=str(tmp_path), weights="pretrained"), lambda _: None)
    assert isinstance(bench._originals._copy, originals._FileCopy)
    before = {name: tensor.clone() for name, tensor in bench.root.state_dict().items()}
    for strategy in ("stock", "out_of_place"):
        with bench.put_back("merge"):
            bench.merge_and_unload(strategy, contextlib.nullcontext())
        assert all(torch.equal(before[name], tensor) for name, tensor in bench.root.state_dict().items())


def test_synthetic_weights_are_written_again_instead_of_copied() -> None:
    bench = MergeBench(spec(), lambda _: None)
    assert len(bench._originals._from_seed) == 14


def test_merging_leaves_no_second_model_in_memory() -> None:
    bench = MergeBench(spec(adapter=DORA), lambda _: None)
    pointers = {weight.data_ptr() for weight in bench.weights()}
    kept = [data for _, data, _ in bench._snapshot._parameters if data is not None]
    assert not kept
    with bench.put_back("merge"):
        bench.merge_and_unload("row_blocks", contextlib.nullcontext())
        assert {weight.data_ptr() for weight in bench.weights()} == pointers


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_a_saved_adapter_is_merged_as_it_was_saved(tmp_path: Path) -> None:
    attached = adapters.attach(build_model(spec()), FreshAdapter(options={"init_lora_weights": False}))
    attached.save_pretrained(tmp_path)
    bench = MergeBench(spec(adapter={"path": str(tmp_path)}), lambda _: None)
    wanted = dict(attached.named_parameters())
    assert all(torch.equal(wanted[name], tensor) for name, tensor in bench.peft.named_parameters() if "lora_" in name)
    result = outcome(adapter={"path": str(tmp_path)}, strategy="row_blocks")
    assert all(check.passed for check in result.checks), result.checks


def test_a_fresh_saved_adapter_which_would_change_nothing_gets_noise(tmp_path: Path) -> None:
    adapters.attach(build_model(spec()), FreshAdapter()).save_pretrained(tmp_path)
    result = outcome(adapter={"path": str(tmp_path)})
    assert all(check.passed for check in result.checks), result.checks


# LoRA has tests of its own.
MERGEABLE = [
    name
    for name in catalog.adapter_types()
    if name != "lora" and not problems(spec(adapter={"type": name}), devices(), None)
]


@pytest.mark.parametrize("name", MERGEABLE)
def test_every_other_type_goes_through_stock(name: str) -> None:
    _goes_through(name, "stock")


@pytest.mark.parametrize("name", ["ia3", "oft", "vera", "ln_tuning", "shira"])
def test_other_types_go_through_safe(name: str) -> None:
    _goes_through(name, "safe")


def _goes_through(name: str, strategy: str) -> None:
    result = outcome(adapter={"type": name}, strategy=strategy)
    assert checks(result)["weights_equal"], result.checks
    assert checks(result)["logits_equal"], result.checks
    assert values(result, "merge_time_s")
    can_unmerge = "unmerge" not in catalog.adapter_type(name).cannot
    assert bool(values(result, "unmerge_time_s")) == can_unmerge


# --- the outside ------------------------------------------------------------------------------------------------------


def test_progress_names_the_phases() -> None:
    progress: list[Progress] = []
    outcome(progress, repeats=2, warmup=1)
    phases = list(dict.fromkeys(step.phase for step in progress))
    wanted = ["building model", "attaching adapter", "warm-up 1 of 1", "repeat 1 of 2", "repeat 2 of 2"]
    assert [phase for phase in phases if phase in wanted] == wanted
    assert phases[-1] == "10 rounds of merging and unmerging"


def test_what_peft_refuses_to_merge_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError) as caught:
        outcome(strategy="addmm", adapter=DORA)
    assert caught.value.field == "adapter"
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("home")
def test_a_worker_process_prints_the_result(engine: Engine) -> None:
    fields = {"kind": "merge", "model": "tiny-test", "strategy": "row_blocks", "repeats": 2, "warmup": 0}
    done = engine("measure", "-", stdin=json.dumps(fields))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["state"] == "succeeded"
    assert all(check["passed"] for check in document["checks"])
    assert sum(metric["name"] == "merge_time_s" for metric in document["metrics"]) == 2


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"strategy": "addmm", "adapter": DORA}, "strategy: addmm has no meaning for DoRA"),
        ({"strategy": "out_of_place", "adapter": DORA}, "strategy: out_of_place has no meaning for DoRA"),
        ({"strategy": "row_blocks", "adapter": {"type": "ia3"}}, "strategy: row_blocks works on LoRA and its forms"),
        ({"adapter": {"type": "prompt_tuning"}}, "adapter.type: "),
        ({"strategy": "fused"}, "strategy: unknown merge strategy 'fused'"),
        ({"quantization": "nf4"}, "quantization: "),
        ({"train": {}}, "train: is not a field of this spec"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(fields: dict[str, Any], sentence: str, engine: Engine) -> None:
    done = engine("measure", "-", stdin=json.dumps({"kind": "merge", "model": "tiny-test", **fields}))
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
