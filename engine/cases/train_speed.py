"""Case 5: LoRA trains a small model more slowly than full fine-tuning. The claim as data, and its rule."""

from __future__ import annotations

from typing import Any

from engine.cases.records import Advice, Case, Published, Size, Source, Sweep
from engine.cases.sweeps import spec

GIB = 2**30
ADAPTERS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rank": 2},
    {"rank": 8},
    {"rank": 2, "target_modules": "qk"},
    {"rank": 2, "target_modules": "lm_head"},
)


def _sweep(
    size: Size, model: str, batch_size: int, context_length: int, minutes: float | None, device: str = "cpu"
) -> Sweep:
    """Full fine-tuning, LoRA on every linear layer, on query and key, and on the output head."""
    specs = tuple(
        spec(
            "train",
            model,
            adapter=adapter,
            device=device,
            repeats=5,
            train={"context_length": context_length, "batch_size": batch_size},
        )
        for adapter in ADAPTERS
    )
    return Sweep(size, model, specs, 3, minutes, "cuda" if device != "cpu" else "cpu", 8 * GIB)


CASE = Case(
    id="train_speed",
    number=5,
    title="LoRA trains more slowly than full fine-tuning",
    question="Why is LoRA sometimes slower than full fine-tuning, and which modules are worth adapting?",
    claim="For a model of 27 M parameters full fine-tuning took 150 min and LoRA of rank 2 on every linear layer 260 min. "
    "Adapting only query and key is faster than full fine-tuning, and only the last linear layer is fastest.",
    sources=(Source("jingyaogong/minimind#88", "https://github.com/jingyaogong/minimind/issues/88"),),
    published=(
        Published("Full fine-tuning", 150, "min"),
        Published("LoRA r = 2, every linear layer", 260, "min"),
        Published("LoRA / full fine-tuning", 260 / 150, "ratio"),
    ),
    truth="A model this small is bound by starting kernels, and each adapted layer starts several more, while the work "
    "saved on gradients and optimizer is tiny. The last layer wins because the backward pass stops there.",
    rule="",
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
    key_label="step time, LoRA r = 2 on every linear layer / full",
    sweeps=(
        _sweep("here", "minimind-26m", 2, 512, 3),
        _sweep("published", "minimind-26m", 32, 512, None, "cuda:0"),
        _sweep("test", "tiny-test", 1, 32, 1),
    ),
)
