"""Case 2: merging with ``+=`` takes a third off the memory peak. The claim as data, and its rule."""

from __future__ import annotations

from engine.cases.records import Advice, Case, Published, Size, Source, Sweep
from engine.cases.sweeps import spec

GIB = 2**30


def _sweep(size: Size, model: str, minutes: float | None, needs_bytes: int) -> Sweep:
    """Each way to merge LoRA in both dtypes."""
    specs = tuple(
        spec("merge", model, dtype=dtype, strategy=strategy, repeats=1, warmup=0)
        for dtype in ("float32", "bfloat16")
        for strategy in ("out_of_place", "stock", "addmm", "row_blocks")
    )
    return Sweep(size, model, specs, 1, minutes, "cpu", needs_bytes)


CASE = Case(
    id="merge",
    number=2,
    title="merge_and_unload has a memory peak, and += lowers it",
    question="Will merge_and_unload fit in memory, and how low can its peak go?",
    claim="`w.data = w.data + delta` holds the weight, the delta and their sum at once; `+=` takes a third off that peak "
    "and leaves the results unchanged. It matters most for 70B models on a CPU near the memory limit.",
    sources=(
        Source("huggingface/peft#1939", "https://github.com/huggingface/peft/issues/1939"),
        Source("PR #1944: merge in place", "https://github.com/huggingface/peft/pull/1944"),
    ),
    published=(
        Published(
            "peak of += / peak of w + delta", 2 / 3, "ratio", "weight and delta instead of weight, delta and sum"
        ),
    ),
    truth="In float32 += does not lower the peak: (B @ A) * scaling already makes two matrices of the weight's size. With "
    "a bfloat16 model and PEFT's float32 adapters, w + delta silently turns the weights into float32 and keeps them so; "
    "that is what += avoids. DoRA is still merged out of place.",
    rule="",
    advice=(
        Advice(
            "Merge with addmm: the product is added where the weight lies, and nothing of its size is allocated.",
            spec("merge", "tinyllama-1.1b", strategy="addmm"),
        ),
        Advice(
            "Merge with row_blocks for stock's exactness, and for DoRA.",
            spec("merge", "tinyllama-1.1b", strategy="row_blocks"),
        ),
        Advice(
            "For a model that does not fit in memory at all, merge its files tensor by tensor on the Merge files page."
        ),
    ),
    key_label="peak of += / peak of w + delta, float32",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", 5, 10 * GIB),
        _sweep("published", "llama-3.3-70b", None, 300 * GIB),
        _sweep("test", "tiny-test", 1, GIB),
    ),
)
