"""Case 2: merging with ``+=`` takes a third off the memory peak. The claim as data, and its rule.

Judges ratios of counted tensor bytes, which are the same in every run. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cases.evidence import Evidence, between, gather, percent, value
from engine.cases.records import Advice, Case, Observation, Published, Ratio, Size, Source, Sweep, Verdict
from engine.cases.sweeps import spec
from engine.cases.verdicts import Judging
from engine.spec import Measured

GIB = 2**30
PUBLISHED_RATIO = 2 / 3
LOWER = 0.75
# What merging can do without shows in one dtype as in the other.
STRATEGIES = {"float32": ("out_of_place", "stock"), "bfloat16": ("out_of_place", "stock", "addmm", "row_blocks")}
LABELS = {"stock": "+= (stock PEFT)", "addmm": "addmm", "row_blocks": "row_blocks"}
# That these fail is what merging out of place does to a model of half precision.
EXPECTED = {"out_of_place": ("weight_dtype_kept", "merged_model_runs", "saved_and_reloaded")}
_METRIC = "merge_peak_extra_bytes"


def _sweep(size: Size, model: str, minutes: float | None, needs_bytes: int) -> Sweep:
    """Each way to merge LoRA, in float32 and in bfloat16."""
    specs = tuple(
        spec("merge", model, dtype=dtype, strategy=strategy, repeats=1, warmup=0, adapter={"target_modules": "qv"})
        for dtype, strategies in STRATEGIES.items()
        for strategy in strategies
    )
    return Sweep(size, model, specs, 1, minutes, "cpu", needs_bytes)


CASE = Case(
    id="merge",
    number=2,
    title="merge_and_unload has a memory peak, and += lowers it",
    question="Will merge_and_unload fit in memory, and how low can its peak go?",
    claim="`w.data = w.data + delta` holds the weight, the delta and their sum at once; `+=` takes a third off that "
    "peak and leaves the results unchanged. It matters most for 70B models on a CPU near the memory limit.",
    sources=(
        Source("huggingface/peft#1939", "https://github.com/huggingface/peft/issues/1939"),
        Source("PR #1944: merge in place", "https://github.com/huggingface/peft/pull/1944"),
    ),
    published=(Published("peak of += / peak of w + delta", PUBLISHED_RATIO, "ratio", "two matrices instead of three"),),
    truth="In float32 += does not lower the peak: (B @ A) * scaling has already made two matrices of the weight's "
    "size. With a bfloat16 model and PEFT's float32 adapters, w + delta silently turns the weights into float32 and "
    "keeps them so: that is what += avoids. DoRA is still merged out of place.",
    rule="It holds here if += needs at most 0.75 of w + delta's peak in float32, in direction if it does in bfloat16 "
    "alone, and otherwise it does not hold here; bytes are counted exactly, so that one run of each decides.",
    advice=(
        Advice(
            "Merge with addmm: the product is added where the weight lies, and nothing of its size is allocated.",
            spec("merge", "tinyllama-1.1b", strategy="addmm"),
        ),
        Advice(
            "Merge with row_blocks for stock's exactness, and for DoRA.",
            spec("merge", "tinyllama-1.1b", strategy="row_blocks"),
        ),
        Advice("A model that does not fit in memory at all is merged tensor by tensor on the Merge files page."),
    ),
    key_label="Peak of += / peak of w + delta, float32",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", 2, 10 * GIB),
        _sweep("published", "llama-3.3-70b", None, 300 * GIB),
        _sweep("test", "tiny-test", 0.5, GIB),
    ),
)


def judge(sweep: Sweep, observations: Sequence[Observation]) -> Verdict:
    """The verdict by :attr:`CASE.rule`."""
    evidence = gather(sweep, observations, timed=False, expected=EXPECTED)
    exact, rounded = ({one.strategy: one for one in sweep.specs if one.dtype == dtype} for dtype in STRATEGIES)
    key, *_ = in_float32 = _ratios("float32", exact, evidence)
    other, *_ = in_bfloat16 = _ratios("bfloat16", rounded, evidence)
    ratios = in_float32 + in_bfloat16
    judging = Judging(evidence, [side[name] for side in (exact, rounded) for name in ("out_of_place", "stock")], 1)
    if not judging.complete or key.high is None or other.high is None:
        return judging.not_enough(ratios, key.measured)
    said = (
        f"+= needs {key.high:.2f} times w + delta's peak in float32 and {other.high:.2f} times in bfloat16, "
        f"{_kept(rounded, evidence)}"
    )
    if key.high <= LOWER:
        return judging.verdict("holds here", said, ratios, key.measured)
    if other.high <= LOWER:
        return judging.verdict("holds in direction", said, ratios, key.measured)
    return judging.verdict("does not hold here", said, ratios, key.measured)


def _ratios(dtype: str, specs: dict[str, Measured], evidence: Evidence) -> list[Ratio]:
    """The peak of each way to merge over that of w + delta, ``+=`` first."""
    whole = evidence.of(specs["out_of_place"])
    return [
        between(
            f"{label} / w + delta, {dtype}",
            evidence.of(specs[name]),
            whole,
            _METRIC,
            published=PUBLISHED_RATIO if name == "stock" else None,
        )
        for name, label in LABELS.items()
        if name in specs
    ]


def _kept(specs: dict[str, Measured], evidence: Evidence) -> str:
    """What stays of w + delta's peak once merging is over, in words."""
    run = evidence.of(specs["out_of_place"])[0]
    kept, peak = value(run, "merge_retained_extra_bytes") or 0.0, value(run, _METRIC) or 1.0
    if kept <= 0:
        return "where w + delta keeps none of its peak."
    return f"where w + delta keeps {percent(kept / peak)} of its peak for good, because its weights become float32."
