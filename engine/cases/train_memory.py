"""Case 3: what LoRA saves of training memory fades as the context grows. The claim as data, and its rule.

Judges ratios of counted tensor bytes at the peak, which are the same in every run, by context length. Imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from engine.cases.evidence import Evidence, between, gather, percent
from engine.cases.records import Advice, Case, Observation, Published, Ratio, Size, Source, Sweep, Verdict
from engine.cases.sweeps import spec
from engine.cases.verdicts import Judging
from engine.spec import Measured, TrainSpec

GIB = 2**30
NEAR = 0.15
RISE = 0.05
LITTLE_SAVED = 0.8
LARGER_MODELS = ("mistral-7b", "llama-3.1-8b", "llama-3.3-70b")
PREDICTED_LENGTHS = (512, 1024, 1536, 2048)
PUBLISHED_RATIOS = {512: 12.4 / 23.9, 1024: 22.1 / 29.1, 1536: 35.4 / 42.4, 2048: 52.2 / 58.2}


def _sweep(
    size: Size,
    model: str,
    lengths: tuple[int, ...],
    minutes: float | None,
    needs_bytes: int,
    *,
    device: str = "cpu",
    rank: int = 64,
) -> Sweep:
    """Full fine-tuning and LoRA on every linear layer, at each context length."""
    specs = tuple(
        spec(
            "train",
            model,
            adapter=adapter,
            device=device,
            attention="eager",
            repeats=1,
            warmup=0,
            train={"context_length": length},
        )
        for length in lengths
        for adapter in (None, {"rank": rank})
    )
    return Sweep(size, model, specs, 1, minutes, "cuda" if device != "cpu" else "cpu", needs_bytes)


CASE = Case(
    id="train_memory",
    number=3,
    title="LoRA's memory saving fades with context length",
    question="How much memory does LoRA really save at my context length?",
    claim="Training TinyLlama 1.1B with LoRA (rank 64, every linear layer) takes 52 % of full fine-tuning's memory "
    "at 512 tokens, but 90 % at 2048, and both run out of 80 GB at 4096. Larger models keep the advantage longer.",
    sources=(Source("huggingface/peft#1514", "https://github.com/huggingface/peft/issues/1514"),),
    published=tuple(
        Published(f"{method}, {length} tokens", value, "GB", "batch size, dtype and attention are not known")
        for method, values in (
            ("Full fine-tuning", (23.9, 29.1, 42.4, 58.2)),
            ("LoRA", (12.4, 22.1, 35.4, 52.2)),
        )
        for length, value in zip((512, 1024, 1536, 2048), values, strict=True)
    ),
    truth="LoRA saves gradients and optimizer state, which do not grow with the context; activations do, and LoRA "
    "adds some, since its float32 adapters keep float32 copies of their inputs. The published figures grow with the "
    "square of the length, so their attention was not flash attention.",
    rule="It holds in direction if LoRA's peak over full fine-tuning's rises from each length that fits to the next, "
    "by 0.05 or more in all, here if it is also within 0.15 of the published ratio at each of them that has one, and "
    "otherwise it does not hold here; bytes are counted exactly, so that one run of each decides.",
    advice=(
        Advice(
            "Recompute activations instead of keeping them, by gradient checkpointing.",
            spec(
                "train",
                "tinyllama-1.1b",
                adapter={"rank": 64},
                train={"context_length": 2048, "gradient_checkpointing": True},
            ),
        ),
        Advice(
            "Cut the loss and the MLP into slices, and use fused LoRA layers, which keep no float32 copies.",
            spec(
                "train",
                "tinyllama-1.1b",
                adapter={"rank": 64},
                strategy="fused",
                train={"context_length": 2048, "loss_chunks": 8, "sequence_tiles": 8},
            ),
        ),
        Advice("Use sdpa or flash attention: eager attention keeps scores that grow with the square of the length."),
    ),
    key_label="Peak, LoRA / full, at the longest context that fits",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", (128, 512, 1024, 2048), 7.5, 20 * GIB),
        _sweep("published", "tinyllama-1.1b", (512, 1024, 1536, 2048), None, 79 * GIB, device="cuda:0"),
        _sweep("test", "tiny-test", (32, 64, 128), 0.5, GIB, rank=16),
    ),
    predicted=(
        _sweep("published", "tinyllama-1.1b", PREDICTED_LENGTHS, None, 0),
        # TinyLlama has no more than 2048 positions.
        *(_sweep("published", model, (*PREDICTED_LENGTHS, 4096), None, 0) for model in LARGER_MODELS),
    ),
)


def judge(sweep: Sweep, observations: Sequence[Observation]) -> Verdict:
    """The verdict by :attr:`CASE.rule`."""
    evidence = gather(sweep, observations, timed=False)
    ratios = [_ratio(evidence, full, lora) for full, lora in zip(sweep.specs[0::2], sweep.specs[1::2], strict=True)]
    points = [(ratio.x or 0.0, ratio.measured) for ratio in ratios if ratio.measured is not None]
    key = points[-1][1] if points else None
    judging = Judging(evidence, sweep.specs, 1, out_of_memory_counts=True)
    if not judging.complete:
        return judging.not_enough(ratios, key)
    ended = [ratio for ratio in ratios if ratio.measured is None]
    lost = "".join(f" At {ratio.label} {ratio.note}." for ratio in ended)
    if len(points) < 2:
        return judging.not_enough(ratios, key, f"Fewer than two lengths fit into this machine's memory.{lost}")
    shares = [share for _, share in points]
    said = f"LoRA needs {percent(shares[0])} of full fine-tuning's memory at {points[0][0]:.0f} tokens and "
    said += f"{percent(shares[-1])} at {points[-1][0]:.0f}.{_where_little_is_saved(points)}{lost}"
    rises = all(one < other for one, other in itertools.pairwise(shares)) and shares[-1] - shares[0] >= RISE
    if not rises:
        return judging.verdict("does not hold here", said, ratios, key)
    beside = [
        (ratio.measured, ratio.published)
        for ratio in ratios
        if ratio.measured is not None and ratio.published is not None
    ]
    near = beside and all(abs(measured - published) <= NEAR for measured, published in beside)
    return judging.verdict("holds here" if near else "holds in direction", said, ratios, key)


def _ratio(evidence: Evidence, full: Measured, lora: Measured) -> Ratio:
    """LoRA's peak over full fine-tuning's at one length; where either ran out of memory, a note instead."""
    assert isinstance(full, TrainSpec)
    length = full.train.context_length
    lost = [name for name, one in (("full fine-tuning", full), ("LoRA", lora)) if evidence.ran_out(one)]
    return between(
        f"{length} tokens",
        evidence.of(lora),
        evidence.of(full),
        "peak_bytes",
        published=PUBLISHED_RATIOS.get(length),
        x=length,
        note=f"{' and '.join(lost)} ran out of memory" if lost else "",
    )


def little_saved_from(points: Sequence[tuple[float, float]]) -> float | None:
    """The length from which less than 20 % is saved, on a straight line between the lengths around it.

    Args:
        points: lengths in rising order, each with LoRA's share of full fine-tuning's peak.
    """
    for (length, share), (next_length, next_share) in itertools.pairwise(points):
        if share < LITTLE_SAVED <= next_share:
            return length + (next_length - length) * (LITTLE_SAVED - share) / (next_share - share)
    return None


def _where_little_is_saved(points: Sequence[tuple[float, float]]) -> str:
    at = little_saved_from(points)
    return "" if at is None else f" It saves less than 20 % from about {at:.0f} tokens on."
