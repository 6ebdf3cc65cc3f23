"""The predicted peaks of a training step on a CUDA device beside what its allocator counts; only where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.jobs.predict import checked
from engine.jobs.train_memory import measure_memory
from engine.jobs.train_steps import prepare, sides_of
from engine.spec import TrainSpec, parse_spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none")

LARGEST_ALLOCATED_ERROR, LARGEST_RESERVED_ERROR = 0.05, 0.10


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "minimind-26m"},
        {"model": "tinyllama-1.1b"},
        {"model": "tinyllama-1.1b", "adapter": None, "attention": "eager"},
        {"model": "tinyllama-1.1b", "dtype": "float32", "train": {"context_length": 1024}},
        {"model": "tinyllama-1.1b", "train": {"context_length": 2048, "gradient_checkpointing": True}},
        {"model": "qwen2.5-0.5b", "adapter": {"options": {"use_dora": True}}, "train": {"batch_size": 4}},
    ],
    ids=str,
)
def test_predicted_peaks_are_near_those_of_the_allocator(fields: dict[str, Any]) -> None:
    spec = parse_spec({"kind": "train", "device": "cuda:0", **fields})
    assert isinstance(spec, TrainSpec)
    predicted = checked(spec).highest.on_device
    assert predicted is not None
    metrics = measure_memory(prepare(spec, lambda _: None), sides_of(spec)[0]).metrics
    measured = {metric.name: metric.value for metric in metrics}
    assert predicted.peak_allocated_bytes == pytest.approx(
        measured["peak_allocated_bytes"], rel=LARGEST_ALLOCATED_ERROR
    )
    assert predicted.peak_reserved_bytes == pytest.approx(measured["peak_reserved_bytes"], rel=LARGEST_RESERVED_ERROR)
