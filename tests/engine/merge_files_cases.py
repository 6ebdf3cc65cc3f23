"""Tiny models and adapters on disk, as transformers and PEFT save them, and what PEFT itself makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from engine.jobs.merge_files import merge
from engine.spec import MergeFilesSpec

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def llama(**fields: Any) -> PretrainedConfig:
    return LlamaConfig(**{**_SIZES, **_HEADS, **fields})


def mixtral(**fields: Any) -> PretrainedConfig:
    return MixtralConfig(**{**_SIZES, **_HEADS, "num_local_experts": 4, **fields})


def qwen3_moe(**fields: Any) -> PretrainedConfig:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "head_dim": 16}
    return Qwen3MoeConfig(**{**_SIZES, **_HEADS, **sizes, **fields})


def gpt_oss(**fields: Any) -> PretrainedConfig:
    """Its experts are fused in the checkpoint, too, and stored as (experts, in, out)."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    return GptOssConfig(**{**_SIZES, **_HEADS, **sizes, **fields})


def gpt2(**fields: Any) -> PretrainedConfig:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
    return GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **fields})


def save_base(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32, shard: str = "30KB"
) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def save_adapter(folder: Path, model: PreTrainedModel, lora: LoraConfig) -> None:
    """Save an adapter with noise in every tensor, so that all of them matter. Takes the model apart."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, lora)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_magnitude" in name:
                    parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
                elif "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) / max(parameter.shape) ** 0.5)
                elif "modules_to_save" in name or (name.endswith("bias") and lora.bias != "none"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)


def run_merge(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    return merge(MergeFilesSpec(base=str(base), adapter=str(adapter), out=str(out)), lambda progress: None)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model from disk; nothing may be missing, left over or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        key: value.clone()
        for key, value in adapted_by_peft(base, adapter, dtype).merge_and_unload().state_dict().items()
    }


def adapted_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base, dtype), adapter).eval()


def relative_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> float:
    """The largest difference of any tensor, as a share of what the merge changed in it."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, value in theirs.items():
        change = (value.double() - before[name].double()).norm().item()
        difference = (ours[name].double() - value.double()).norm().item()
        if change == 0:
            assert difference == 0, f"{name} is not adapted and changed"
        else:
            worst = max(worst, difference / change)
    return worst


def logits(model: Any) -> Tensor:
    tokens = torch.arange(12).reshape(1, 12)
    with torch.inference_mode():
        return model(input_ids=tokens).logits.float()
