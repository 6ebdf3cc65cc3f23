"""Case 4: an adapter that is not merged halves the speed of decoding. The claim as data, and its rule."""

from __future__ import annotations

from engine.cases.records import Advice, Case, Published, Size, Source, Sweep
from engine.cases.sweeps import spec

GIB = 2**30


def _sweep(
    size: Size,
    model: str,
    prompt_tokens: int,
    new_tokens: int,
    minutes: float | None,
    needs_bytes: int,
    device: str = "cpu",
) -> Sweep:
    """Rank 32 by the fused strategy, which brings stock along; a lower and a higher rank; a larger batch."""

    def run(rank: int, batch_size: int, strategy: str = "stock") -> object:
        return spec(
            "inference",
            model,
            adapter={"rank": rank},
            device=device,
            strategy=strategy,
            repeats=7,
            inference={
                "prompt_tokens": prompt_tokens,
                "new_tokens": new_tokens,
                "batch_size": batch_size,
                "variants": ["base", "adapter", "merged"],
            },
        )

    specs = (run(32, 1, "fused"), run(4, 1), run(64, 1), run(32, 4))
    return Sweep(size, model, specs, 1, minutes, "cuda" if device != "cpu" else "cpu", needs_bytes)  # type: ignore[arg-type]


CASE = Case(
    id="inference",
    number=4,
    title="An unmerged adapter halves decoding speed",
    question="How many tokens per second does an unmerged adapter cost, and what gets them back?",
    claim="Mistral 7B writes 69 tokens/s on an L40S, and 35 with an unmerged adapter of rank 32. Higher ranks cost more, "
    "small batches suffer more, and fused kernels bring the loss down to 10 to 20 %.",
    sources=(
        Source("predibase/lorax#333", "https://github.com/predibase/lorax/issues/333"),
        Source("lorax PR #464: SGMV and BGMV kernels", "https://github.com/predibase/lorax/pull/464"),
        Source("vLLM PR #11267: 34 % on an A100", "https://github.com/vllm-project/vllm/pull/11267"),
    ),
    published=(
        Published("without an adapter", 69, "tokens/s"),
        Published("with an adapter of rank 32", 35, "tokens/s"),
        Published("time per token with / without", 69 / 35, "ratio"),
        Published("the same with fused kernels", 1 / 0.85, "ratio", "a loss of 10 to 20 %, in a serving engine"),
    ),
    truth="What helped there were special kernels with CUDA graphs in a serving engine; its --compile means CUDA graphs. "
    "For each adapted module PEFT runs several small kernels per token, whose cost hardly depends on the model's size. A "
    "merged adapter costs nothing, by construction.",
    rule="",
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
    key_label="time per token, unmerged adapter / base",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", 32, 17, 4, 8 * GIB),
        _sweep("published", "mistral-7b", 512, 64, None, 40 * GIB, "cuda:0"),
        _sweep("test", "tiny-test", 8, 5, 1, GIB),
    ),
)
