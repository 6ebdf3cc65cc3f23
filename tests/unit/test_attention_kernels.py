"""Which attention kernel PyTorch picks on a CUDA device, case by case from its source."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from engine.prediction.attention import Attention, choose

T4, A100, A10, L4, H100, B200, RTX_5090 = (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)
# A layer of Llama-3.1-8B over 2048 tokens, as transformers calls it without padding.
LLAMA = Attention("bfloat16", 32, 8, 2048, 2048, 128, 128, is_causal=True, grouped=True)
# A layer of TinyLlama's shape, but without groups.
PLAIN = Attention("float16", 32, 32, 512, 512, 64, 64, is_causal=True)


def kernel(call: Attention, capability: tuple[int, int], **fields: Any) -> str:
    return choose(dataclasses.replace(call, **fields), capability).kernel


@pytest.mark.parametrize("capability", [A100, A10, L4, RTX_5090])
def test_half_precision_without_a_mask_runs_flash_attention_from_ampere_on(capability: tuple[int, int]) -> None:
    assert kernel(LLAMA, capability) == kernel(PLAIN, capability) == "flash"


@pytest.mark.parametrize("capability", [H100, B200])
def test_hopper_and_blackwell_prefer_cudnn_up_to_heads_of_128(capability: tuple[int, int]) -> None:
    assert kernel(LLAMA, capability) == kernel(LLAMA, capability, has_mask=True, is_causal=False) == "cudnn"
    assert kernel(LLAMA, capability, head_dim=256, value_dim=256) == "flash"
    assert kernel(LLAMA, capability, dropout=0.125) == "cudnn"
    assert kernel(LLAMA, capability, dropout=0.1) == "flash"


def test_turing_has_no_flash_attention_and_no_bfloat16() -> None:
    assert kernel(PLAIN, T4) == "efficient"
    assert kernel(PLAIN, T4, dtype="bfloat16") == "math"
    assert kernel(PLAIN, T4, dtype="float32") == "efficient"


def test_a_mask_means_memory_efficient_attention() -> None:
    assert kernel(PLAIN, A100, has_mask=True, is_causal=False) == "efficient"


def test_float32_means_memory_efficient_attention_and_the_plain_one_where_heads_are_grouped() -> None:
    assert kernel(PLAIN, A100, dtype="float32") == "efficient"
    assert kernel(LLAMA, A100, dtype="float32") == kernel(LLAMA, H100, dtype="float32") == "math"


def test_grouped_heads_that_are_not_said_to_be_grouped_run_the_plain_one() -> None:
    assert kernel(LLAMA, A100, grouped=False) == "math"
    assert kernel(LLAMA, A100, query_heads=30) == "math"


@pytest.mark.parametrize(
    ("head_dim", "capability", "dropout", "found"),
    [
        (192, A10, 0.0, "flash"),
        (200, A10, 0.0, "efficient"),
        (256, A10, 0.0, "flash"),
        (256, RTX_5090, 0.1, "efficient"),
        (256, A100, 0.1, "flash"),
        (264, A100, 0.0, "efficient"),
        # Flash attention pads heads, memory-efficient attention does not.
        (60, A100, 0.0, "flash"),
    ],
)
def test_large_heads_depend_on_the_card(head_dim: int, capability: tuple[int, int], dropout: float, found: str) -> None:
    assert kernel(PLAIN, capability, head_dim=head_dim, value_dim=head_dim, dropout=dropout) == found


def test_without_gradients_large_heads_run_flash_attention_on_every_card() -> None:
    assert kernel(PLAIN, A10, head_dim=200, value_dim=200, needs_gradient=False) == "flash"


@pytest.mark.parametrize(("dtype", "head_dim", "found"), [("float32", 60, "efficient"), ("float32", 62, "math")])
def test_memory_efficient_attention_needs_aligned_heads(dtype: str, head_dim: int, found: str) -> None:
    assert kernel(PLAIN, A100, dtype=dtype, head_dim=head_dim, value_dim=head_dim) == found
    assert kernel(PLAIN, T4, dtype=dtype, head_dim=head_dim, value_dim=head_dim) == "efficient"


def test_a_causal_call_with_other_lengths_is_not_for_flash_attention() -> None:
    assert kernel(PLAIN, A100, key_length=600) == "efficient"


def test_it_says_what_kept_each_preferred_kernel_from_running() -> None:
    choice = choose(dataclasses.replace(LLAMA, dtype="float32"), H100)
    assert choice.refused == (
        ("cudnn", "cuDNN's kernel has no float32"),
        ("flash", "flash attention has no float32"),
        ("efficient", "the kernel needs as many heads of keys as of queries"),
    )
    assert choose(LLAMA, A100).refused == ()
