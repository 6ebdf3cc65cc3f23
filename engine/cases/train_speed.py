"""Case 5: LoRA trains a small model more slowly than full fine-tuning. The claim as data, and its rule.

Judges ratios of step times between runs of one round. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.cases.evidence import between, gather, ratios_between, spread, value
from engine.cases.records import Advice, Case, Observation, Published, Ratio, Size, Source, Sweep, Verdict
from engine.cases.sweeps import spec
from engine.cases.verdicts import SETTLING_ROUNDS, Judging, direction
from engine.spec import Measured

GIB = 2**30
PUBLISHED_RATIO = 260 / 150
MUCH_SLOWER = 1.5
SLOWER = 1.02
ROUNDS = 3
_METRIC = "step_time_s"
ADAPTERS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rank": 2},
    {"rank": 2, "target_modules": "qk"},
    {"rank": 2, "target_modules": "lm_head"},
)


def _sweep(
    size: Size, model: str, batch_size: int, context_length: int, minutes: float | None, device: str = "cpu"
) -> Sweep:
    """Full fine-tuning, LoRA on every linear layer, on query and key, and on the output head.

    In as many rounds as decide where they disagree: on two cores the two sides of the claim come out close.
    """
    specs = tuple(
        spec(
            "train",
            model,
            adapter=adapter,
            device=device,
            repeats=4,
            train={"context_length": context_length, "batch_size": batch_size},
        )
        for adapter in ADAPTERS
    )
    return Sweep(size, model, specs, SETTLING_ROUNDS, minutes, "cuda" if device != "cpu" else "cpu", 8 * GIB)


CASE = Case(
    id="train_speed",
    number=5,
    title="LoRA trains more slowly than full fine-tuning",
    question="Why is LoRA sometimes slower than full fine-tuning, and which modules are worth adapting?",
    claim="For a model of 27 M parameters full fine-tuning took 150 min and LoRA of rank 2 on every linear layer 260 "
    "min. Adapting only query and key is faster than full fine-tuning, and only the last linear layer is fastest.",
    sources=(Source("jingyaogong/minimind#88", "https://github.com/jingyaogong/minimind/issues/88"),),
    published=(
        Published("Full fine-tuning", 150, "min"),
        Published("LoRA r = 2, every linear layer", 260, "min"),
        Published("LoRA / full fine-tuning", PUBLISHED_RATIO, "ratio"),
    ),
    truth="On a GPU a model this small is bound by starting kernels, and each adapted layer starts several more, while "
    "the work saved on gradients and optimizer is tiny. The last layer wins because the backward pass stops there.",
    rule="It holds in direction if LoRA of rank 2 on every linear layer takes at least 1.02 times full fine-tuning's "
    "step in each of 3 rounds or more, here if it takes 1.5 times with query and key below 1 and the output head "
    "lowest, and otherwise it does not hold here; where rounds disagree, the lower quartile of 5 or more decides.",
    advice=(
        Advice(
            "Do not adapt every linear layer of a small model; query and key cost much less.",
            spec("train", "minimind-26m", adapter={"rank": 8, "target_modules": "qk"}),
        ),
        Advice(
            "Run LoRA layers fused: two products each instead of five small operations.",
            spec("train", "minimind-26m", adapter={"rank": 8}, strategy="fused"),
        ),
        Advice("Adapt late modules: the backward pass ends at the first trained one."),
    ),
    key_label="Step time, LoRA r = 2 on every linear layer / full",
    sweeps=(
        _sweep("here", "minimind-26m", 4, 512, 4),
        _sweep("published", "minimind-26m", 32, 512, None, "cuda:0"),
        _sweep("test", "tiny-test", 1, 32, 1),
    ),
)


def judge(sweep: Sweep, observations: Sequence[Observation]) -> Verdict:
    """The verdict by :attr:`CASE.rule`."""
    evidence = gather(sweep, observations, timed=True)
    full, every, query_key, last = sweep.specs
    plain = evidence.of(full)

    def beside_full(label: str, one: Measured, published: float | None = None) -> Ratio:
        runs = evidence.of(one)
        return between(label, runs, plain, _METRIC, published=published, note=_depth(runs))

    lora = beside_full("r = 2, every linear layer", every, PUBLISHED_RATIO)
    some = beside_full("r = 2, query and key", query_key)
    head = beside_full("r = 2, output head", last)
    ratios = [lora, some, head]
    judging = Judging(evidence, (full, every, query_key, last), ROUNDS)
    if not judging.complete or lora.low is None or lora.high is None or some.high is None or head.high is None:
        return judging.not_enough(ratios, lora.measured)
    rounds = len(evidence.of(every))
    said = (
        f"LoRA takes {spread(lora)} times full fine-tuning's step on every linear layer, {spread(some)} on query and "
        f"key, and {spread(head)} on the output head ({rounds} rounds)."
    )
    if lora.low >= MUCH_SLOWER and some.high < 1 and head.high < (some.low or 0.0):
        return judging.verdict("holds here", said, ratios, lora.measured)
    word = direction(ratios_between(evidence.of(every), plain, _METRIC), SLOWER)
    if word is None:
        return judging.disagreement(said, ratios, lora.measured, SETTLING_ROUNDS)
    return judging.verdict(word, said, ratios, lora.measured)


def _depth(runs: Sequence[Observation]) -> str:
    """Through how many blocks the backward pass goes, in words."""
    blocks = value(runs[-1], "gradient_depth_layers") if runs else None
    return "" if blocks is None else f"gradients reach {blocks:.0f} {'block' if blocks == 1 else 'blocks'}"
