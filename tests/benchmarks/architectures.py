"""Small models of thirteen real architectures: a config.json for each, and no weights.

The classes are transformers' own; only widths, depths and vocabularies are reduced, so that a training step takes well
under a second. Builds no model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import AutoConfig

Targets = str | list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """A small model: what is particular about it, transformers' name of it, its sizes, and what is asked of it.

    ``plain`` are the layers that types other than LoRA adapt (none takes fused experts), ``others`` three such types,
    ``contexts`` three lengths.
    """

    label: str
    model_type: str
    sizes: dict[str, Any]
    targets: Targets = "all-linear"
    plain: Targets = "all-linear"
    others: tuple[str, ...] = ("ia3", "vera", "loha")
    attentions: tuple[str, ...] = ("eager", "sdpa")
    contexts: tuple[int, ...] = (32, 128, 384)

    def write(self, parent: Path) -> Path:
        """Write ``config.json`` into a folder of its own and return it."""
        folder = parent / self.model_type
        AutoConfig.for_model(self.model_type, **self.sizes).save_pretrained(folder)
        return folder


# The configs' own numbers of special tokens are those of the full vocabularies.
_TOKENS: dict[str, Any] = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_WIDE: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "max_position_embeddings": 1024,
}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
_FALCON = {
    **_TOKENS,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "multi_query": True,
    "new_decoder_architecture": False,
    "parallel_attn": True,
    "alibi": True,
}
_GPT2 = {**_TOKENS, "n_embd": 192, "n_layer": 6, "n_head": 6, "n_positions": 1024}
# Local and global attention in turns: periods of two blocks.
_GEMMA = {**_GROUPED, "num_hidden_layers": 8, "head_dim": 32, "sliding_window": 48, "query_pre_attn_scalar": 32}
_DEEPSEEK = {
    **_WIDE,
    "num_key_value_heads": 6,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
}
# PEFT refuses Mamba's other layers: its kernels take their weights and go past the layers.
_MAMBA_LAYERS = ["in_proj", "x_proj"]

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("dense, untied", "llama", {**_WIDE, "num_key_value_heads": 6, "tie_word_embeddings": False}),
    Architecture("grouped-query, biases, tied", "qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    Architecture("grouped-query, norms of queries and keys", "qwen3", {**_GROUPED, "head_dim": 48}),
    Architecture("fused qkv, fused gate and up", "phi3", {**_GROUPED, "tie_word_embeddings": False}),
    Architecture("fused qkv, parallel residual", "gpt_neox", {**_WIDE, "tie_word_embeddings": False}),
    Architecture("one key head, ALiBi", "falcon", _FALCON),
    Architecture("Conv1D, tied", "gpt2", _GPT2, others=("ia3", "vera", "fourierft")),
    Architecture("learned positions, tied", "opt", {**_WIDE, "ffn_dim": 512, "word_embed_proj_dim": 192}),
    Architecture("sliding window", "mistral", {**_GROUPED, "sliding_window": 48}),
    Architecture("local and global attention", "gemma2", _GEMMA, attentions=("eager",)),
    Architecture(
        "mixture of experts",
        "mixtral",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        plain="attention",
    ),
    Architecture("latent attention, dense blocks, then experts", "deepseek_v3", _DEEPSEEK, plain="attention"),
    Architecture(
        "state-space",
        "mamba",
        {**_TOKENS, "hidden_size": 192, "num_hidden_layers": 6, "state_size": 8},
        targets=_MAMBA_LAYERS,
        plain=_MAMBA_LAYERS,
        attentions=("eager",),
        # Without its kernels it goes through the tokens one by one.
        contexts=(8, 16, 32),
    ),
)
