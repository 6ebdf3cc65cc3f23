"""Merge: its strategies, and what keeps a merge spec from running."""

from __future__ import annotations

from collections.abc import Iterator

from engine.catalog.kinds.subject import Subject
from engine.catalog.strategies import Strategy
from engine.spec import MergeSpec, SpecError

STRATEGIES = (
    Strategy("stock", "Stock PEFT", "merge_and_unload: W += (B·A)·s, with full-size temporaries"),
    Strategy("safe", "Safe merge", "merge_and_unload(safe_merge=True): a copy of W is merged and checked for NaN"),
    Strategy(
        "out_of_place",
        "Out of place",
        "W = W + delta, as PEFT once did it; with float32 adapters a bfloat16 weight silently becomes float32",
        frozenset({"lora"}),
    ),
    Strategy(
        "addmm",
        "addmm",
        "W.addmm_(B, A): no temporary of the weight's size; B and A are rounded to W's dtype first",
        frozenset({"lora"}),
        snippet_context="from engine.strategies.merge import addmm",
    ),
    Strategy(
        "row_blocks",
        "Row blocks",
        "A block of rows at a time, accumulated in float32 and rounded once; DoRA scales its rows in the same pass",
        frozenset({"lora"}),
        snippet_context="from engine.strategies.merge import row_blocks",
    ),
)


def problems(spec: MergeSpec, subject: Subject) -> Iterator[SpecError]:
    """What only a merge spec asks for, beyond its strategy's needs."""
    yield from ()
