"""What `make bench-predict` asks covers what it says, and the rules beside predictions are the tools' own."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from accelerate import init_empty_weights
from accelerate.commands import estimate
from transformers import AutoModel

from engine.models import model_config
from engine.spec import TrainSpec, parse_spec
from tests.benchmarks.architectures import ARCHITECTURES
from tests.benchmarks.estimates import accelerate_bytes, formula_bytes
from tests.benchmarks.prediction_specs import Asked, all_specs


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    return all_specs(tmp_path_factory.mktemp("models"))


def test_over_sixty_training_specs_meet_every_value_with_every_method(asked: list[Asked]) -> None:
    small = {architecture.label for architecture in ARCHITECTURES}
    trained = [one for one in asked if one.document["kind"] == "train" and one.architecture in small]
    assert len(trained) >= 60
    assert len({one.architecture for one in trained}) >= 10
    for method in ("full", "LoRA", "DoRA", "ia3", "vera"):
        own = [one.document for one in trained if one.method == method]
        assert {document["dtype"] for document in own} == {"float32", "bfloat16"}
        assert {document["attention"] for document in own} == {"eager", "sdpa"}
        assert {document["train"]["gradient_checkpointing"] for document in own} == {True, False}
        assert len({document["train"]["context_length"] for document in own}) >= 3


def test_every_spec_is_one_that_can_be_asked_for(asked: list[Asked]) -> None:
    assert {parse_spec(one.document).kind for one in asked} == {"train", "inference", "init", "merge"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_accelerates_figure_is_that_of_its_command(
    dtype: str, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec({"kind": "train", "model": asked[0].document["model"], "dtype": dtype})
    assert isinstance(spec, TrainSpec)
    with init_empty_weights():
        model = AutoModel.from_config(model_config(spec.model), dtype=torch.float32)
    # What the command does after it has asked the hub for the model.
    monkeypatch.setattr(estimate, "create_empty_model", lambda *_, **__: model)
    arguments = Namespace(model_name="", library_name=None, trust_remote_code=False, dtypes=[dtype])
    ((_, _, _, training),) = estimate.gather_data(arguments)
    assert accelerate_bytes(spec) == max(training.values())


def test_the_formula_counts_weights_gradients_and_adams_states() -> None:
    spec = parse_spec({"kind": "train", "model": "tiny-test", "dtype": "bfloat16", "adapter": None})
    lora = parse_spec({"kind": "train", "model": "tiny-test", "dtype": "bfloat16"})
    assert isinstance(spec, TrainSpec)
    assert isinstance(lora, TrainSpec)
    weights_bytes = formula_bytes(spec, 0)
    assert formula_bytes(spec, weights_bytes // 2) == 4 * weights_bytes
    # The adapter's weights, gradients and states are float32.
    assert formula_bytes(lora, 1000) == weights_bytes + 16_000
