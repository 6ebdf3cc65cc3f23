"""The train job from spec to outcome, on real models, adapters and optimizers."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import adapters
from engine.catalog.requirements import has_compiler
from engine.jobs import run_job
from engine.jobs.outcome import Outcome
from engine.jobs.train_steps import Side, prepare, sides_of
from engine.models import build_model
from engine.result import Progress
from engine.spec import FreshAdapter, InitSpec, TrainSpec, parse_spec

SHORT = {"context_length": 32, "batch_size": 2}
LAST_BLOCK = r"model\.layers\.1\..*"


def spec_of(train: dict[str, Any] | None = None, **fields: Any) -> TrainSpec:
    fields = {"kind": "train", "model": "tiny-test", "repeats": 1, "warmup": 0, **fields}
    spec = parse_spec({**fields, "train": {**SHORT, **(train or {})}})
    assert isinstance(spec, TrainSpec)
    return spec


def outcome(train: dict[str, Any] | None = None, progress: list[Progress] | None = None, **fields: Any) -> Outcome:
    return run_job(spec_of(train, **fields), (progress if progress is not None else []).append)


def values(result: Outcome, name: str, variant: str | None = None) -> list[float]:
    return [metric.value for metric in result.metrics if (metric.name, metric.variant) == (name, variant)]


def one(result: Outcome, name: str, variant: str | None = None) -> float:
    (value,) = values(result, name, variant)
    return value


def failed(result: Outcome) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]


TIMES = {"step_time_s", "forward_time_s", "backward_time_s", "optimizer_time_s"}
PARTS = ("parameters", "buffers", "gradients", "optimizer_state", "activations", "temporary")


def test_a_stock_run_has_every_metric_with_its_unit_and_no_second_side() -> None:
    result = outcome(repeats=3)
    units = {metric.name: metric.unit for metric in result.metrics}
    expected = dict.fromkeys(TIMES, "s") | {f"{part}_bytes": "bytes" for part in PARTS}
    expected |= {"peak_bytes": "bytes", "peak_rss_bytes": "bytes", "unattributed_bytes": "bytes"}
    expected |= {"trainable_parameters": "parameters", "total_parameters": "parameters"}
    assert units == expected | {"train_tokens_per_s": "tokens/s", "gradient_depth_layers": "layers"}
    assert {metric.variant for metric in result.metrics} == {None}
    assert [metric.repeat for metric in result.metrics if metric.name == "step_time_s"] == [0, 1, 2]
    assert all(math.isfinite(metric.value) for metric in result.metrics)
    assert failed(result) == []


def test_the_parts_of_a_step_add_up_to_it() -> None:
    result = outcome(repeats=5)
    for repeat in range(5):
        parts = sum(values(result, name)[repeat] for name in sorted(TIMES - {"step_time_s"}))
        whole = values(result, "step_time_s")[repeat]
        assert 0.8 * whole < parts <= whole


def test_the_breakdown_adds_up_to_the_byte() -> None:
    for adapter in ({"type": "lora"}, None):
        result = outcome(adapter=adapter)
        assert sum(one(result, f"{part}_bytes") for part in PARTS) == one(result, "peak_bytes")
        at_peak: dict[float, int] = {}
        for sample in result.samples:
            at_peak[sample.time_s] = at_peak.get(sample.time_s, 0) + sample.bytes
        assert max(at_peak.values()) >= one(result, "peak_bytes")


@pytest.mark.parametrize(("adapter", "bytes_each"), [({"type": "lora"}, 4), (None, 2)])
def test_adamw_keeps_twice_the_trained_bytes_and_a_counter_each(
    adapter: dict[str, Any] | None, bytes_each: int
) -> None:
    spec = spec_of(adapter=adapter)
    tensors = len(prepare(spec, lambda _: None).trained)
    result = outcome(adapter=adapter)
    trained = one(result, "trainable_parameters")
    assert one(result, "optimizer_state_bytes") == 2 * trained * bytes_each + 4 * tensors
    in_optimizer = [s.bytes for s in result.samples if s.category == "gradients" and "optimizer" in s.phase]
    assert max(in_optimizer) == trained * bytes_each


def test_full_fine_tuning_trains_every_parameter_in_the_models_dtype() -> None:
    result = outcome(adapter=None)
    assert one(result, "trainable_parameters") == one(result, "total_parameters") == 139584
    assert one(result, "parameters_bytes") == 139584 * 2
    assert failed(result) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor"])
def test_other_optimizers_keep_less_than_adamw(optimizer: str) -> None:
    assert one(outcome({"optimizer": optimizer}), "optimizer_state_bytes") < one(outcome(), "optimizer_state_bytes")


# --- what saves memory ------------------------------------------------------------------------------------------------

SAVERS: list[dict[str, Any]] = [
    {"train": {"gradient_checkpointing": True}},
    {"train": {"loss_chunks": 3}},
    {"train": {"sequence_tiles": 3}},
    {"strategy": "fused"},
    {"adapter": {"adapter_dtype": "bfloat16"}},
    {
        "strategy": "fused",
        "adapter": {"adapter_dtype": "bfloat16", "dropout": 0.1},
        "train": {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 3, "accumulation": 2},
    },
    {"adapter": None, "train": {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 3}},
]


@pytest.mark.parametrize("asked", SAVERS, ids=str)
def test_each_saver_needs_less_than_stock_beside_it_and_proves_its_gradients(asked: dict[str, Any]) -> None:
    result = outcome(**asked)
    assert failed(result) == []
    assert one(result, "peak_bytes") < one(result, "peak_bytes", "stock")
    assert len(values(result, "step_time_s", "stock")) == 1
    assert any(check.name.startswith("gradients_equal") for check in result.checks)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_savers_prove_themselves_in_other_dtypes(dtype: str) -> None:
    asked = {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 3}
    assert failed(outcome(asked, dtype=dtype, strategy="fused")) == []


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}], ids=str)
def test_the_savers_work_with_forms_of_lora(options: dict[str, Any]) -> None:
    asked = {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 3}
    assert failed(outcome(asked, adapter={"options": options})) == []


def test_accumulation_gives_the_gradients_of_the_mean_and_counts_all_tokens() -> None:
    result = outcome({"accumulation": 3})
    tokens = one(result, "train_tokens_per_s") * one(result, "step_time_s")
    assert tokens == pytest.approx(3 * 2 * 32)


def test_the_model_is_as_before_when_a_side_is_left() -> None:
    asked = {"gradient_checkpointing": True, "loss_chunks": 3, "sequence_tiles": 3}
    trainer = prepare(spec_of(asked, strategy="fused", adapter={"adapter_dtype": "bfloat16"}), lambda _: None)
    asked_side, stock = sides_of(trainer.spec)

    def state() -> list[Any]:
        return [
            ("forward" in vars(module), len(module._forward_hooks), getattr(module, "gradient_checkpointing", None))
            for module in trainer.model.modules()
        ] + [parameter.dtype for parameter in trainer.model.parameters()]

    before = state()
    for side in (asked_side, stock):
        with trainer.active(side):
            if side is stock:
                assert {parameter.dtype for parameter in trainer.trained} == {torch.float32}
    assert state() == before


# --- depth ------------------------------------------------------------------------------------------------------------


def detail(result: Outcome, name: str) -> str:
    return next(check.detail for check in result.checks if check.name == name)


@pytest.mark.parametrize(("targets", "depth"), [("all-linear", 2), (LAST_BLOCK, 1), ("lm_head", 0)])
def test_gradients_reach_as_deep_as_the_deepest_adapted_module(targets: str, depth: int) -> None:
    result = outcome(adapter={"target_modules": targets})
    assert one(result, "gradient_depth_layers") == depth
    assert f"{'none' if depth == 0 else depth} of" in detail(result, "gradient_depth")


def test_transformers_checkpointing_sends_gradients_through_every_block() -> None:
    result = outcome({"gradient_checkpointing": True}, adapter={"target_modules": LAST_BLOCK})
    assert one(result, "gradient_depth_layers") == 2
    assert one(result, "gradient_depth_layers", "stock") == 1


# --- tasks and adapters -----------------------------------------------------------------------------------------------


def test_a_classifier_trains_with_its_last_block_alone() -> None:
    result = outcome(task="sequence_classification", adapter={"target_modules": LAST_BLOCK})
    assert failed(result) == []
    assert one(result, "gradient_depth_layers") == 1
    # The adapter of one block and the classifier's own head.
    whole = outcome(task="sequence_classification")
    head = 64 * 2
    assert one(result, "trainable_parameters") - head == (one(whole, "trainable_parameters") - head) / 2


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning", "p_tuning", "cartridge", "ia3", "vera", "adalora"])
def test_other_types_train(kind: str) -> None:
    assert failed(outcome(adapter={"type": kind})) == []


def test_tokens_whose_embeddings_are_trained_occur_in_the_batch() -> None:
    result = outcome(adapter={"type": "trainable_tokens", "options": {"token_indices": [7, 9]}})
    assert failed(result) == []


@pytest.mark.parametrize("fresh", [FreshAdapter(), FreshAdapter(type="prompt_tuning")], ids=lambda a: a.type)
def test_a_saved_adapter_is_trained_on(fresh: FreshAdapter, tmp_path: Path) -> None:
    adapters.attach(build_model(InitSpec(model="tiny-test")), fresh).save_pretrained(tmp_path)
    assert failed(outcome(adapter={"path": str(tmp_path)})) == []


BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes, which is optional, is not installed"
)


@BITSANDBYTES
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_takes_less_and_trains(quantization: str) -> None:
    result = outcome({"sequence_tiles": 3, "loss_chunks": 3}, quantization=quantization)
    assert failed(result) == []
    assert one(result, "parameters_bytes") < one(outcome(), "parameters_bytes")


@BITSANDBYTES
def test_eight_bit_adamw_keeps_less_than_adamw() -> None:
    result = outcome({"optimizer": "adamw_8bit"}, adapter=None)
    assert failed(result) == []
    assert one(result, "optimizer_state_bytes") < one(outcome(adapter=None), "optimizer_state_bytes")


def test_progress_names_what_is_run_and_knows_what_is_left() -> None:
    progress: list[Progress] = []
    outcome({"loss_chunks": 2}, progress, repeats=2, warmup=1)
    phases = [step.phase for step in progress]
    wanted = ["building model", "proof: gradients beside stock's", "warm-up 1 of 1", "warm-up 1 of 1 (stock)"]
    wanted += ["repeat 1 of 2", "repeat 1 of 2 (stock)", "repeat 2 of 2", "memory", "memory (stock)"]
    assert [phase for phase in phases if phase in wanted] == sorted(wanted, key=phases.index)
    assert set(wanted) <= set(phases)
    assert progress[-1].eta_s is not None


def test_an_error_in_a_step_says_in_which_part() -> None:
    trainer = prepare(spec_of(), lambda _: None)
    trainer.batch.input_ids[0, 0] = 10**6
    with pytest.raises((RuntimeError, IndexError)) as caught:
        trainer.step(Side(None))
    assert any("forward pass" in note for note in caught.value.__notes__)


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler, and this machine has none")
def test_a_compiled_run_tells_compiling_apart_and_compiles_once() -> None:
    result = outcome(strategy="compiled", dtype="float32", repeats=2)
    assert failed(result) == []
    assert one(result, "compile_time_s") > 10 * max(values(result, "step_time_s"))
    assert one(result, "graph_breaks") == one(result, "recompiles") == 0
    assert len(values(result, "step_time_s", "stock")) == 2
