"""A worker's log and result hold no secret, also when what went wrong has one in it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.engine.conftest import Engine

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"


def test_a_worker_that_fails_over_a_secret_writes_none(engine: Engine, home: Path, tmp_path: Path) -> None:
    model = tmp_path / TOKEN
    model.mkdir()
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    # Looks like weights until somebody opens it, which only the worker does.
    (model / "model.safetensors").mkdir()
    done = engine("measure", "-", stdin=json.dumps({"model": str(model), "weights": "pretrained", "repeats": 1}))
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    assert "***" in error["text"]
    assert TOKEN not in json.dumps(error)
    # The end of the worker's log, with what was raised.
    assert "SpecError: model: " in done.stderr
    assert "***" in done.stderr
    assert TOKEN not in done.stderr
