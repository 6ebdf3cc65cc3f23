"""Histories of memory: their peak and course, and how those of shallow models become those of deep ones."""

from __future__ import annotations

import pytest

from engine.prediction.depth import Depths, NotRepeating, deepen, deepen_net, depths
from engine.prediction.stream import Change, Part, course, joined, lifetimes, net, peak


def part(name: str, *sizes: int, category: str = "temporary", origin: str = "") -> Part:
    return Part(name, tuple(Change(category, origin, size) for size in sizes))


def test_the_peak_is_the_first_moment_of_most_bytes_with_what_was_there_before() -> None:
    before = part("before", 100, category="parameters", origin="head.weight")
    found = peak(before, (part("forward", 5, 10, -10), part("backward", 10, -15, 3)))
    assert (found.part, found.total_bytes) == ("forward", 115)
    assert found.bytes == {"parameters": 100, "temporary": 15}
    assert found.origins == {("parameters", "head.weight"): 100, ("temporary", ""): 15}


def test_what_is_there_before_can_be_the_peak() -> None:
    found = peak(part("before", 100), (part("release", -60, 30),))
    assert (found.part, found.total_bytes) == ("release", 100)


def test_the_course_keeps_the_highest_moment_however_few_moments_are_shown() -> None:
    counted = (part("forward", *[1, -1] * 500, 70, -70, *[1, -1] * 500),)
    moments = course(part("before", 30), counted, most_moments=10)
    assert len(moments) <= 12
    assert max(sum(moment.bytes.values()) for moment in moments) == 100


def test_what_is_left_of_parts_is_one_change_for_each_storage() -> None:
    left = net("state", [part("update", 4, 8, 4, -8, category="optimizer state"), part("update", 2, -2)])
    assert left == part("state", 4, 4, category="optimizer state")


def test_of_equal_storages_the_last_goes_first() -> None:
    changes = [Change("temporary", name, size) for name, size in [("a", 4), ("a", 4), ("b", 4), ("a", -4), ("a", -4)]]
    assert [number for number, _ in lifetimes(changes)] == [0, 1, 2, 1, 0]


def test_a_storage_that_grew_goes_as_a_whole() -> None:
    assert [(number, change.bytes) for number, change in lifetimes(part("", 4, 6, -10).changes)] == [
        (0, 4),
        (1, 6),
        (1, -6),
        (0, -4),
    ]


def test_more_cannot_go_than_came() -> None:
    with pytest.raises(ValueError, match="never came"):
        list(lifetimes(part("", 4, -6).changes))


def test_two_histories_are_joined_without_a_peak_of_their_own_in_between() -> None:
    weights = Change("parameters", "w", 100)
    first = (Part("before", (weights,)), (part("prompt", 50, 7, -7), part("end", 4)))
    second = (Part("before", (weights, Change("temporary", "", 4), Change("cache", "", 30))), (part("last token", 90),))
    before, parts = joined(first, second, "between")
    between = parts[2]
    assert [p.name for p in parts] == ["prompt", "end", "between", "last token"]
    assert between.changes == (Change("temporary", "", -50), Change("cache", "", 30))
    assert peak(before, parts).total_bytes == 100 + 4 + 30 + 90
    assert peak(before, parts).part == "last token"


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("a" * 80, Depths(2, 3, 78)),
        ("ab" * 21, Depths(4, 6, 19)),
        ("aaab" * 9, Depths(8, 12, 7)),
        ("daaaaaaaaa", Depths(3, 4, 7)),
        # Six blocks of period four repeat only once and a half.
        ("aaabaa", None),
        ("aaa", None),
        ("abcdefgh", None),
        ("", None),
    ],
)
def test_two_depths_stand_for_blocks_that_repeat(blocks: str, expected: Depths | None) -> None:
    assert depths(blocks) == expected


def step(blocks: int) -> tuple[Part, Part, Part]:
    """A step over so many blocks: each keeps 3 of the 5 it makes, loops apart, and one loop within the update."""
    forward = [7, *[5, -2] * blocks, 9]
    backward = [-9, *[4, -3, -4] * blocks, -7]
    update = [*[2] * blocks, 1, *[6, -6] * blocks, *[-2] * blocks, -1]
    return part("forward", *forward), part("backward", *backward), part("update", *update)


@pytest.mark.parametrize("blocks", [4, 5, 33])
def test_a_step_over_many_blocks_is_found_from_two_shallow_ones_change_by_change(blocks: int) -> None:
    found = deepen(step(2), step(3), blocks - 2)
    deep = step(blocks)
    assert [p.name for p in found] == [p.name for p in deep]
    before = part("before", 10)
    assert peak(before, found) == peak(before, deep)
    assert [sorted(p.changes) for p in found] == [sorted(p.changes) for p in deep]


def test_of_two_loops_in_a_row_neither_takes_a_turn_of_the_other() -> None:
    def attached(blocks: int) -> Part:
        return part("attach", *[5, -1] * blocks, *[7, -3] * blocks)

    assert deepen((attached(2),), (attached(3),), 6) == (attached(8),)


def test_a_history_that_grows_with_depth_elsewhere_than_in_loops_is_refused() -> None:
    with pytest.raises(NotRepeating, match="forward"):
        deepen((part("forward", 20, 5, 5),), (part("forward", 30, 5, 5, 5),), 7)


def test_parts_that_only_the_deeper_model_has_are_refused() -> None:
    with pytest.raises(NotRepeating, match="same parts"):
        deepen((part("forward", 1),), (part("forward", 1), part("backward", 1)), 2)


def test_what_is_alive_before_grows_by_the_same_storages_for_each_period() -> None:
    weights = [Change("parameters", "embed", 100), Change("parameters", "layers.*", 10), Change("buffers", "", 3)]
    few = Part("before", (*weights, Change("parameters", "layers.*", 10)))
    more = Part("before", (*few.changes, Change("parameters", "layers.*", 10)))
    assert sorted(deepen_net(few, more, 8).changes) == sorted((*weights, *[Change("parameters", "layers.*", 10)] * 9))


def test_what_is_alive_before_grows_by_the_same_bytes_where_a_storage_is_larger_in_a_deeper_model() -> None:
    assert deepen_net(part("before", 4, 20), part("before", 4, 30), 8) == part("before", 104)
