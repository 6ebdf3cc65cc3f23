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


_NO_DORA = {
    "out_of_place": "stock PEFT already merges DoRA out of place; use stock or row_blocks",
    "addmm": "it cannot scale DoRA's outputs without rounding the weights twice; use row_blocks",
}


def problems(spec: MergeSpec, subject: Subject) -> Iterator[SpecError]:
    """What only a merge spec asks for, beyond its strategy's needs."""
    if subject.options.get("ensure_weight_tying") and spec.strategy not in ("stock", "safe"):
        yield SpecError(
            "strategy", f"{spec.strategy} unties tied weights, and ensure_weight_tying forbids it; use stock"
        )
    if subject.is_dora and spec.strategy in _NO_DORA:
        yield SpecError("strategy", f"{spec.strategy} has no meaning for DoRA: {_NO_DORA[spec.strategy]}")
    if subject.options.get("kasa_config") and spec.strategy not in ("stock", "safe"):
        yield SpecError("strategy", f"{spec.strategy} knows LoRA and DoRA, not KaSA; use stock")
