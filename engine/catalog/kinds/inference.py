"""Inference: its strategies, and what keeps a inference spec from running."""

from __future__ import annotations

from collections.abc import Iterator

from engine.catalog.kinds.subject import Subject
from engine.catalog.strategies import Strategy
from engine.spec import InferenceSpec, SpecError

STRATEGIES = (
    Strategy("stock", "Stock PEFT", "PEFT's own forward: four small kernels for each adapted module"),
    Strategy(
        "fused",
        "Fused",
        "Two kernels for each adapted module, and one shared product where modules read the same input",
        frozenset({"lora"}),
        snippet_context="from engine.strategies.inference import fused",
    ),
    Strategy(
        "compiled",
        "Compiled",
        "torch.compile, with CUDA graphs on a GPU; compile time is a number of its own",
        frozenset({"compiler"}),
    ),
    Strategy(
        "dora_cached",
        "DoRA caching",
        "PEFT's DoraCaching: DoRA's weight norm is computed once and kept",
        frozenset({"dora"}),
    ),
)


def problems(spec: InferenceSpec, subject: Subject) -> Iterator[SpecError]:
    """What only a inference spec asks for, beyond its strategy's needs."""
    yield from ()
