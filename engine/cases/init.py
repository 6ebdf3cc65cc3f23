"""Case 1: attaching DoRA on a CPU takes many times as long as attaching LoRA. The claim as data, and its rule."""

from __future__ import annotations

from engine.cases.records import Advice, Case, Published, Size, Source, Sweep
from engine.cases.sweeps import DORA, spec

GIB = 2**30


def _sweep(size: Size, model: str, layers: tuple[int, ...], minutes: float | None, needs_bytes: int) -> Sweep:
    """LoRA and DoRA on the same modules, DoRA on ever more layers, and DoRA by the strategies that avoid the cost."""
    specs = [spec("init", model, repeats=3), spec("init", model, adapter=DORA, repeats=3)]
    for strategy in ("zero_b_norm", "batched_norm", "factored_norm"):
        specs.append(spec("init", model, adapter=DORA, strategy=strategy, repeats=3))
    for count in layers:
        blocks = "|".join(str(number) for number in range(count))
        targets = rf"model\.layers\.({blocks})\..*_proj"
        specs.append(spec("init", model, adapter=DORA | {"target_modules": targets}, repeats=3))
    return Sweep(size, model, tuple(specs), 3, minutes, "cpu", needs_bytes)


CASE = Case(
    id="init",
    number=1,
    title="DoRA adapters load slowly on a CPU",
    question="Why does attaching a DoRA adapter take minutes when LoRA takes a second?",
    claim="On Mistral 7B attaching LoRA takes about 7 s, and attaching DoRA on a CPU 140 s or longer, 20 to 100 times as "
    "much as on a GPU. The time grows linearly with the number of adapted modules.",
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
    truth="DoRA is weight-decomposed, not dropout-based, low-rank adaptation. What takes the time is the norm of "
    "W + s·B·A, which PEFT computes at full size for each module. In a fresh adapter B is zero, so that the norm is that "
    "of W alone; and when a checkpoint is loaded, the norm is overwritten anyway.",
    rule="",
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
        _sweep("here", "tinyllama-1.1b", (5, 11, 16), 2, 4 * GIB),
        _sweep("published", "mistral-7b", (8, 16, 24), None, 18 * GIB),
        _sweep("test", "tiny-test", (1,), 1, GIB),
    ),
)
