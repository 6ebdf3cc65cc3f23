"""Train: its strategies, and what keeps a train spec from running."""

from __future__ import annotations

from collections.abc import Iterator

from engine.catalog.kinds.subject import Subject
from engine.catalog.strategies import Strategy
from engine.spec import SpecError, TrainSpec

STRATEGIES = (
    Strategy("stock", "Stock PEFT", "PEFT's own forward and autograd's backward"),
    Strategy(
        "fused",
        "Fused",
        "Two kernels per adapted module in the forward pass, and a backward pass that saves less",
        frozenset({"lora"}),
        snippet_context="from engine.strategies.train import fused",
    ),
    Strategy(
        "compiled",
        "Compiled",
        "torch.compile of the model; compile time is a number of its own",
        frozenset({"compiler"}),
    ),
)


def problems(spec: TrainSpec, subject: Subject) -> Iterator[SpecError]:
    """What only a train spec asks for, beyond its strategy's needs."""
    yield from ()
