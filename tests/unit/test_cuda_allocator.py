"""PyTorch's caching allocator for CUDA, against sequences worked out by hand from its rules."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from engine.prediction import cuda_allocator
from engine.prediction.cuda_allocator import KIB, MIB, Allocated, simulate
from engine.prediction.stream import Change, Part, Stream

NOTHING = Part("before", ())


def parts(*sizes: float) -> Stream:
    """One part in which these bytes come and go."""
    return (Part("step", tuple(Change("temporary", "", int(size)) for size in sizes)),)


def segments(*sizes: float) -> int:
    """Bytes held after these bytes came and went."""
    return simulate(NOTHING, parts(*sizes)).peak_reserved_bytes


@pytest.mark.parametrize(("size", "block"), [(1, 512), (512, 512), (513, 1024), (1000 * KIB + 1, 1000 * KIB + 512)])
def test_sizes_are_rounded_up_to_512_bytes(size: int, block: int) -> None:
    assert simulate(NOTHING, parts(size)) == Allocated(block, 2 * MIB, size)


def test_up_to_1_mib_blocks_share_segments_of_2_mib() -> None:
    assert segments(MIB) == segments(MIB, MIB) == segments(MIB, 512 * KIB, 512 * KIB) == 2 * MIB
    assert segments(MIB, 512 * KIB, 512 * KIB + 1) == 4 * MIB


def test_between_1_and_10_mib_blocks_share_segments_of_20_mib() -> None:
    assert segments(MIB + 1) == segments(9 * MIB, 9 * MIB) == 20 * MIB
    # 20 - 9 - 9 = 2 MiB are left.
    assert segments(9 * MIB, 9 * MIB, 2 * MIB) == 20 * MIB
    assert segments(9 * MIB, 9 * MIB, 3 * MIB) == 40 * MIB


def test_from_10_mib_on_each_block_has_a_segment_of_its_own_rounded_up_to_2_mib() -> None:
    assert segments(10 * MIB) == 10 * MIB
    assert segments(10 * MIB + 1) == 12 * MIB
    assert segments(65 * MIB, 65 * MIB) == 132 * MIB


def test_what_is_left_of_a_large_block_is_split_off_only_if_it_is_more_than_1_mib() -> None:
    # 20 - 9.5 = 10.5, and 10.5 - 9.5 = 1: the second block is given away whole.
    assert simulate(NOTHING, parts(9.5 * MIB, 9.5 * MIB)).peak_allocated_bytes == 20 * MIB
    assert simulate(NOTHING, parts(11 * MIB)).peak_allocated_bytes == 12 * MIB
    assert simulate(NOTHING, parts(10 * MIB + 512)).peak_allocated_bytes == 10 * MIB + 512
    # The 2 MiB less 512 bytes that are left then take the next block.
    assert segments(10 * MIB + 512, 1.5 * MIB) == 12 * MIB


def test_small_tensors_never_go_into_large_segments_nor_the_other_way_round() -> None:
    assert segments(2 * MIB, 512) == 22 * MIB
    assert segments(512, -512, 2 * MIB) == 22 * MIB


def test_a_freed_block_is_used_again_before_a_segment_is_taken() -> None:
    assert segments(64 * MIB, -64 * MIB, 40 * MIB, 24 * MIB) == 64 * MIB
    assert simulate(NOTHING, parts(64 * MIB, -64 * MIB, 40 * MIB)).peak_allocated_bytes == 64 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    # 18 goes into 20, so that 30 is whole for 28; into 30, it would leave only 12 and 20.
    assert segments(30 * MIB, 20 * MIB, -30 * MIB, -20 * MIB, 18 * MIB, 28 * MIB) == 50 * MIB


@pytest.mark.parametrize(
    ("freed", "held"), [("ab", 2), ("ba", 2), ("bc", 2), ("dc", 2), ("ac", 4), ("bd", 4), ("ad", 4)]
)
def test_free_neighbours_become_one_block_and_others_do_not(freed: str, held: int) -> None:
    # Four blocks fill a segment; a fifth needs the room of two.
    changes = [Change("temporary", name, 512 * KIB) for name in "abcd"]
    changes += [Change("temporary", name, -512 * KIB) for name in freed]
    changes.append(Change("temporary", "e", MIB))
    assert simulate(NOTHING, (Part("step", tuple(changes)),)).peak_reserved_bytes == held * MIB


def test_a_block_between_two_free_ones_joins_both() -> None:
    changes = [
        Change("temporary", name, size * KIB) for name, size in [("a", 300), ("b", 300), ("c", 300), ("d", 1000)]
    ]
    changes += [Change("temporary", name, -300 * KIB) for name in "acb"]
    changes.append(Change("temporary", "e", 900 * KIB))
    assert simulate(NOTHING, (Part("step", tuple(changes)),)) == Allocated(1900 * KIB, 2 * MIB, 1900 * KIB)


def test_a_cache_in_pieces_makes_a_job_reserve_more_than_it_ever_uses() -> None:
    # 12 MiB are cut from the freed 20; what is left is too small for 20 again.
    found = simulate(NOTHING, parts(20 * MIB, -20 * MIB, 12 * MIB, 20 * MIB))
    assert found == Allocated(32 * MIB, 40 * MIB, 32 * MIB)


def test_what_is_there_before_holds_its_blocks() -> None:
    before = Part("before", tuple(Change("parameters", "weight", 8 * MIB) for _ in range(3)))
    # Two of the three share a segment of 20 MiB, in the rest of which (4 MiB) and of the other (12 MiB) there is room.
    assert simulate(before, parts(12 * MIB, 4 * MIB)) == Allocated(40 * MIB, 40 * MIB, 40 * MIB)


def test_of_blocks_in_use_the_peak_counts_and_of_segments_all() -> None:
    assert simulate(NOTHING, parts(700, -700, 300)) == Allocated(1024, 2 * MIB, 700)


def test_the_sizes_are_those_of_the_installed_pytorch() -> None:
    (folder,) = importlib.util.find_spec("torch").submodule_search_locations  # type: ignore[union-attr, misc]
    text = (Path(folder) / "include/c10/core/AllocatorConfig.h").read_text()
    found = {name: int(size) for name, size in re.findall(r"constexpr size_t (\w+) = (\d+);", text)}
    (large_segment,) = re.findall(r"large_segment_size_\{(\d+)\}", text)
    assert found == {
        "kMinBlockSize": cuda_allocator._BLOCK_BYTES,
        "kSmallSize": cuda_allocator._SMALL_BYTES,
        "kSmallBuffer": cuda_allocator._SMALL_SEGMENT_BYTES,
        "kMinLargeAlloc": cuda_allocator._LARGE_BYTES,
        "kRoundLarge": cuda_allocator._ROUND_LARGE_BYTES,
    }
    assert int(large_segment) == cuda_allocator._LARGE_SEGMENT_BYTES
