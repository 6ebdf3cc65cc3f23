"""The ways to do each kind's operation, and what each of them needs.

The record and the lookup; each kind's own list is in ``engine.catalog.kinds``, the code in ``engine.strategies``.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Literal

from engine.catalog.lookup import look_up

Need = Literal["dora", "lora", "gpu", "zero_b", "compiler"]
KINDS = ("init", "merge", "train", "inference")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to do a kind's operation.

    ``needs``: "dora" (only DoRA has the step it replaces), "lora" (LoRA's family: DoRA, rsLoRA, PiSSA, ...), "gpu" (a
    CUDA device on this machine), "zero_b" (the adapter's B matrices are zero, as PEFT's default initialisation leaves
    them), "compiler" (a C++ compiler on this machine).
    ``unverified``: never ran on the hardware it is for.
    ``snippet_context``: the import that brings the context manager of that name into one's own code; None for stock.
    """

    id: str
    label: str
    summary: str
    needs: frozenset[Need] = frozenset()
    unverified: bool = False
    snippet_context: str | None = None


@functools.cache
def _of(kind: str) -> Mapping[str, Strategy]:
    if kind not in KINDS:
        return {}
    listed: tuple[Strategy, ...] = importlib.import_module(f"engine.catalog.kinds.{kind}").STRATEGIES
    return {strategy.id: strategy for strategy in listed}


def strategies(kind: str) -> tuple[Strategy, ...]:
    """All strategies of a kind, ``stock`` first; none for kinds that measure nothing."""
    return tuple(_of(kind).values())


def strategy(kind: str, name: str) -> Strategy:
    """The strategy of that kind called ``name``.

    Raises:
        UnknownEntry: naming the nearest strategy.
    """
    return look_up(f"{kind} strategy", name, _of(kind))
