"""Init: its strategies, and what keeps an init spec from running."""

from __future__ import annotations

from collections.abc import Iterator

from engine.catalog.kinds.subject import Subject
from engine.catalog.strategies import Strategy
from engine.spec import InitSpec, SpecError

STRATEGIES = (
    Strategy("stock", "Stock PEFT", "PEFT as it comes: DoRA materialises B·A and W + s·B·A for each module"),
    Strategy(
        "zero_b_norm",
        "Zero-B norm",
        "B is zero in a fresh adapter, so DoRA's magnitude is the row norm of W: one read of W, no temporaries",
        frozenset({"dora", "zero_b"}),
        snippet_context="from engine.strategies.init import zero_b_norm",
    ),
    Strategy(
        "factored_norm",
        "Factored norm",
        "The row norm of W + s·B·A from rank-sized products: one read of W, also where B is not zero",
        frozenset({"dora"}),
        snippet_context="from engine.strategies.init import factored_norm",
    ),
    Strategy(
        "batched_norm",
        "Batched norm",
        "Modules of one shape are stacked and normed in one call",
        frozenset({"dora"}),
        snippet_context="from engine.strategies.init import batched_norm",
    ),
    Strategy(
        "staged",
        "Staged",
        "The adapter is added group by group, each ready before the next",
        snippet_context="from engine.strategies.init import staged",
    ),
    Strategy(
        "deferred",
        "Deferred",
        "DoRA's magnitude is computed at the first forward pass and reported there",
        frozenset({"dora"}),
        snippet_context="from engine.strategies.init import deferred",
    ),
    Strategy(
        "gpu_offload",
        "GPU offload",
        "PEFT's ephemeral_gpu_offload: each weight visits the GPU for the norm",
        frozenset({"dora", "gpu"}),
        unverified=True,
        snippet_context="from engine.strategies.init import gpu_offload",
    ),
    Strategy(
        "gpu_then_cpu",
        "GPU, then CPU",
        "The adapter is attached on the GPU and the model moved back",
        frozenset({"gpu"}),
        unverified=True,
        snippet_context="from engine.strategies.init import gpu_then_cpu",
    ),
)


def problems(spec: InitSpec, subject: Subject) -> Iterator[SpecError]:
    """What only init asks for: nothing beyond its strategies' needs."""
    yield from ()
