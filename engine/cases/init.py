"""Case 1: attaching DoRA on a CPU takes many times as long as attaching LoRA. The claim as data, and its rule.

Judges ratios of seconds to attach between runs of one sweep. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from engine.cases.evidence import Evidence, between, gather, ratios_between, spread, value
from engine.cases.records import Advice, Case, Observation, Published, Ratio, Size, Source, Sweep, Verdict
from engine.cases.sweeps import DORA, spec
from engine.cases.verdicts import SETTLING_ROUNDS, Judging, direction
from engine.spec import Measured

GIB = 2**30
FASTER = ("zero_b_norm", "batched_norm", "factored_norm", "staged")
ROUNDS = 2
PUBLISHED_RATIO = 20.0
SLOWER = 1.5
STRAIGHT = 0.9
_METRIC = "init_time_s"
_CLAIMED_LINE = "claimed: in proportion to the modules"


def _sweep(
    size: Size,
    model: str,
    layers: tuple[str, ...],
    minutes: float | None,
    needs_bytes: int,
    strategies: tuple[str, ...] = FASTER[:1],
) -> Sweep:
    """LoRA and DoRA on every linear layer, DoRA by strategies that lower the cost, and DoRA on fewer blocks.

    Blocks are all alike, so that the number of modules is all that differs.
    """
    specs = [spec("init", model, repeats=3), spec("init", model, adapter=DORA, repeats=3)]
    specs += [spec("init", model, adapter=DORA, strategy=strategy, repeats=3) for strategy in strategies]
    specs += [
        spec("init", model, adapter=DORA | {"target_modules": rf".*layers\.{blocks}\..*_proj"}, repeats=3)
        for blocks in layers
    ]
    return Sweep(size, model, tuple(specs), ROUNDS, minutes, "cpu", needs_bytes)


CASE = Case(
    id="init",
    number=1,
    title="DoRA adapters load slowly on a CPU",
    question="Why does attaching a DoRA adapter take minutes when LoRA takes a second?",
    claim="On Mistral 7B attaching LoRA takes about 7 s, and attaching DoRA on a CPU 140 s or longer, 20 to 100 "
    "times as much as on a GPU. The time grows linearly with the number of adapted modules.",
    sources=(
        Source("huggingface/peft#1593", "https://github.com/huggingface/peft/issues/1593"),
        Source("PR #1474: DoRA's norm at full size", "https://github.com/huggingface/peft/pull/1474"),
        Source("PR #1857: ephemeral_gpu_offload", "https://github.com/huggingface/peft/pull/1857"),
    ),
    published=(
        Published("LoRA", 7, "s"),
        Published("DoRA on a GPU", 7.25, "s", "7 to 7.5 s"),
        Published("DoRA on a CPU", 140, "s", "or it did not end"),
        Published("DoRA / LoRA on a CPU", 20, "ratio", "140 s over 7 s; up to 100 was reported"),
    ),
    truth="DoRA is weight-decomposed, not dropout-based, low-rank adaptation. What takes the time is the norm of W + "
    "s·B·A, which PEFT computes at full size for each module. In a fresh adapter B is zero, so that the norm is that "
    "of W alone; and when a checkpoint is loaded, the norm is overwritten anyway.",
    rule="It holds here if stock DoRA takes at least 20 times LoRA's seconds in each of 2 rounds or more, on a "
    "straight line over the number of modules (R² of 0.9 or more), in direction from 1.5 times on, and otherwise it "
    "does not hold here; where rounds disagree, the lower quartile of 5 or more decides.",
    advice=(
        Advice(
            "Attach a fresh DoRA adapter with zero_b_norm: the same magnitudes from one read of the weights.",
            spec("init", "mistral-7b", adapter=DORA, strategy="zero_b_norm"),
        ),
        Advice(
            "Where B is not zero (PiSSA, OLoRA and the like), use factored_norm.",
            spec("init", "mistral-7b", adapter=DORA, strategy="factored_norm"),
        ),
        Advice("Adapt fewer modules: the time is proportional to their number."),
    ),
    key_label="DoRA / LoRA, seconds to attach",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", ("[0-4]", "([0-9]|10)"), 2, 4 * GIB),
        _sweep("published", "mistral-7b", ("[0-7]", "([0-9]|1[0-5])"), None, 18 * GIB, FASTER),
        _sweep("test", "tiny-test", ("0",), 1, GIB),
    ),
)


def judge(sweep: Sweep, observations: Sequence[Observation]) -> Verdict:
    """The verdict by :attr:`CASE.rule`."""
    evidence = gather(sweep, observations, timed=True)
    lora, dora, *others = sweep.specs
    faster = [one for one in others if one.strategy != dora.strategy]
    parts = [one for one in others if one.strategy == dora.strategy]
    plain = evidence.of(lora)
    key = between("Stock DoRA / LoRA", evidence.of(dora), plain, _METRIC, published=PUBLISHED_RATIO)
    ratios = [key]
    ratios += [between(f"{one.strategy} / LoRA", evidence.of(one), plain, _METRIC) for one in faster]
    ratios += _shares(parts, dora, evidence)
    line = _line([run for one in (*parts, dora) for run in evidence.of(one)])
    judging = Judging(evidence, (lora, dora, *parts), ROUNDS)
    if not judging.complete or key.low is None or line is None:
        return judging.not_enough(ratios, key.measured)
    straight = line.r_squared >= STRAIGHT
    said = (
        f"Stock DoRA took {spread(key)} times as long to attach as LoRA. It grows by {line.slope * 1000:.3g} ms per "
        f"module, {'on' if straight else 'but not on'} a straight line (R² {line.r_squared:.3f})."
    )
    if key.low >= PUBLISHED_RATIO and straight:
        return judging.verdict("holds here", said, ratios, key.measured)
    word = direction(ratios_between(evidence.of(dora), plain, _METRIC), SLOWER)
    if word is None:
        return judging.disagreement(said, ratios, key.measured, SETTLING_ROUNDS)
    return judging.verdict(word, said, ratios, key.measured)


def _shares(parts: Sequence[Measured], dora: Measured, evidence: Evidence) -> list[Ratio]:
    """Seconds on some of the modules over seconds on all, beside the share of the modules that is claimed."""
    whole = evidence.of(dora)
    total = value(whole[0], "adapted_modules") if whole else None
    found = []
    for part in parts:
        runs = evidence.of(part)
        modules = value(runs[0], "adapted_modules") if runs else None
        if total and modules:
            label = f"{modules:.0f} of {total:.0f} modules / all"
            found.append(between(label, runs, whole, _METRIC, published=modules / total, x=modules, note=_CLAIMED_LINE))
    return found


@dataclasses.dataclass(frozen=True)
class _Line:
    """A straight line through seconds over modules."""

    slope: float
    r_squared: float


def _line(runs: Sequence[Observation]) -> _Line | None:
    """The line of least squares; None while all runs have the same number of modules."""
    points = [(value(run, "adapted_modules") or 0.0, value(run, _METRIC) or 0.0) for run in runs]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(set(xs)) < 2:
        return None
    slope, _ = statistics.linear_regression(xs, ys)
    r = statistics.correlation(xs, ys) if len(set(ys)) > 1 else 0.0
    return _Line(slope, r * r)
