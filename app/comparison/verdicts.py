"""Whether one group of runs is faster, smaller or better than another, how sure that is, and the sentence that says it.

The rule is ``RULE``, which is shown wherever a verdict is. Readings come in stored units, which way is better comes
from ``app.formatting``. Chooses no baseline and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from app import formatting
from app.comparison import statistics
from app.comparison.statistics import SIGNIFICANCE, Reading

Tone = Literal["good", "bad", "neutral", "open"]

NO_DIFFERENCE = "no difference"
NOT_ENOUGH = "not enough data"
#: The signed-rank test cannot be significant with fewer pairs; from 4 on the Mann-Whitney test can.
_PAIRS_FOR_SIGNED_RANK = 6
_LEAST_TIME_EFFECT = 0.02
_LEAST_SIZE_EFFECT = 0.01
_COUNTED_UNITS = ("bytes", "W", "parameters", "modules", "layers", "count")
# Bytes that are looked at from outside or come from an allocator, and so are not the same each time.
_SAMPLED_WORDS = ("rss", "reserved", "allocated", "unattributed", "anonymous", "file")
# From here on "3.1×" reads better than "210 %".
_TIMES_FROM = 2.0

RULE = (
    f"A difference counts when it is significant (p < {SIGNIFICANCE:g}, two-sided) **and** large enough: "
    f"{_LEAST_TIME_EFFECT * 100:.0f} % of the baseline's median for times, speeds and ratios, "
    f"{_LEAST_SIZE_EFFECT * 100:.0f} % for bytes and counts.\n\n"
    "- **Inside one run** variants are measured in turns, so the repeats decide. From "
    f"{_PAIRS_FOR_SIGNED_RANK} repeats on they are compared pair by pair (exact Wilcoxon signed-rank test), which a "
    "drifting machine does not disturb. With 4 or 5, too few for that test, the exact Mann-Whitney test compares them "
    "as two samples, which a drift can only make stricter. The change within the pairs must be large enough, too.\n"
    "- **Between runs** replicas decide: each run counts once, with its median, in an exact Mann-Whitney test. Below 4 "
    "runs on each side (or 3 against 5, 2 against 8) that cannot be significant, and the verdict is "
    f"“{NOT_ENOUGH}”.\n"
    "- **Counted** numbers (tensor bytes, parameters) that are the same in every run of a side need no test.\n"
    "- “No difference” means that none was shown, not that there is none.\n\n"
    "Every comparison is tested by itself: of twenty between equal things, one may pass "
    f"p < {SIGNIFICANCE:g} by chance."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a group is against the baseline.

    Attributes:
        word: "faster", "slower", "smaller", "larger", "fewer", "more", "better", "worse", "lower", "higher",
            "no difference" or "not enough data".
        tone: good and bad by the metric's direction; neutral where it has none or nothing differs; open without data.
        difference: of the medians, in stored units.
        change: of the medians, as a share of the baseline's; None where that is zero.
        p: two-sided; None where nothing was tested.
        evidence: what it stands on, in a few words.
    """

    word: str
    tone: Tone
    difference: float
    change: float | None
    p: float | None
    evidence: str


def least_effect(unit: str) -> float:
    """The smallest change, as a share of the baseline, that counts as a difference."""
    return _LEAST_SIZE_EFFECT if unit in _COUNTED_UNITS else _LEAST_TIME_EFFECT


def is_counted(metric: str, unit: str) -> bool:
    """Whether a metric is counted exactly, so that equal values need no test."""
    return unit in _COUNTED_UNITS and not any(word in metric for word in _SAMPLED_WORDS)


def decide(metric: str, unit: str, readings: Sequence[Reading], baseline: Sequence[Reading]) -> Verdict | None:
    """The verdict on one metric of a group against the baseline's; None where either has no value.

    Args:
        metric: its name, which says the direction.
        unit: as stored, also where the values are ratios to something; it decides words and the least effect.
        readings: of the group, in any order.
        baseline: of the baseline.
    """
    ours, theirs = statistics.summary(readings), statistics.summary(baseline)
    if ours is None or theirs is None:
        return None
    difference = ours.median - theirs.median
    change = difference / abs(theirs.median) if theirs.median else (None if difference else 0.0)
    tested = _test(metric, unit, readings, baseline)
    if tested.is_open:
        return Verdict(NOT_ENOUGH, "open", difference, change, None, tested.evidence)
    is_large = all(abs(found) >= least_effect(unit) for found in (change, tested.change) if found is not None)
    agrees = difference != 0 and (tested.is_higher is None or tested.is_higher == (difference > 0))
    if not is_large or not agrees or (tested.p is not None and tested.p >= SIGNIFICANCE):
        return Verdict(NO_DIFFERENCE, "neutral", difference, change, tested.p, tested.evidence)
    word, tone = _word(metric, unit, difference)
    return Verdict(word, tone, difference, change, tested.p, tested.evidence)


@dataclass(frozen=True, slots=True)
class _Tested:
    """What was tested.

    Attributes:
        evidence: what the test stands on, in words.
        p: None without a test.
        is_open: whether there is too little to test.
        is_higher: whether most pairs have the group higher; None without pairs, or where neither is.
        change: of the pairs, as a share of the baseline's value; None without pairs. Where one side has runs that the
            other has not, the change of the medians may come from those.
    """

    evidence: str
    p: float | None = None
    is_open: bool = False
    is_higher: bool | None = None
    change: float | None = None


def _test(metric: str, unit: str, readings: Sequence[Reading], baseline: Sequence[Reading]) -> _Tested:
    own_runs, their_runs = ({reading.run_id for reading in side} for side in (readings, baseline))
    if is_counted(metric, unit) and _is_constant(readings) and _is_constant(baseline):
        runs = len(own_runs | their_runs)
        words = "counted, 1 run" if runs == 1 else f"counted, {runs} runs, equal within each group"
        if len(own_runs) == len(their_runs) == 1 and runs == 2:
            words = "counted, 1 run each"
        return _Tested(words)
    pairs = statistics.pairs(readings, baseline)
    if statistics.can_decide(len(pairs), len(pairs)):
        return _paired(pairs, len(own_runs & their_runs))
    if own_runs == their_runs:
        words = f"{formatting.plural(len(pairs), 'repeat')}, needs {statistics.needed(len(pairs), len(pairs))}"
        return _Tested(words, is_open=True)
    ours, theirs = statistics.run_medians(readings), statistics.run_medians(baseline)
    if not statistics.can_decide(len(ours), len(theirs)):
        has = f"{len(ours)}" if len(ours) == len(theirs) else f"{len(ours)} and {len(theirs)}"
        noun = "run" if max(len(ours), len(theirs)) == 1 else "runs"
        words = f"{has} {noun}{' each' if len(ours) == len(theirs) else ''}"
        words = f"{words}, needs {statistics.needed(len(ours), len(theirs))} each"
        return _Tested(words, is_open=True)
    p = statistics.mann_whitney_p(ours, theirs)
    n = f"{len(ours)} runs each" if len(ours) == len(theirs) else f"{len(ours)} and {len(theirs)} runs"
    return _Tested(f"n = {n}, {p_text(p)}", p)


def _paired(pairs: list[tuple[float, float]], runs: int) -> _Tested:
    if len(pairs) >= _PAIRS_FOR_SIGNED_RANK:
        p = statistics.signed_rank_p(pairs)
    else:
        p = statistics.mann_whitney_p([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    higher = sum(ours > theirs for ours, theirs in pairs) - sum(ours < theirs for ours, theirs in pairs)
    among = f" in {runs} runs" if runs > 1 else ""
    changes = [ours / theirs - 1 for ours, theirs in pairs if theirs]
    change = median(changes) if len(changes) == len(pairs) else None
    return _Tested(f"n = {len(pairs)} repeats{among}, {p_text(p)}", p, False, higher > 0 if higher else None, change)


def _is_constant(readings: Sequence[Reading]) -> bool:
    return len({reading.value for reading in readings}) == 1


def _word(metric: str, unit: str, difference: float) -> tuple[str, Tone]:
    way = formatting.better(metric.partition("@")[0])
    is_lower = difference < 0
    tone: Tone = "neutral" if way is None else "good" if is_lower == (way == "lower") else "bad"
    if unit == "s":
        return ("faster" if is_lower else "slower"), tone
    if unit == "tokens/s":
        return ("slower" if is_lower else "faster"), tone
    if unit in ("bytes", "W"):
        return ("smaller" if is_lower else "larger"), tone
    if unit in _COUNTED_UNITS:
        return ("fewer" if is_lower else "more"), tone
    if way is None:
        return ("lower" if is_lower else "higher"), tone
    return ("better" if tone == "good" else "worse"), tone


def p_text(p: float) -> str:
    """ "p = 0.008", "p < 0.0001"."""
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.2f}" if p >= 0.0995 else f"p = {formatting.significant(p, 1 if p < 0.01 else 2)}"


def change_text(change: float | None) -> str:
    """A change with its sign: "−12 %", "+0.8 %"; times from twice on: "3.10×"; a dash where the baseline is zero."""
    if change is None or not math.isfinite(change):
        return formatting.DASH
    if change >= _TIMES_FROM - 1:
        return formatting.ratio(change + 1)
    return f"{'−' if change < 0 else '+' if change > 0 else ''}{_percent(change)}"


def _percent(change: float) -> str:
    return f"{formatting.significant(abs(change) * 100, 2)} %" if abs(change) < 0.995 else f"{abs(change) * 100:.0f} %"


def _extent(change: float | None) -> str:
    """How much, without a sign: "12 % ", "7.20× ", ready to stand before "faster"."""
    if change is None or change <= -1:
        return ""
    times = max(change + 1, 1 / (change + 1))
    return f"{formatting.ratio(times)} " if times >= _TIMES_FROM else f"{_percent(change)} "


def sentence(verdict: Verdict, name: str, baseline: str, value: str, baseline_value: str) -> str:
    """A verdict as one sentence for a person.

    Args:
        verdict: what was decided.
        name: of the group.
        baseline: its name.
        value: the group's median as text.
        baseline_value: the baseline's.
    """
    against = f"{value} against {baseline_value}"
    if verdict.word == NOT_ENOUGH:
        so_far = "" if verdict.change is None else f", {change_text(verdict.change)} so far"
        return f"Not enough data on {name} against {baseline}: {against}{so_far} ({verdict.evidence})."
    if verdict.word == NO_DIFFERENCE:
        change = "" if verdict.change is None else f", {change_text(verdict.change)}"
        shown = "shown " if verdict.p is not None and verdict.p >= SIGNIFICANCE else ""
        return f"No difference {shown}between {name} and {baseline}: {against}{change} ({verdict.evidence})."
    if verdict.word in ("fewer", "more"):
        return f"{name} has {_extent(verdict.change)}{verdict.word} than {baseline}: {against} ({verdict.evidence})."
    return f"{name} is {_extent(verdict.change)}{verdict.word} than {baseline}: {against} ({verdict.evidence})."
