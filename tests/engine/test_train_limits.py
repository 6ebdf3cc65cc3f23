"""What keeps a train spec from running, and what ends a run before it takes the machine's memory."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from engine.catalog.requirements import problems
from engine.jobs import run_job
from engine.jobs.train_fit import needed_bytes
from engine.jobs.train_memory import measure_memory
from engine.jobs.train_steps import Side, prepare
from engine.measure.free_memory import RESERVE_VARIABLE, free_memory_bytes, reserve_bytes
from engine.result import Device
from engine.spec import SpecError, parse_spec

CPU = Device("cpu", "cpu", "A processor", 2**34, ("float32", "bfloat16", "float16"))
GPU = Device("cuda:0", "cuda", "A GPU", 2**34, ("float32", "bfloat16", "float16"))


def only(train: dict[str, Any] | None = None, **fields: Any) -> str:
    section = {"context_length": 64, **(train or {})}
    spec = parse_spec({"kind": "train", "model": "tiny-test", **fields, "train": section})
    texts = [str(error) for error in problems(spec, (CPU, GPU), None)]
    assert len(texts) == 1, texts
    assert "\n" not in texts[0]
    return texts[0]


def test_a_context_longer_than_the_models_positions_is_refused() -> None:
    assert only({"context_length": 257}) == "train.context_length: 257 is longer than the model's 256 positions"


def test_virtual_tokens_count_as_positions() -> None:
    adapter = {"type": "prompt_tuning", "options": {"num_virtual_tokens": 20}}
    assert only({"context_length": 240}, adapter=adapter) == (
        "train.context_length: 240 and 20 virtual tokens is longer than the model's 256 positions"
    )


@pytest.mark.parametrize(
    ("train", "fields", "sentence"),
    [
        ({"loss_chunks": 65}, {}, "train.loss_chunks: 65 is more than the batch's 64 tokens"),
        (
            {"sequence_tiles": 65},
            {},
            "train.sequence_tiles: 65 is more than the 64 positions of context_length",
        ),
        (
            {"sequence_tiles": 2},
            {"model": "gpt2"},
            "train.sequence_tiles: must be 1: this model has no gated MLP "
            "(gate_proj, up_proj, down_proj), the only one that is sliced",
        ),
        (
            {"sequence_tiles": 2},
            {"adapter": {"type": "lily"}},
            "train.sequence_tiles: must be 1: Lily averages its router over the whole sequence, "
            "so slices would give another result",
        ),
        (
            {"loss_chunks": 2},
            {"adapter": {"type": "cpt"}},
            "train.loss_chunks: must be 1: CPT weighs the loss of each token itself and needs all logits",
        ),
        (
            {},
            {"strategy": "fused", "adapter": {"options": {"use_dora": True}}},
            "strategy: fused knows plain LoRA only, not DoRA; use stock or compiled",
        ),
        (
            {},
            {"strategy": "fused", "model": "gpt2"},
            "strategy: fused knows linear layers only, and this model has none; use stock",
        ),
        (
            {},
            {"strategy": "fused", "adapter": None},
            "strategy: fused works on LoRA and its forms, not on the bare model; use stock",
        ),
        (
            {"loss_chunks": 2},
            {"task": "sequence_classification"},
            "train.loss_chunks: must be 1: a classifier has no logits of the vocabulary to slice",
        ),
        (
            {},
            {"task": "sequence_classification", "adapter": {"target_modules": "lm_head"}},
            "adapter.target_modules: a classifier has no lm_head, and its own head is trained in any case; "
            "name modules of the last block",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(train: dict[str, Any], fields: dict[str, Any], sentence: str) -> None:
    assert only(train, **fields) == sentence


def test_prefix_tuning_with_checkpointing_is_refused() -> None:
    assert "checkpointing" in only({"gradient_checkpointing": True}, adapter={"type": "prefix_tuning"})


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_what_needs_bitsandbytes_is_refused_without_it() -> None:
    assert only({"optimizer": "adamw_8bit"}) == (
        "train.optimizer: adamw_8bit needs the package bitsandbytes, which is not installed; use adamw or adafactor"
    )
    assert only(quantization="nf4") == (
        "quantization: nf4 needs the package bitsandbytes, which is not installed; use null"
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"adapter": None},
            "quantization: must be null without an adapter: quantised weights cannot be trained",
        ),
        ({"adapter": {"type": "loha"}}, "quantization: must be null: PEFT has no LoHa layers for quantised weights"),
        ({"strategy": "fused"}, "strategy: fused knows plain weights only, not nf4; use stock"),
        (
            {"device": "cuda:0"},
            "quantization: needs PEFT_LAB_START_METHOD=spawn on a GPU, "
            "because bitsandbytes starts CUDA when it is imported",
        ),
    ],
)
def test_a_quantised_base_that_cannot_work_is_one_sentence(
    fields: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEFT_LAB_START_METHOD", raising=False)
    # Whether or not it is installed here is another test's question.
    monkeypatch.setattr("engine.catalog.kinds.train.has_bitsandbytes", lambda: True)
    assert only(quantization="nf4", **fields) == sentence


def test_the_reserve_is_a_share_of_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESERVE_VARIABLE, raising=False)
    assert reserve_bytes() >= 512 * 2**20
    monkeypatch.setenv(RESERVE_VARIABLE, "12345")
    assert reserve_bytes() == 12345
    assert free_memory_bytes() > 0


def test_a_reserve_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESERVE_VARIABLE, "5 %")
    with pytest.raises(SpecError, match=f"^{RESERVE_VARIABLE}: must be a number of bytes, not '5 %'$"):
        reserve_bytes()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("adapter", [{"type": "lora"}, None], ids=["lora", "full"])
def test_what_a_step_needs_is_told_from_short_ones(attention: str, adapter: dict[str, Any] | None) -> None:
    section = {"context_length": 200, "batch_size": 3}
    spec = parse_spec(
        {"kind": "train", "model": "tiny-test", "attention": attention, "adapter": adapter, "train": section}
    )
    trainer = prepare(spec, lambda _: None)  # type: ignore[arg-type]
    needed = needed_bytes(trainer, Side(None))
    found = measure_memory(trainer, Side(None))
    values = {metric.name: metric.value for metric in found.metrics}
    extra = values["peak_bytes"] - values["parameters_bytes"] - values["buffers_bytes"]
    assert needed == pytest.approx(extra, rel=0.1)


def test_a_stock_side_that_does_not_fit_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.jobs.train_fit.free_memory_bytes", lambda: 0)
    spec = parse_spec(
        {"kind": "train", "model": "tiny-test", "repeats": 1, "train": {"context_length": 100, "loss_chunks": 4}}
    )
    result = run_job(spec, lambda _: None)
    check = next(check for check in result.checks if check.name == "stock_measured")
    assert not check.passed
    assert check.detail.startswith("not run: a step needs about ")
    assert {metric.variant for metric in result.metrics} == {None}


# --- real workers -----------------------------------------------------------------------------------------------------


def measure(spec: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any], str]:
    finished = subprocess.run(
        [sys.executable, "-m", "engine", "measure", "-"],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )
    return finished.returncode, json.loads(finished.stdout) if finished.stdout else {}, finished.stderr


LARGE = {"kind": "train", "model": "minimind-26m", "repeats": 100, "train": {"context_length": 512, "batch_size": 8}}


def test_a_reserve_that_is_not_there_ends_the_run_as_out_of_memory() -> None:
    status, document, _ = measure(LARGE, **{RESERVE_VARIABLE: str(2**60)})
    assert status == 0
    assert document["state"] == "out_of_memory"
    assert document["error"]["text"].startswith("The run was stopped at ")
    assert RESERVE_VARIABLE in document["error"]["text"]


def test_a_run_over_its_memory_limit_ends_with_its_peak_and_its_phase() -> None:
    limit = 600 * 2**20
    status, document, _ = measure({**LARGE, "memory_limit_bytes": limit})
    assert status == 0
    assert document["state"] == "out_of_memory"
    assert document["metrics"][0]["name"] == "peak_rss_bytes"
    assert document["metrics"][0]["value"] > limit
    assert "in the phase 'warm-up 1 of 1'" in document["error"]["text"]
