"""Each check of the proof passes on a right result and fails on one that is wrong by one percent."""

from __future__ import annotations

import pytest
import torch

from engine.strategies import proof

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def some_magnitudes(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer{index}": (torch.rand(40, generator=generator) + 0.5).to(dtype) for index in range(3)}


def wrong_by_a_percent(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (tensor.double() * 1.01).to(tensor.dtype) for name, tensor in values.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_magnitudes_scaled_by_one_percent_fail(dtype: torch.dtype) -> None:
    stock = some_magnitudes(dtype)
    reference = {name: tensor.double() for name, tensor in stock.items()}
    assert proof.check_magnitudes(stock, stock, lambda: reference).passed
    assert proof.check_magnitudes(stock, None, lambda: reference).passed
    wrong = wrong_by_a_percent(stock)
    assert not proof.check_magnitudes(wrong, stock, lambda: reference).passed
    assert not proof.check_magnitudes(wrong, None, lambda: reference).passed
    assert not proof.check_magnitudes(wrong, stock, None).passed


def test_one_wrong_module_among_many_fails() -> None:
    stock = some_magnitudes(torch.bfloat16)
    reference = {name: tensor.double() for name, tensor in stock.items()}
    ours = {**stock, "layer1": wrong_by_a_percent(stock)["layer1"]}
    assert not proof.check_magnitudes(ours, stock, lambda: reference).passed


def test_bit_equal_magnitudes_say_so_and_need_no_reference() -> None:
    stock = some_magnitudes(torch.bfloat16)

    def reference() -> dict[str, torch.Tensor]:
        raise AssertionError("not needed")

    check = proof.check_magnitudes(stock, stock, reference)
    assert check.passed
    assert check.detail == "bit-equal to stock in all 3 modules"


def test_magnitudes_one_ulp_off_pass_and_three_ulp_off_do_not() -> None:
    exact = {"layer": torch.tensor([1.0, 1.5], dtype=torch.float64)}
    ulp = torch.finfo(torch.bfloat16).eps
    for ulps, passed in ((1, True), (3, False)):
        ours = {"layer": (exact["layer"] + ulps * ulp).to(torch.bfloat16)}
        check = proof.check_magnitudes(ours, None, lambda: exact)
        assert check.passed is passed
        assert f"{ulps} ulp of bfloat16" in check.detail


def test_our_error_may_be_a_tenth_above_stocks_and_no_more() -> None:
    exact = {"layer": torch.ones(4, dtype=torch.float64)}
    ulp = torch.finfo(torch.float32).eps
    stock = {"layer": torch.full((4,), 1 + 20 * ulp)}
    assert proof.check_magnitudes({"layer": torch.full((4,), 1 + 22 * ulp)}, stock, lambda: exact).passed
    assert not proof.check_magnitudes({"layer": torch.full((4,), 1 + 24 * ulp)}, stock, lambda: exact).passed


def test_magnitudes_of_other_modules_or_with_nan_fail() -> None:
    stock = some_magnitudes(torch.float32)
    reference = {name: tensor.double() for name, tensor in stock.items()}
    missing = {name: stock[name] for name in ("layer0", "layer1")}
    check = proof.check_magnitudes(missing, stock, lambda: reference)
    assert not check.passed
    assert "layer2" in check.detail
    nan = {**stock, "layer0": torch.full((40,), torch.nan)}
    assert not proof.check_magnitudes(nan, stock, lambda: reference).passed
    assert not proof.check_magnitudes({}, {}, lambda: {}).passed


def test_ulp_counts_in_the_place_of_the_reference() -> None:
    reference = torch.tensor([1.0, 2.0, 1000.0], dtype=torch.float64)
    one_up = torch.nextafter(reference.float(), torch.tensor(torch.inf))
    assert proof.ulp_error(one_up, reference, torch.float32) == 1.0
    assert proof.ulp_error(reference.float(), reference, torch.float32) == 0.0


def some_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 8, 50, generator=generator)
    return base, base + torch.randn(1, 8, 50, generator=generator)


def test_logits_scaled_by_one_percent_fail() -> None:
    base, stock = some_logits()
    assert proof.check_logits(stock, stock, base).passed
    assert proof.check_logits(stock + 1e-6, stock, base).passed
    assert not proof.check_logits(stock * 1.01, stock, base).passed
    assert not proof.check_logits(base + 1.01 * (stock - base), stock, base).passed
    assert not proof.check_logits(stock * 1.01, stock, base, lambda: stock).passed


def test_logits_give_both_numbers() -> None:
    base, stock = some_logits()
    check = proof.check_logits(stock * 1.05, stock, base)
    assert "changes the logits by" in check.detail
    assert "differ from stock's by" in check.detail


def test_logits_closer_to_the_truth_than_stocks_pass() -> None:
    base, truth = some_logits()
    stock = truth + 0.01 * (truth - base)
    assert proof.check_logits(truth, stock, base, lambda: truth).passed
    further = truth - 0.02 * (truth - base)
    assert not proof.check_logits(further, stock, base, lambda: truth).passed


def test_logits_that_prove_nothing_fail() -> None:
    base, stock = some_logits()
    assert not proof.check_logits(base, base, base).passed
    nan = torch.full_like(stock, torch.nan)
    assert not proof.check_logits(nan, stock, base).passed
    assert not proof.check_logits(nan, nan, base).passed


def test_what_was_left_on_meta_is_named() -> None:
    assert proof.check_no_meta([]).passed
    check = proof.check_no_meta(["a.weight", "b.weight"])
    assert not check.passed
    assert "2 left on meta: a.weight, b.weight" in check.detail
