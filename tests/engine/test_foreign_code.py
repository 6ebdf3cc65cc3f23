"""Pickled weights that would run something when they are read: they are not read, and say so in one sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from engine.adapters import attach
from engine.models import build_model
from engine.spec import InitSpec, SavedAdapter, SpecError, parse_spec

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._path), "w")


@pytest.fixture
def trap(tmp_path: Path) -> bytes:
    """A pickle that makes the file ``ran`` when anything reads it; the test fails if it is there afterwards."""
    data = pickle.dumps(Trap(tmp_path / "ran"))
    pickle.loads(data).close()
    (tmp_path / "ran").unlink()
    return data


def spec(**fields: Any) -> InitSpec:
    parsed = parse_spec({"kind": "init", **fields})
    assert isinstance(parsed, InitSpec)
    return parsed


def test_pickled_weights_of_a_model_run_nothing(tmp_path: Path, trap: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        (tmp_path / name).write_bytes(trap)
    with pytest.raises(SpecError, match=r"^model: "):
        build_model(spec(model=str(tmp_path), weights="pretrained"))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_named_as_safetensors_run_nothing(tmp_path: Path, trap: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(trap)
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        build_model(spec(model=str(tmp_path), weights="pretrained"))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_of_an_adapter_run_nothing(tmp_path: Path, trap: bytes) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.bin").write_bytes(trap)
    model = build_model(spec(model="tiny-test"))
    with pytest.raises(SpecError, match=r"^adapter\.path: .* has no adapter_model\.safetensors$"):
        attach(model, SavedAdapter(path=str(tmp_path)))
    assert not (tmp_path / "ran").exists()
