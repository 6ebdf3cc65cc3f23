"""Runs of the cases' sweeps as the supervisor would have stored them, with numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Callable

from db.session import Database
from engine import cases
from engine.cases import Size
from engine.spec import Measured
from tests.app import stored

Factor = Callable[[Measured], float]


def merge_peaks(database: Database, peak_weights: Factor, size: Size = "here") -> list[int]:
    """Every run of the merge case, with the peak in W that ``peak_weights`` says."""
    sweep = cases.case("merge").sweep(size)
    return [
        stored.store(
            database,
            spec.model_dump(mode="json"),
            stored.merge_result([1.0], peak_weights=peak_weights(spec)),
            sweep="Case 2, this machine",
        )
        for _ in range(sweep.replicas)
        for spec in sweep.specs
    ]


def as_claimed(spec: Measured) -> float:
    """Peaks as the claim has them: in place takes a third off."""
    return 3.0 if spec.strategy == "out_of_place" else 2.0 if spec.strategy == "stock" else 0.01


def unlike_the_claim(spec: Measured) -> float:
    """In place lowers nothing."""
    return 2.0


def train_steps(database: Database, seconds: Factor, size: Size = "here", without: int | None = None) -> list[int]:
    """Every run of the train speed case; the spec at place ``without`` runs out of memory."""
    sweep = cases.case("train_speed").sweep(size)
    return [
        stored.store(
            database,
            spec.model_dump(mode="json"),
            stored.failure("out_of_memory", "It asked for 9.00 GiB more than the machine has")
            if place == without
            else stored.train_result([seconds(spec)] * 3, trainable=26_878_464, total=26_878_464),
        )
        for _ in range(sweep.replicas)
        for place, spec in enumerate(sweep.specs)
    ]
