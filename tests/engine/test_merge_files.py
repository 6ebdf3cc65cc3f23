"""Merging files gives what PEFT's own merge gives, for every layout of weights and adapters that PEFT saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from tests.engine.merge_files_cases import (
    ALL_LINEAR,
    adapted_by_peft,
    gpt2,
    gpt_oss,
    llama,
    load,
    logits,
    merged_by_peft,
    mixtral,
    qwen3_moe,
    relative_error,
    run_merge,
    save_adapter,
    save_base,
)

# What two roundings of the same sum may differ by, as a share of the change; a result scaled by 1 % is above it.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
CASES: dict[str, tuple[PretrainedConfig, LoraConfig]] = {
    "all linear": (llama(), LoraConfig(r=4, lora_alpha=8, target_modules=ALL_LINEAR)),
    "rslora": (llama(), LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"])),
    "patterns": (
        llama(),
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=ALL_LINEAR,
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8},
            alpha_pattern={"v_proj": 3, r"layers\.0\.mlp\.up_proj": 32},
        ),
    ),
    "dora": (llama(), LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=ALL_LINEAR)),
    "biases": (
        llama(attention_bias=True, mlp_bias=True),
        LoraConfig(r=4, lora_alpha=8, bias="all", target_modules=["q_proj"]),
    ),
    "lora bias": (llama(attention_bias=True), LoraConfig(r=4, lora_alpha=8, lora_bias=True, target_modules=["q_proj"])),
    "conv1d": (
        gpt2(tie_word_embeddings=False),
        LoraConfig(r=4, lora_alpha=8, fan_in_fan_out=True, target_modules=["c_attn", "c_fc", "c_proj"]),
    ),
    "conv1d dora": (
        gpt2(tie_word_embeddings=False),
        LoraConfig(r=4, lora_alpha=8, fan_in_fan_out=True, use_dora=True, target_modules=["c_attn", "c_fc"]),
    ),
    "embedding and head": (llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head"])),
    "embedding dora": (llama(), LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=["embed_tokens"])),
    "modules to save": (
        llama(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    ),
    "fused experts": (
        mixtral(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=[*EXPERTS, "gate.weight"]),
    ),
    "experts of another family": (
        qwen3_moe(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=EXPERTS),
    ),
    "experts fused and transposed on disk": (
        gpt_oss(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=EXPERTS),
    ),
    "one of two expert parameters": (
        mixtral(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=["experts.down_proj"]),
    ),
    "experts by their old names": (mixtral(), LoraConfig(r=4, lora_alpha=8, target_modules=["w1", "w2", "w3"])),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def prepare(folder: Path, config: PretrainedConfig, lora: LoraConfig, dtype: torch.dtype = torch.float32) -> None:
    save_adapter(folder / "adapter", save_base(folder / "base", config, dtype), lora)


def error_of_merge(folder: Path, dtype: torch.dtype = torch.float32) -> float:
    run_merge(folder / "base", folder / "adapter", folder / "out")
    ours = load(folder / "out", dtype).state_dict()
    before = load(folder / "base", dtype).state_dict()
    return relative_error(ours, merged_by_peft(folder / "base", folder / "adapter", dtype), before)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_adapter_and_layer_is_merged_as_peft_merges_it(name: str, tmp_path: Path) -> None:
    prepare(tmp_path, *CASES[name])
    assert error_of_merge(tmp_path) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["all linear", "dora", "conv1d dora", "fused experts"])
def test_half_precision_is_rounded_as_closely_as_by_peft(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    prepare(tmp_path, *CASES[name], dtype)
    assert error_of_merge(tmp_path, dtype) < TOLERANCE[dtype]
    assert load(tmp_path / "out", dtype).dtype == dtype


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_result_scaled_wrongly_by_one_percent_would_be_seen(dtype: torch.dtype, tmp_path: Path) -> None:
    prepare(tmp_path, *CASES["all linear"], dtype)
    path = tmp_path / "adapter" / "adapter_config.json"
    theirs = merged_by_peft(tmp_path / "base", tmp_path / "adapter", dtype)
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 1.01}))
    run_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before = load(tmp_path / "base", dtype).state_dict()
    assert relative_error(load(tmp_path / "out", dtype).state_dict(), theirs, before) > TOLERANCE[dtype]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]], ids=str)
def test_a_tied_weight_is_untied_in_file_and_config_and_the_outputs_are_the_adapters(
    targets: list[str], dora: bool, tmp_path: Path
) -> None:
    prepare(tmp_path, llama(tie_word_embeddings=True), LoraConfig(r=4, use_dora=dora, target_modules=targets))
    done = run_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    merged = load(tmp_path / "out")
    assert set(done["untied"]) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    # PEFT's own merge changes both ends here; what counts is what the adapter computed before merging.
    wanted = logits(adapted_by_peft(tmp_path / "base", tmp_path / "adapter"))
    effect = (wanted - logits(load(tmp_path / "base"))).abs().max()
    assert (logits(merged) - wanted).abs().max() < 1e-4 * effect


def test_tied_weights_that_the_adapter_leaves_alone_stay_tied(tmp_path: Path) -> None:
    prepare(tmp_path, llama(tie_word_embeddings=True), LoraConfig(r=4, target_modules=["q_proj"]))
    assert error_of_merge(tmp_path) < TOLERANCE[torch.float32]
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "base/config.json").read_bytes()


def test_a_checkpoint_without_the_prefix_of_its_names_is_merged_into(tmp_path: Path) -> None:
    model = save_base(tmp_path / "whole", gpt2())
    # As the hub's own gpt2: "h.0.attn.c_attn.weight" for what the model calls "transformer.h.0.attn.c_attn.weight".
    model.transformer.save_pretrained(tmp_path / "base")
    names = load_file(tmp_path / "base" / "model.safetensors")
    assert not any(name.startswith("transformer.") for name in names)
    save_adapter(tmp_path / "adapter", model, LoraConfig(r=4, fan_in_fan_out=True, target_modules=["c_attn"]))
    assert error_of_merge(tmp_path) < TOLERANCE[torch.float32]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == names.keys()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_tied_weight_of_a_checkpoint_without_prefix_is_untied(dora: bool, tmp_path: Path) -> None:
    model = save_base(tmp_path / "whole", gpt2())
    model.transformer.save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, fan_in_fan_out=True, use_dora=dora, target_modules=["wte", "c_attn"])
    save_adapter(tmp_path / "adapter", model, lora)
    run_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    wanted = logits(adapted_by_peft(tmp_path / "base", tmp_path / "adapter"))
    effect = (wanted - logits(load(tmp_path / "base"))).abs().max()
    assert (logits(load(tmp_path / "out")) - wanted).abs().max() < 1e-4 * effect


def test_an_adapter_from_before_experts_were_fused_is_merged_by_the_checkpoints_names(tmp_path: Path) -> None:
    save_base(tmp_path / "base", mixtral())
    torch.manual_seed(2)
    tensors = {}
    for layer in range(2):
        for expert in range(4):
            for name, (inputs, outputs) in {"w1": (64, 96), "w2": (96, 64), "w3": (64, 96)}.items():
                module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(4, inputs) / inputs**0.5
                tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, 4) / outputs**0.5
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["w1", "w2", "w3"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert error_of_merge(tmp_path) < TOLERANCE[torch.float32]


def test_the_output_has_the_shards_index_and_small_files_of_the_base(tmp_path: Path) -> None:
    prepare(tmp_path, *CASES["fused experts"])
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
        "weights.bin",
        "README.md",
        "notes.safetensors.txt",
    ):
        (tmp_path / "base" / name).write_text("{}")
    run_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before, after = ({path.name for path in (tmp_path / name).iterdir()} for name in ("base", "out"))
    assert after == before - {"weights.bin", "README.md"}
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == index["weight_map"]
    for shard in set(index["weight_map"].values()):
        assert load_file(tmp_path / "out" / shard).keys() == load_file(tmp_path / "base" / shard).keys()
