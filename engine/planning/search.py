"""The largest number that still fits, where what is needed grows with it: few looks, and the answer is looked at.

Knows nothing of models. Every look is dear, so the next one is where the known ones say that the limit is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# Beyond these, halving is surer: what is needed does not grow as a polynomial of degree two.
_GUESSES = 8
# Three looks tell what comes after the last of them where they are this straight, and it is that clearly too much, as
# shares of the limit.
_STRAIGHT, _CLEARLY = 5e-4, 2e-3


def largest(
    need: Callable[[int], float],
    limit: float,
    highest: int,
    known: Mapping[int, float] | None = None,
    hints: Mapping[int, float] | None = None,
) -> int:
    """The largest number up to ``highest`` that needs at most ``limit``; 0 where not even 1 does.

    The answer has been looked at. The number after it has been looked at, too, or three looks that end with the answer
    lie on a line that says what it needs.

    Args:
        need: what a number needs; it never falls as the number grows.
        limit: how much there is.
        highest: the largest number that is of interest.
        known: needs that were looked at before.
        hints: about what some numbers need: they say where to look first, and are not believed.
    """
    seen = {number: value for number, value in (known or {}).items() if 1 <= number <= highest}
    low, high = 0, highest + 1
    looks = 0
    while True:
        for number, value in seen.items():
            low, high = (max(low, number), high) if value <= limit else (low, min(high, number))
        if high - low <= 1 or _next_is_too_much(seen, limit, low):
            return low
        guess = (low + high) // 2
        if looks < _GUESSES:
            points = hints if looks == 0 and hints and len(hints) > 1 else seen
            guess = _crossing(points, limit, low, high)
        guess = min(max(guess, low + 1), high - 1)
        seen[guess] = need(guess)
        looks += 1


def _next_is_too_much(seen: Mapping[int, float], limit: float, low: int) -> bool:
    """Whether the looks at ``low`` and at the two nearest to it tell that ``low + 1`` is beyond the limit."""
    others = sorted((number for number in seen if number != low), key=lambda number: abs(number - low))[:2]
    if low not in seen or len(others) < 2:
        return False
    first, second = others
    slope = (seen[low] - seen[first]) / (low - first)
    off = abs(seen[low] + slope * (second - low) - seen[second])
    return off <= _STRAIGHT * limit and seen[low] + slope > limit * (1 + _CLEARLY)


def _crossing(seen: Mapping[int, float], limit: float, low: int, high: int) -> int:
    """Where the parabola (or line) through the nearest known points reaches the limit: the last number before that."""
    if not seen:
        return low + 1
    points = sorted(sorted(seen.items(), key=lambda item: abs(item[1] - limit))[:3])
    if len(points) == 1:
        # How it grows is not known yet: a look where proportion says tells, and is not far off.
        return int(points[0][0] * limit / max(points[0][1], 1.0))
    first, last = low + 1, high - 1
    if _curve(points, first) > limit:
        return first
    # By halving: the curve costs nothing.
    while last > first:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if _curve(points, middle) <= limit else (first, middle - 1)
    return first


def _curve(points: list[tuple[int, float]], at: int) -> float:
    """The polynomial through these points (Lagrange's form)."""
    total = 0.0
    for place, (x, y) in enumerate(points):
        for other, (known, _) in enumerate(points):
            if other != place:
                y *= (at - known) / (x - known)
        total += y
    return total
