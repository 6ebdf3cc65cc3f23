"""Every merge strategy against float64, on real PEFT layers of every kind and dtype."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from engine.jobs.merge_reference import exact_sum
from engine.measure.tensors import TensorTracker
from engine.strategies import merge as strategies
from engine.strategies import merge_blocks
from engine.strategies.merge_blocks import Piece

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}
TOKENS = torch.arange(12).view(1, 12)


def llama(dtype: torch.dtype = torch.float32, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def gpt2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=2, n_positions=64)).to(dtype).eval()


def mixtral(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    return MixtralForCausalLM(config).to(dtype).eval()


KINDS: dict[str, tuple[Callable[[torch.dtype], PreTrainedModel], dict[str, list[str]]]] = {
    "linear": (llama, {"target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_fc"]}),
    "embedding": (llama, {"target_modules": ["embed_tokens"]}),
    "experts": (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}),
}


def attach(model: PreTrainedModel, seed: int = 1, **fields: object) -> PeftModel:
    """A LoRA adapter whose change is about a tenth of the weights, DoRA's magnitudes moved as well."""
    fields = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **fields}
    attached: PeftModel = get_peft_model(model, LoraConfig(**fields))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape).to(parameter.dtype))
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * (0.03 if parameter.ndim == 2 else 0.01))
    return attached.eval()


def adapted(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    """For each adapted weight: its module and name, what it was, and what merging should make of it in float64."""
    found = []
    for layer in model.modules():
        if strategies.is_product(layer):
            base, name = layer.get_base_layer(), strategies.parameter_name(layer)
            exact = [exact_sum(piece) for piece in strategies.pieces(layer, "default")]
            weight = getattr(base, name).detach()
            wanted = torch.stack(exact) if weight.ndim == 3 else exact[0]
            found.append((base, name, weight.double().clone(), wanted))
    return found


def error(found: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]) -> float:
    """The distance from float64 over the adapter's effect."""
    distance = sum(float((getattr(base, name).double() - wanted).square().sum()) for base, name, _, wanted in found)
    effect = sum(float((wanted - before).square().sum()) for _, _, before, wanted in found)
    return math.sqrt(distance / effect)


def merged_error(strategy: str, model: PeftModel) -> float:
    found = adapted(model)
    with strategies.apply(strategy):
        model.merge_and_unload(safe_merge=strategy == "safe")
    return error(found)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    return request.param


# --- equality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["safe", "out_of_place", "addmm", "row_blocks"])
def test_lora_is_merged_as_exactly_as_stock_does(strategy: str, kind: str, dtype: torch.dtype) -> None:
    build, targets = KINDS[kind]
    stock = merged_error("stock", attach(build(dtype), **targets))
    assert 0 < stock < 0.2
    assert merged_error(strategy, attach(build(dtype), **targets)) <= max(1.1 * stock, 1e-6)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
@pytest.mark.parametrize("strategy", ["safe", "row_blocks"])
def test_dora_is_merged_as_exactly_as_stock_does(strategy: str, kind: str, dtype: torch.dtype) -> None:
    build, targets = KINDS[kind]
    stock = merged_error("stock", attach(build(dtype), use_dora=True, **targets))
    assert 0 < stock < 0.2
    assert merged_error(strategy, attach(build(dtype), use_dora=True, **targets)) <= max(1.1 * stock, 1e-6)


def test_row_blocks_round_each_weight_of_bfloat16_once() -> None:
    found = adapted(attach(llama(torch.bfloat16), target_modules=["q_proj"]))
    distance = sum(float((wanted.bfloat16().double() - wanted).square().sum()) for *_, wanted in found)
    effect = sum(float((wanted - before).square().sum()) for _, _, before, wanted in found)
    ours = merged_error("row_blocks", attach(llama(torch.bfloat16), target_modules=["q_proj"]))
    assert ours == pytest.approx(math.sqrt(distance / effect), rel=1e-3)


def test_the_split_products_are_float32s_on_a_cpu_that_multiplies_bfloat16() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not multiply bfloat16")
    torch.manual_seed(0)
    weight = torch.randn(1500, 700).mul_(0.02).bfloat16()
    piece = Piece(weight, torch.randn(1500, 8) / 30, torch.randn(8, 700) / 30, 2.0)
    assert merge_blocks._adds_natively(piece)
    exact = exact_sum(piece)
    once = exact.bfloat16()
    merge_blocks.add_rounded_once(piece)
    assert (weight != once).float().mean() < 0.002


@pytest.mark.parametrize("rank", [1, 4, 40])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_that_do_not_divide_the_rows_give_the_same(rank: int, transposed: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(1537, 1031).mul_(0.02).to(dtype)
    left, right = torch.randn(1537, rank) / 100, torch.randn(rank, 1031) / 100
    magnitude = torch.rand(1031 if transposed else 1537) + 0.5
    for scaled in (None, magnitude):
        piece = Piece(weight.clone(), left, right, 1.5, transposed, scaled)
        exact = exact_sum(piece)
        (merge_blocks.add_rounded_once if scaled is None else merge_blocks.add_and_scale)(piece)
        relative = (piece.weight.double() - exact).norm() / exact.norm()
        # Float32 is rounded after each step, half precision once.
        assert relative < (2 if dtype == torch.float32 else 1.01) * EPS[dtype]


@pytest.mark.parametrize("strategy", ["addmm", "row_blocks"])
def test_bfloat16_adapters_are_merged_too(strategy: str) -> None:
    def model() -> PeftModel:
        return attach(llama(torch.bfloat16), target_modules=["q_proj"]).to(torch.bfloat16)

    assert merged_error(strategy, model()) <= 1.1 * merged_error("stock", model())


@pytest.mark.parametrize("strategy", ["out_of_place", "addmm", "row_blocks"])
def test_the_bias_of_an_adapter_is_merged(strategy: str) -> None:
    def logits(name: str) -> torch.Tensor:
        model = attach(gpt2(), target_modules=["c_attn"], lora_bias=True)
        with strategies.apply(name):
            merged = model.merge_and_unload()
        return merged(TOKENS).logits

    torch.testing.assert_close(logits(strategy), logits("stock"))


# --- merging and unmerging --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding", "experts"])
def test_row_blocks_unmerge_what_they_merged(kind: str, use_dora: bool, dtype: torch.dtype) -> None:
    if kind == "experts" and use_dora:
        pytest.skip("PEFT has no DoRA on fused experts")
    build, targets = KINDS[kind]
    model = attach(build(dtype), use_dora=use_dora, **targets)
    found = adapted(model)
    with strategies.row_blocks():
        model.merge_adapter()
        assert error(found) < 0.2
        model.unmerge_adapter()
    for base, name, before, wanted in found:
        moved = (getattr(base, name).double() - before).norm() / (wanted - before).norm()
        assert moved < 100 * EPS[dtype]


def test_stock_can_unmerge_what_row_blocks_merged() -> None:
    model = attach(llama(), use_dora=True, target_modules=["q_proj"])
    found = adapted(model)
    with strategies.row_blocks():
        model.merge_adapter()
    model.unmerge_adapter()
    for base, name, before, _ in found:
        torch.testing.assert_close(getattr(base, name).double(), before, rtol=1e-4, atol=1e-6)


def test_a_second_dora_adapter_is_merged_as_stock_merges_it() -> None:
    def logits(name: str) -> torch.Tensor:
        model = attach(llama(), use_dora=True, target_modules=["q_proj"])
        model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False))
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if ".second." in parameter_name and "magnitude" not in parameter_name:
                    parameter.copy_(torch.randn(parameter.shape) * 0.03)
        with strategies.apply(name):
            model.base_model.merge_adapter(adapter_names=["default", "second"])
        return model(TOKENS).logits

    torch.testing.assert_close(logits("row_blocks"), logits("stock"), rtol=1e-4, atol=1e-5)


def test_peft_is_as_before_after_the_block() -> None:
    methods = [(kind, kind.merge, kind.unmerge) for kind in strategies._LAYERS]
    with contextlib.suppress(RuntimeError), strategies.row_blocks():
        raise RuntimeError
    assert methods == [(kind, kind.merge, kind.unmerge) for kind in strategies._LAYERS]


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_weights(strategy: str, dtype: torch.dtype, **fields: object) -> float:
    """Peak tensor bytes while one large layer is merged, in units of its weight."""
    base = nn.Sequential(nn.Linear(2048, 3072, bias=False)).to(dtype)
    model = get_peft_model(base, LoraConfig(r=16, target_modules=["0"], init_lora_weights=False, **fields))
    tracker = TensorTracker()
    tracker.watch(model.parameters(), "given")
    with strategies.apply(strategy), tracker:
        model.merge_and_unload()
    return tracker.peak_extra_bytes / (2048 * 3072 * dtype.itemsize)


def test_stock_needs_four_weights_for_bfloat16_and_two_for_float32() -> None:
    assert peak_weights("stock", torch.bfloat16) == pytest.approx(4.0, abs=0.02)
    assert peak_weights("stock", torch.float32) == pytest.approx(2.0, abs=0.02)


def test_in_place_does_not_lower_the_float32_peak() -> None:
    assert peak_weights("out_of_place", torch.float32) == pytest.approx(peak_weights("stock", torch.float32), abs=0.02)


def test_addmm_needs_a_hundredth_of_the_weight_and_row_blocks_a_twentieth(dtype: torch.dtype) -> None:
    assert peak_weights("addmm", dtype) <= 0.01
    assert peak_weights("row_blocks", dtype) <= 0.05


def test_dora_in_row_blocks_needs_a_tenth_of_the_weight_where_stock_takes_four(dtype: torch.dtype) -> None:
    assert peak_weights("row_blocks", dtype, use_dora=True) <= 0.1
    assert peak_weights("stock", dtype, use_dora=True) >= 4


def test_out_of_place_turns_bfloat16_weights_into_float32() -> None:
    model = attach(llama(torch.bfloat16), target_modules=["q_proj"])
    with strategies.out_of_place():
        merged = model.merge_and_unload()
    assert merged.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    assert merged.model.layers[0].self_attn.k_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("strategy", ["stock", "safe", "addmm", "row_blocks"])
def test_others_keep_the_dtype(strategy: str) -> None:
    model = attach(llama(torch.bfloat16), target_modules=["q_proj"])
    with strategies.apply(strategy):
        merged = model.merge_and_unload(safe_merge=strategy == "safe")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


# --- tied weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("strategy", ["out_of_place", "addmm", "row_blocks", "untied"])
def test_a_tied_weight_is_untied_and_the_config_says_so(strategy: str, targets: list[str], tmp_path: Path) -> None:
    model = attach(llama(tied=True), target_modules=targets)
    wanted = model(TOKENS).logits
    with strategies.apply(strategy):
        merged = model.merge_and_unload()
    assert merged.config.tie_word_embeddings is False
    assert merged.lm_head.weight.data_ptr() != merged.model.embed_tokens.weight.data_ptr()
    torch.testing.assert_close(merged(TOKENS).logits, wanted, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(TOKENS).logits, merged(TOKENS).logits)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"]])
def test_stock_is_wrong_on_a_tied_weight(targets: list[str]) -> None:
    base = llama(tied=True)
    before = base(TOKENS).logits.detach()
    model = attach(base, target_modules=targets)
    wanted = model(TOKENS).logits
    merged = model.merge_and_unload()
    assert (merged(TOKENS).logits - wanted).norm() > 0.5 * (wanted - before).norm()


def test_a_tied_weight_that_is_not_adapted_stays_tied() -> None:
    model = attach(llama(tied=True), target_modules=["q_proj"])
    with strategies.row_blocks():
        merged = model.merge_and_unload()
    assert merged.config.tie_word_embeddings is True
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["out_of_place", "addmm"])
def test_strategies_without_a_meaning_for_dora_refuse_it(strategy: str) -> None:
    model = attach(llama(), use_dora=True, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"use .*row_blocks"), strategies.apply(strategy):
        model.merge_and_unload()


@pytest.mark.parametrize("strategy", ["out_of_place", "addmm", "row_blocks"])
def test_other_adapters_than_lora_are_refused(strategy: str) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config)
    sentence = r"works on LoRA and its forms, not on IA3; use stock"
    with pytest.raises(ValueError, match=sentence), strategies.apply(strategy):
        model.merge_and_unload()


def test_other_forms_of_lora_are_refused() -> None:
    from peft import KasaConfig

    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"], kasa_config=KasaConfig()))
    sentence = r"row_blocks knows LoRA and DoRA, not the form Kasa; use stock"
    with pytest.raises(ValueError, match=sentence), strategies.row_blocks():
        model.merge_and_unload()


def test_safe_merge_is_refused_where_no_copy_is_kept() -> None:
    model = attach(llama(), target_modules=["q_proj"])
    with pytest.raises(ValueError, match="safe_merge keeps a copy"), strategies.row_blocks():
        model.merge_and_unload(safe_merge=True)
