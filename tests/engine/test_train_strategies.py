"""What fused, chunked losses and tiled MLPs do to gradients, and that a wrong one does not pass its proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from engine.jobs import run_job
from engine.jobs.train_proof import SCALE_TOLERANCE, Agreement, agreement, check_rounding
from engine.measure.breakdown import StepTracker
from engine.spec import parse_spec
from engine.strategies import losses
from engine.strategies import train as strategies
from engine.strategies.losses import ChunkedLoss, TiledMlp

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")).train()


def gemma2() -> nn.Module:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager")
    return Gemma2ForCausalLM(config).train()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=32, **no_dropout)
    return GPT2LMHeadModel(config).train()


def lora(model: nn.Module, **fields: Any) -> nn.Module:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, **fields)
    return get_peft_model(model, config)


TOKENS = torch.randint(96, (2, 19), generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}


def assert_same(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == stock.keys()
    for name, value in stock.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("build", [llama, gemma2, gpt2], ids=lambda build: build.__name__)
@pytest.mark.parametrize("chunks", [2, 5, 38])
def test_a_chunked_loss_has_the_gradients_of_the_whole(build: Callable[[], nn.Module], chunks: int) -> None:
    model = build()
    stock = gradients(model)
    with ChunkedLoss(model, chunks):
        ours = gradients(model)
    assert_same(ours, stock)
    assert_same(gradients(model), stock)


def test_a_chunked_loss_ignores_what_is_not_to_be_predicted() -> None:
    model = llama()
    labels = TOKENS.clone()
    labels[:, :7] = -100
    whole = model(input_ids=TOKENS, labels=labels).loss
    with ChunkedLoss(model, 4), torch.no_grad():
        torch.testing.assert_close(model(input_ids=TOKENS, labels=labels).loss, whole.detach())


def test_a_chunked_loss_never_holds_all_logits() -> None:
    model = llama()
    tracker = StepTracker(model)
    with tracker, ChunkedLoss(model, 19):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    largest = max(change for _, _, change in tracker._events)
    assert largest < TOKENS.numel() * 96 * 4


@pytest.mark.parametrize("build", [llama, gemma2], ids=lambda build: build.__name__)
@pytest.mark.parametrize("tiles", [2, 3, 19])
def test_a_tiled_mlp_has_the_gradients_of_the_whole(build: Callable[[], nn.Module], tiles: int) -> None:
    model = build()
    stock = gradients(model)
    with TiledMlp(model, tiles):
        ours = gradients(model)
    assert_same(ours, stock)


def test_slices_of_a_tiled_mlp_and_their_gradients_have_no_strides_of_the_whole() -> None:
    # With those a bfloat16 product on a CPU is many times slower.
    model = llama()
    seen = []
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    down.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    down.register_full_backward_hook(lambda _module, _inputs, outputs: seen.append(outputs[0]))
    with TiledMlp(model, 2):
        model(input_ids=TOKENS[:1], labels=TOKENS[:1]).loss.backward()
    assert len(seen) == 4
    for tensor in seen:
        _, length, features = tensor.shape
        assert tensor.stride() == (length * features, features, 1)


def test_a_tiled_mlp_needs_a_gated_one() -> None:
    with pytest.raises(ValueError, match="knows gated MLPs only, and GPT2LMHeadModel has none"):
        TiledMlp(gpt2(), 2)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_fused_has_stocks_gradients_or_leaves_the_layer_to_peft(fields: dict[str, Any]) -> None:
    model = lora(llama(), **fields)
    stock = gradients(model)
    with strategies.fused():
        assert_same(gradients(model), stock)


def test_fused_calls_its_own_function_for_every_adapted_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    apply = strategies._FusedLora.apply
    monkeypatch.setattr(strategies._FusedLora, "apply", lambda *given: calls.append(1) or apply(*given))
    with strategies.fused():
        gradients(lora(llama()))
    assert len(calls) == 2 * 3


def test_fused_keeps_no_float32_copy_of_what_the_layers_read() -> None:
    def kept_bytes() -> int:
        model = lora(llama().to(torch.bfloat16))
        tracker = StepTracker(model)
        with tracker:
            loss = model(input_ids=TOKENS, labels=TOKENS).loss
            tracker.forward_ended()
            kept = tracker.live_bytes
            del loss
        return kept

    stock = kept_bytes()
    with strategies.fused():
        ours = kept_bytes()
    # q and v read one input of 32 features, down_proj one of 80, in two blocks; each kept in float32 by stock.
    copies = TOKENS.numel() * (32 + 32 + 80) * 4 * 2
    assert 0.6 * copies < stock - ours < 1.1 * copies


# --- wrong results ----------------------------------------------------------------------------------------------------


def failed_checks(**fields: Any) -> set[str]:
    train = {"context_length": 32, "batch_size": 2, **fields.pop("train", {})}
    spec = parse_spec({"kind": "train", "model": "tiny-test", "repeats": 1, "warmup": 0, "train": train, **fields})
    return {check.name for check in run_job(spec, lambda _: None).checks if not check.passed}


BOTH = {"gradients_equal", "gradients_equal_in_model_dtype"}


def test_a_fused_gradient_wrong_by_one_percent_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = strategies._FusedLora.backward

    def wrong(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = list(backward(ctx, gradient))
        found[4], found[5] = found[4] * 1.01, found[5] * 1.01
        return tuple(found)

    monkeypatch.setattr(strategies._FusedLora, "backward", staticmethod(wrong))
    assert failed_checks(strategy="fused") >= BOTH


def test_a_chunked_loss_wrong_by_one_percent_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = ChunkedLoss._logits
    monkeypatch.setattr(ChunkedLoss, "_logits", lambda self, hidden: logits(self, hidden) * 1.01)
    assert "gradients_equal" in failed_checks(train={"loss_chunks": 3})


def test_a_tiled_mlp_wrong_by_one_percent_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = losses._tiled

    def wrong(forward: Callable[[torch.Tensor], torch.Tensor], tiles: int) -> Callable[[torch.Tensor], torch.Tensor]:
        whole = tiled(forward, tiles)
        return lambda hidden: whole(hidden) * 1.01

    monkeypatch.setattr(losses, "_tiled", wrong)
    assert "gradients_equal" in failed_checks(train={"sequence_tiles": 3})


def test_gradients_in_half_precision_are_judged_over_several_batches() -> None:
    stock = Agreement(error=0.02, scale=1.0)
    one_is_off = [(Agreement(0.02, 1.0 + 1.5 * SCALE_TOLERANCE), stock), *[(stock, stock)] * 3]
    assert check_rounding(one_is_off, "bfloat16").passed
    assert not check_rounding([(Agreement(0.02, 1.01), stock)] * 4, "bfloat16").passed
    assert not check_rounding([(Agreement(0.03, 1.0), stock)] * 4, "bfloat16").passed


def test_a_gradient_that_is_missing_on_one_batch_does_not_pass() -> None:
    stock = Agreement(error=0.02, scale=1.0)
    assert agreement({"loss": torch.ones(1)}, {"loss": torch.ones(1), "a": torch.ones(2)}) is None
    assert not check_rounding([(stock, stock), (None, stock)], "bfloat16").passed


def test_agreement_is_relative_to_the_reference() -> None:
    found = agreement({"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, 0.0])})
    assert found is not None
    assert (found.error, found.scale) == (pytest.approx(4 / 3), pytest.approx(1.0))
