from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from engine import catalog
from engine.catalog.architectures import MODELS_FOLDER
from engine.generate_catalog import model_document, model_types_document
from engine.models import BLOCK_ELEMENTS, build_meta, build_model, model_config
from engine.result import Progress
from engine.spec import InitSpec, SpecError, parse_spec


def spec_of(model: str, **fields: Any) -> InitSpec:
    spec = parse_spec({"model": model, "dtype": "float32", **fields})
    assert isinstance(spec, InitSpec)
    return spec


def save_config(folder: Path, config: Any) -> str:
    config.save_pretrained(folder)
    return str(folder)


def tiny_llama(**fields: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**sizes, "intermediate_size": 48, "vocab_size": 96, "max_position_embeddings": 64, **fields})


@pytest.mark.parametrize("name", list(catalog.models()))
def test_a_bundled_file_is_what_its_config_builds_on_meta(name: str) -> None:
    path = MODELS_FOLDER / f"{name}.json"
    document = model_document(path)
    assert json.loads(path.read_text()) == document, "run `python -m engine.generate_catalog`"
    assert document["parameters"] == document["published_parameters"]


def test_the_list_of_supported_model_types_is_that_of_the_installed_transformers() -> None:
    document = model_types_document()
    missing = set(json.loads((MODELS_FOLDER.parent / "model_types.json").read_text())["causal_lm"])
    assert missing == set(document["causal_lm"]), "run `python -m engine.generate_catalog`"


@pytest.mark.parametrize("name", ["tiny-test", "minimind-26m"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_synthetic_model_computes_finite_logits_in_its_dtype(name: str, dtype: str) -> None:
    model = build_model(spec_of(name, dtype=dtype))
    logits = model(torch.arange(9)[None]).logits
    assert logits.dtype == getattr(torch, dtype)
    assert logits.isfinite().all()
    assert logits.float().std() > 0
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    one, same, other = (build_model(spec_of("tiny-test", seed=seed)) for seed in (3, 3, 4))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_weights_are_normal_with_the_models_own_spread_and_no_two_rows_are_alike(tmp_path: Path) -> None:
    # Larger than the block, and a power of two wide: where tiles would repeat if the block's length were one too.
    config = tiny_llama(hidden_size=1024, intermediate_size=8192, num_hidden_layers=1, initializer_range=0.05)
    model = build_model(spec_of(save_config(tmp_path, config)))
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    assert weight.numel() > BLOCK_ELEMENTS
    assert weight.mean().abs() < 1e-3
    assert weight.std() == pytest.approx(0.05, rel=0.01)
    assert len(torch.unique(weight, dim=0)) == len(weight)
    assert (weight.norm(dim=1) > 0).all()


def test_norms_are_ones_and_biases_zeros_as_the_models_own_initialisation_makes_them() -> None:
    model = build_model(spec_of("gpt2"))
    assert torch.equal(model.get_parameter("transformer.ln_f.weight"), torch.ones(768))
    assert torch.equal(model.get_parameter("transformer.h.0.attn.c_attn.bias"), torch.zeros(2304))
    llama = build_model(spec_of("tiny-test"))
    assert torch.equal(llama.get_parameter("model.norm.weight"), torch.ones(64))


@pytest.mark.parametrize("name", ["tiny-test", "minimind-26m", "gpt2", "smollm2-135m"])
def test_nothing_is_left_on_meta_and_ties_are_kept(name: str) -> None:
    model = build_model(spec_of(name, dtype="bfloat16"))
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == catalog.model(name).tied_embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) == catalog.model(name).parameters


@pytest.mark.parametrize("name", ["tiny-test", "llama-3.2-1b", "gemma-2-9b", "gpt2", "qwen2.5-0.5b"])
def test_computed_buffers_are_those_of_a_model_built_the_ordinary_way(name: str) -> None:
    config = model_config(name)
    # Same buffers, fewer weights: what computes them depends on neither depth nor width of the feed-forward layers.
    smaller = {"num_hidden_layers": 2, "intermediate_size": 8, "vocab_size": 16, "n_layer": 2, "n_inner": 8}
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    for field, value in smaller.items():
        if hasattr(config, field):
            setattr(config, field, value)
    config.pad_token_id = None
    ordinary = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ours = build_meta(name, torch.bfloat16, config=config)
    expected = dict(ordinary.named_buffers())
    found = dict(ours.named_buffers())
    assert expected.keys() == found.keys()
    for key, buffer in expected.items():
        assert found[key].dtype == buffer.dtype, key
        assert torch.equal(found[key], buffer), key


def test_filling_reports_bytes_up_to_the_whole_model() -> None:
    reports: list[Progress] = []
    model = build_model(spec_of("tiny-test", dtype="bfloat16"), reports.append)
    total = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert {report.phase for report in reports} == {"weights"}
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert (reports[-1].done, reports[-1].total) == (total, total)


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=64,
            num_local_experts=4,
        ),
        Qwen3MoeConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            moe_intermediate_size=16,
            vocab_size=64,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32),
    ],
    ids=lambda config: config.model_type,
)
def test_a_local_folder_with_only_a_config_is_built_with_synthetic_weights(tmp_path: Path, config: Any) -> None:
    model = build_model(spec_of(save_config(tmp_path, config)))
    assert model(torch.arange(5)[None]).logits.isfinite().all()
    assert all(parameter.abs().sum() > 0 for parameter in model.parameters() if parameter.ndim > 1)


def test_pretrained_weights_are_those_in_the_folder(tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_config(tiny_llama(), dtype=torch.float32)
    original.save_pretrained(tmp_path)
    loaded = build_model(spec_of(str(tmp_path), weights="pretrained"))
    for name, parameter in original.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("gpt2", {"weights": "pretrained"}, "weights: gpt2 is bundled without weights"),
        ("gtp2", {}, "model: unknown model 'gtp2'; the nearest is gpt2"),
        ("gemma-2-9b", {"attention": "sdpa"}, "attention: gemma-2-9b has no sdpa; use eager"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(model: str, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_model(spec_of(model, **fields))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_llama())
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SpecError, match="cannot be loaded from safetensors"):
        build_model(spec_of(str(tmp_path), weights="pretrained"))


def test_code_in_a_model_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError):
        build_model(spec_of(str(tmp_path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"hidden_size": -4}, {"hidden_size": "wide"}])
def test_a_config_with_impossible_sizes_is_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {**tiny_llama().to_dict(), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=r"^model: ") as caught:
        build_model(spec_of(str(tmp_path)))
    assert "\n" not in str(caught.value)
