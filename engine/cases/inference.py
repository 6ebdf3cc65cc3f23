"""Case 4: an adapter that is not merged halves the speed of decoding. The claim as data, and its rule.

Judges the ratio of decoding times that each interleaved repeat of a run gives by itself. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cases.evidence import gather, spread, within
from engine.cases.records import Advice, Case, Observation, Published, Size, Source, Sweep, Verdict
from engine.cases.sweeps import spec
from engine.cases.verdicts import Judging
from engine.spec import FreshAdapter, InferenceSpec, Measured

GIB = 2**30
PUBLISHED_RATIO = 69 / 35
FUSED_RATIO = 1 / 0.85
HALVED = 1.75
SLOWER = 1.02
REPEATS = 11
SETTLING_RUNS = 3
_METRIC = "overhead_ratio"


def _sweep(
    size: Size,
    model: str,
    prompt_tokens: int,
    new_tokens: int,
    minutes: float | None,
    needs_bytes: int,
    *,
    device: str = "cpu",
    rank: int = 32,
    dtype: str = "bfloat16",
) -> Sweep:
    """The claim's rank by the fused strategy, which brings stock along; then twice the rank, and a larger batch."""

    def run(chosen: int, batch_size: int, *, strategy: str = "stock", merged: bool = False) -> Measured:
        return spec(
            "inference",
            model,
            adapter={"rank": chosen},
            dtype=dtype,
            device=device,
            strategy=strategy,
            repeats=REPEATS,
            inference={
                "prompt_tokens": prompt_tokens,
                "new_tokens": new_tokens,
                "batch_size": batch_size,
                "variants": ["base", "adapter", *(["merged"] if merged else [])],
            },
        )

    specs = (run(rank, 1, strategy="fused", merged=True), run(2 * rank, 1), run(rank, 4))
    return Sweep(size, model, specs, 1, minutes, "cuda" if device != "cpu" else "cpu", needs_bytes)


CASE = Case(
    id="inference",
    number=4,
    title="An unmerged adapter halves decoding speed",
    question="How many tokens per second does an unmerged adapter cost, and what gets them back?",
    claim="Mistral 7B writes 69 tokens/s on an L40S, and 35 with an unmerged adapter of rank 32. Higher ranks cost "
    "more, small batches suffer more, and fused kernels bring the loss down to 10 to 20 %.",
    sources=(
        Source("predibase/lorax#333", "https://github.com/predibase/lorax/issues/333"),
        Source("lorax PR #464: SGMV and BGMV kernels", "https://github.com/predibase/lorax/pull/464"),
        Source("huggingface/peft#303: up to twice in plain PEFT", "https://github.com/huggingface/peft/issues/303"),
        Source("vLLM PR #11267: 34 % on an A100", "https://github.com/vllm-project/vllm/pull/11267"),
    ),
    published=(
        Published("without an adapter", 69, "tokens/s"),
        Published("with an adapter of rank 32", 35, "tokens/s"),
        Published("time per token with / without", PUBLISHED_RATIO, "ratio"),
        Published("the same with fused kernels", FUSED_RATIO, "ratio", "a loss of 10 to 20 %, in a serving engine"),
    ),
    truth="What helped there were special kernels with CUDA graphs in a serving engine; its --compile means CUDA "
    "graphs. For each adapted module PEFT runs several small kernels per token, whose cost hardly depends on the "
    "model's size. A merged adapter costs nothing, by construction.",
    rule="It holds here if rank 32 takes at least 1.75 times the base model's time per token, in direction from 1.02 "
    "times on, and otherwise it does not hold here, all by the lower quartile of 11 interleaved repeats at batch 1; "
    "where 1.02 lies between the quartiles, it takes 3 runs.",
    advice=(
        Advice(
            "Merge the adapter where there is only one.",
            spec("merge", "tinyllama-1.1b", strategy="row_blocks"),
        ),
        Advice(
            "Where adapters come and go, run them fused.",
            spec("inference", "tinyllama-1.1b", adapter={"rank": 32}, strategy="fused"),
        ),
    ),
    key_label="Time per token, unmerged adapter / base",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", 8, 6, 4, 8 * GIB),
        _sweep("published", "mistral-7b", 512, 64, None, 40 * GIB, device="cuda:0"),
        # So few weights round too unevenly in half precision for a check of it to say anything.
        _sweep("test", "tiny-test", 8, 5, 0.5, GIB, rank=16, dtype="float32"),
    ),
)


def judge(sweep: Sweep, observations: Sequence[Observation]) -> Verdict:
    """The verdict by :attr:`CASE.rule`."""
    evidence = gather(sweep, observations, timed=True)
    main, *others = sweep.specs
    runs = evidence.of(main)
    key = within(_label(main, "stock"), runs, _METRIC, "adapter", published=PUBLISHED_RATIO)
    fused = within(_label(main, "fused"), runs, _METRIC, "fused", published=FUSED_RATIO)
    ratios = [key, fused, within("Merged", runs, _METRIC, "merged", published=1.0, note="by construction")]
    ratios += [within(_label(one, "stock"), evidence.of(one), _METRIC, "adapter") for one in others]
    judging = Judging(evidence, (main,), 1)
    if not judging.complete or key.low is None:
        return judging.not_enough(ratios, key.measured)
    said = f"An unmerged adapter takes {spread(key)} times the base's time per token, fused {spread(fused)}."
    if key.low < SLOWER <= (key.high or 0.0) and len(runs) < SETTLING_RUNS:
        return judging.disagreement(said, ratios, key.measured, SETTLING_RUNS)
    if key.low >= HALVED:
        return judging.verdict("holds here", said, ratios, key.measured)
    if key.low >= SLOWER:
        return judging.verdict("holds in direction", said, ratios, key.measured)
    return judging.verdict("does not hold here", said, ratios, key.measured)


def _label(spec: Measured, way: str) -> str:
    assert isinstance(spec, InferenceSpec)
    assert isinstance(spec.adapter, FreshAdapter)
    return f"Rank {spec.adapter.rank}, batch {spec.inference.batch_size}, {way}"
