"""The fused forward pass in one's own code, and the checks that tell wrong results from right ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine import adapters
from engine.jobs.inference_proof import check_logits, check_rows, check_same
from engine.models import build_model
from engine.spec import FreshAdapter, InferenceSpec
from engine.strategies import proof
from engine.strategies.inference import fused
from engine.strategies.proof import LOGIT_TOLERANCE

IDS = torch.arange(14).view(2, 7)


def adapted(model: str = "tiny-test", **options: Any) -> tuple[PeftModel, Tensor]:
    """A model in float32 with noise in its adapter, and the logits of the bare model."""
    base = build_model(InferenceSpec(model=model, dtype="float32"))
    own = {id(parameter) for parameter in base.parameters()}
    plain = logits(base)
    found = adapters.attach(base, FreshAdapter(rank=4, options=options)).eval()
    proof.perturb(found, own, 0)
    return found, plain


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(input_ids=IDS).logits
    return result


def distance(ours: Tensor, stock: Tensor, base: Tensor) -> float:
    return float((ours - stock).norm() / (stock - base).norm())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"rank_pattern": {"q_proj": 2, "gate_proj": 3}},
        {"init_lora_weights": "pissa"},
    ],
)
def test_fused_is_stock_peft_for_every_form_of_lora(options: dict[str, Any]) -> None:
    model, base = adapted(**options)
    stock = logits(model)
    with fused(model) as patched:
        ours = logits(model)
    assert patched == 14
    assert distance(ours, stock, base) < 1e-5
    assert torch.equal(logits(model), stock)


class Products(TorchDispatchMode):
    """The widths (columns of the second matrix) of the products that run in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.widths.append(args[1].shape[1])
        return func(*args, **(kwargs or {}))


def test_layers_that_read_one_input_share_one_product() -> None:
    model, _ = adapted()
    with fused(model), Products() as products:
        logits(model)
    # Two layers of: q, k and v together, o, gate and up together, down.
    assert sorted(width for width in products.widths if width in (4, 8, 12)) == [4] * 4 + [8] * 2 + [12] * 2


def test_a_layer_called_with_another_input_than_the_first_of_its_group_computes_its_own_product() -> None:
    model, _ = adapted()
    attention: Any = model.get_base_model().model.layers[0].self_attn
    one, other = torch.randn(1, 3, 64), torch.randn(1, 3, 64)
    with torch.inference_mode():
        expected = attention.k_proj(other)
        with fused(model):
            attention.q_proj(one)
            assert torch.allclose(attention.k_proj(other), expected, atol=1e-6)


def test_what_changes_the_adapter_inside_the_block_is_left_to_peft() -> None:
    model, base = adapted()
    stock = logits(model)
    with fused(model):
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
        model.merge_adapter()
        assert distance(logits(model), stock, base) < 1e-5
        model.unmerge_adapter()
        with torch.no_grad():
            model.add_adapter("other", model.peft_config["default"])
            model.set_adapter("other")
            assert torch.allclose(logits(model), base, atol=1e-5)


def test_gradients_are_pefts_own() -> None:
    model, _ = adapted()
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
    parameter.requires_grad_(True)
    with fused(model):
        model(input_ids=IDS).logits.sum().backward()
    assert parameter.grad is not None


def test_training_mode_and_unknown_layers_are_left_alone() -> None:
    model, _ = adapted()
    model.train()
    with fused(model) as patched:
        assert patched == 0
    base = build_model(InferenceSpec(model="tiny-test", dtype="float32"))
    embedding = adapters.attach(base, FreshAdapter(rank=4, target_modules=("embed_tokens",))).eval()
    with fused(embedding) as patched:
        assert patched == 0


def test_an_error_inside_the_block_puts_the_layers_back() -> None:
    model, _ = adapted()
    with pytest.raises(RuntimeError, match="mine"), fused(model):
        raise RuntimeError("mine")
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_wrong_by_one_percent_fails_its_proof(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.jobs import run_job
    from engine.spec import parse_spec
    from engine.strategies import inference

    fold = inference._fold

    def wrong(layer: Any, name: str | None) -> Any:
        import dataclasses

        part = fold(layer, name)
        return None if part is None else dataclasses.replace(part, b_rows=part.b_rows * 1.01)

    monkeypatch.setattr(inference, "_fold", wrong)
    document = {
        "kind": "inference",
        "model": "tiny-test",
        "dtype": dtype,
        "repeats": 1,
        "warmup": 0,
        "strategy": "fused",
    }
    section = {"prompt_tokens": 8, "new_tokens": 2, "variants": ["base", "adapter"]}
    found = run_job(parse_spec({**document, "inference": section}), lambda _: None).checks
    title = "fused_logits_equal" if dtype == "float32" else "fused_logits_equal_in_float32"
    assert next(check for check in found if check.name == title).passed is False


# --- checks as pure functions -----------------------------------------------------------------------------------------


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 3, 50, generator=generator)
    return base, base + torch.randn(base.shape, generator=generator)


def test_an_effect_wrong_by_one_percent_does_not_pass() -> None:
    base, stock = example()
    assert check_logits("x", base + (stock - base) * (1 + LOGIT_TOLERANCE / 2), stock, base).passed
    assert not check_logits("x", base + (stock - base) * 1.01, stock, base).passed


def test_a_reference_allows_an_error_as_large_as_stocks_and_no_larger() -> None:
    base, exact = example()
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1)) * 0.02
    assert check_logits("x", exact - noise, exact + noise, base, exact).passed
    assert not check_logits("x", exact - noise * 1.2, exact + noise, base, exact).passed


def test_an_adapter_without_effect_proves_nothing() -> None:
    base, _ = example()
    assert not check_logits("x", base, base, base).passed


def test_a_row_with_a_neighbours_adapter_or_wrong_by_one_percent_does_not_pass() -> None:
    base, stock = example()
    assert check_rows("x", stock, {0: stock, 1: stock}, base).passed
    assert not check_rows("x", stock.flip(0), {0: stock, 1: stock}, base).passed
    assert not check_rows("x", base + (stock - base) * 1.01, {0: stock, 1: stock}, base).passed


def test_sameness_is_to_the_bit() -> None:
    base, _ = example()
    assert check_same("x", base, base.clone(), "the base").passed
    assert not check_same("x", base, base * 1.01, "the base").passed
