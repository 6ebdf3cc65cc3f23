from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from engine import catalog
from engine.adapters import attach, trainable_parameters
from engine.catalog import ModuleGroup
from engine.inspection import inspect_model
from engine.jobs import inspect
from engine.models import build_model
from engine.result import Progress
from engine.spec import InitSpec, InspectSpec, SpecError, parse_spec


def test_an_inspection_says_what_the_catalog_says_of_a_bundled_model() -> None:
    document = json.loads(json.dumps(inspect_model("gpt2")))
    entry = catalog.model("gpt2")
    assert tuple(ModuleGroup.from_json(group) for group in document["groups"]) == entry.groups
    assert document["parameters"] == entry.parameters
    assert (document["layers"], document["hidden_size"], document["max_positions"]) == (12, 768, 1024)
    assert document["tied_embeddings"] is True
    assert document["presets"]["qk"]["names"] == ["c_attn"]
    assert document["presets"]["qk"]["modules"] == 12


def test_added_parameters_are_those_that_lora_then_trains() -> None:
    document = inspect_model("tiny-test")
    spec = parse_spec({"model": "tiny-test", "adapter": {"rank": 8}})
    assert isinstance(spec, InitSpec)
    attached = attach(build_model(spec), spec.adapter)
    assert document["presets"]["all-linear"]["added_parameters_at_rank"]["8"] == trainable_parameters(attached)


def test_a_local_folder_is_inspected_without_weights(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8192, num_hidden_layers=80, intermediate_size=28672, vocab_size=128256)
    config.save_pretrained(tmp_path)
    document = inspect_model(str(tmp_path))
    assert document["parameters"] > 60e9
    assert document["model_type"] == "llama"


def test_the_inspect_job_hands_back_the_inspection_and_no_measurement() -> None:
    reports: list[Progress] = []
    outcome = inspect.run(InspectSpec(model="tiny-test"), reports.append)
    assert outcome.inspection == inspect_model("tiny-test")
    assert not outcome.metrics
    assert reports


def test_inspecting_what_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SpecError, match=r"^model: unknown model 'gtp2'; the nearest is gpt2"):
        inspect_model("gtp2")
