"""The table of cards: complete, plausible, and found by name."""

from __future__ import annotations

from typing import get_args

import pytest

from engine import catalog
from engine.catalog import Card
from engine.spec import Dtype

GIB = 2**30
CARDS = list(catalog.cards().values())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_a_program_gets_somewhat_less_than_the_label_says(card: Card) -> None:
    share = card.memory_bytes / card.label_bytes
    if card.device == "mps":
        assert 0.6 < share < 0.9
    else:
        assert 0.9 < share < 1


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_each_card_says_where_its_figure_is_from(card: Card) -> None:
    assert card.source
    assert card.is_estimated == card.source.startswith("Estimated")


def test_cuda_cards_have_a_compute_capability_and_others_none() -> None:
    assert {card.device for card in CARDS} == {"cuda", "mps"}
    for card in CARDS:
        assert (card.compute_capability is not None) == (card.device == "cuda")


def test_bfloat16_needs_a_card_of_compute_capability_8() -> None:
    for card in CARDS:
        assert set(card.dtypes) <= set(get_args(Dtype))
        assert ("bfloat16" in card.dtypes) == (card.compute_capability is None or card.compute_capability >= (8, 0))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_a_card_computes_tens_to_hundreds_of_times_for_each_byte_that_it_reads(card: Card) -> None:
    assert card.speed_source
    if card.device == "mps":
        assert card.half_flops_per_s is card.bandwidth_bytes_per_s is None
    else:
        assert card.half_flops_per_s is not None
        assert card.bandwidth_bytes_per_s is not None
        assert 50 < card.half_flops_per_s / card.bandwidth_bytes_per_s < 450


def test_a_figure_is_in_single_operations_and_bytes_and_without_sparsity() -> None:
    a100 = catalog.card("a100-80gb")
    assert (a100.half_flops_per_s, a100.bandwidth_bytes_per_s) == (312e12, 2039e9)


def test_the_table_goes_from_t4_to_b200_with_consumer_cards_and_apple_machines() -> None:
    named = {"t4", "l4", "a10", "a100-40gb", "a100-80gb", "l40s", "h100-80gb", "h200", "b200", "rtx-3060", "rtx-5090"}
    assert named <= set(catalog.cards())
    assert {card.kind for card in CARDS} == {"data centre", "consumer", "Apple"}


def test_a_card_is_found_by_name_and_a_wrong_name_is_answered_with_the_nearest() -> None:
    assert catalog.card("a100-40gb").memory_bytes == pytest.approx(39.4 * GIB, rel=0.01)
    assert catalog.card("a100-40gb").compute_capability == (8, 0)
    with pytest.raises(catalog.UnknownEntry, match=r"'rtx-4091'; the nearest is rtx-4090"):
        catalog.card("rtx-4091")
