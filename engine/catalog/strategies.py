"""The ways to do each kind's operation, and what each of them needs.

Data only: the code is in ``engine.strategies``. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from engine.catalog.lookup import look_up

Need = Literal["dora", "gpu", "zero_b"]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to do a kind's operation.

    ``needs``: "dora" (only DoRA has the step it replaces), "gpu" (a CUDA device on this machine), "zero_b" (the
    adapter's B matrices are zero, as PEFT's default initialisation leaves them).
    ``unverified``: never ran on the hardware it is for.
    ``snippet_context``: the import that brings the context manager of that name into one's own code; None for stock.
    """

    id: str
    label: str
    summary: str
    needs: frozenset[Need] = frozenset()
    unverified: bool = False
    snippet_context: str | None = None


_INIT = (
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
_BY_KIND = {"init": {strategy.id: strategy for strategy in _INIT}}


def strategies(kind: str) -> tuple[Strategy, ...]:
    """All strategies of a kind, ``stock`` first; none for kinds that measure nothing."""
    return tuple(_BY_KIND.get(kind, {}).values())


def strategy(kind: str, name: str) -> Strategy:
    """The strategy of that kind called ``name``.

    Raises:
        UnknownEntry: naming the nearest strategy.
    """
    return look_up(f"{kind} strategy", name, _BY_KIND.get(kind, {}))
