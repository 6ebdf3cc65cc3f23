"""Case 3: what LoRA saves of training memory fades as the context grows. The claim as data, and its rule."""

from __future__ import annotations

from engine.cases.records import Advice, Case, Published, Size, Source, Sweep
from engine.cases.sweeps import spec

GIB = 2**30
PUBLISHED_RATIOS = {512: 12.4 / 23.9, 1024: 22.1 / 29.1, 1536: 35.4 / 42.4, 2048: 52.2 / 58.2}


def _sweep(
    size: Size, model: str, lengths: tuple[int, ...], minutes: float | None, needs_bytes: int, device: str = "cpu"
) -> Sweep:
    """Full fine-tuning and LoRA with rank 64 on every linear layer, at each context length."""
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
        for adapter in (None, {"rank": 64, "alpha": 64})
    )
    return Sweep(size, model, specs, 1, minutes, "cuda" if device != "cpu" else "cpu", needs_bytes)


CASE = Case(
    id="train_memory",
    number=3,
    title="LoRA's memory saving fades with context length",
    question="How much memory does LoRA really save at my context length?",
    claim="Training TinyLlama 1.1B with LoRA (rank 64, every linear layer) takes 52 % of full fine-tuning's memory at 512 "
    "tokens, but 90 % at 2048, and both run out of 80 GB at 4096. Larger models keep the advantage longer.",
    sources=(Source("huggingface/peft#1514", "https://github.com/huggingface/peft/issues/1514"),),
    published=tuple(
        Published(f"{method}, {length} tokens", value, "GB", "batch size, dtype and attention are not known")
        for method, values in (
            ("Full fine-tuning", (23.9, 29.1, 42.4, 58.2)),
            ("LoRA", (12.4, 22.1, 35.4, 52.2)),
        )
        for length, value in zip((512, 1024, 1536, 2048), values, strict=True)
    ),
    truth="LoRA saves gradients and optimizer state, which do not grow with the context; activations do, and LoRA adds "
    "some, since its float32 adapters keep float32 copies of their inputs. The published figures grow with the square of "
    "the length, so their attention was not flash attention.",
    rule="",
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
    key_label="peak of LoRA / peak of full fine-tuning at 1024 tokens",
    sweeps=(
        _sweep("here", "tinyllama-1.1b", (256, 512, 1024), 5, 20 * GIB),
        _sweep("published", "tinyllama-1.1b", (512, 1024, 1536, 2048, 4096), None, 79 * GIB, "cuda:0"),
        _sweep("test", "tiny-test", (32, 64, 128), 1, GIB),
    ),
)
