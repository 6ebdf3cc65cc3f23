"""What a job takes of a CUDA device: terms that add up, each with its source."""

from __future__ import annotations

import pytest

from engine.prediction.cuda_allocator import KIB, MIB, simulate
from engine.prediction.cuda_memory import on_device, workspace_bytes
from engine.prediction.stream import Change, Part

A100, H100 = (8, 0), (9, 0)
WEIGHTS = Part("before", (Change("parameters", "weight", 100 * MIB),))
# 20 MiB go, 12 come in their place and leave a piece that is too small for the next 20.
STEP = Part("step", tuple(Change("temporary", "", size * MIB) for size in (20, -20, 12, 20, -20, -12)))


@pytest.mark.parametrize(("capability", "size"), [((7, 5), 8320 * KIB), (A100, 8320 * KIB), (H100, 32 * MIB)])
def test_a_workspace_of_cublas_is_larger_from_hopper_on(capability: tuple[int, int], size: int) -> None:
    assert workspace_bytes(capability) == size


def test_the_terms_add_up_to_what_is_reserved_and_the_context() -> None:
    found = on_device(WEIGHTS, (STEP,), H100, handles=2)
    sizes = {term.name: term.bytes for term in found.terms}
    assert sizes == {
        "tensors": 132 * MIB,
        "rounding of tensors": 0,
        "cuBLAS workspaces": 64 * MIB,
        "cache in pieces": 8 * MIB,
        "CUDA context": 614 * MIB,
    }
    assert found.peak_allocated_bytes == (132 + 64) * MIB
    assert found.peak_reserved_bytes == (132 + 64 + 8) * MIB
    assert found.total_bytes == found.peak_reserved_bytes + 614 * MIB


def test_without_workspaces_the_peaks_are_those_of_the_allocator() -> None:
    found, plain = on_device(WEIGHTS, (STEP,), A100, handles=0), simulate(WEIGHTS, (STEP,))
    assert found.peak_allocated_bytes == plain.peak_allocated_bytes
    assert found.peak_reserved_bytes == plain.peak_reserved_bytes


def test_a_later_round_can_need_more_than_the_first() -> None:
    # What stays of the first round lies in the segment that the second round begins with.
    leaving = Part("step", tuple(Change("activations", "", size * MIB) for size in (20, -20, 12)))
    once, twice = (on_device(WEIGHTS, (leaving,), A100, 0, rounds).peak_reserved_bytes for rounds in (1, 2))
    assert (once, twice) == (120 * MIB, 140 * MIB)


def test_parts_that_give_back_what_was_there_before_are_gone_through_once() -> None:
    moving = Part("step", (Change("parameters", "weight", -100 * MIB), Change("activations", "", 100 * MIB)))
    assert on_device(WEIGHTS, (moving,), A100, 0, rounds=2) == on_device(WEIGHTS, (moving,), A100, 0)


def test_every_term_says_where_its_figure_is_from() -> None:
    assert all(term.source for term in on_device(WEIGHTS, (STEP,), A100, handles=1).terms)
