"""Each case's rule on runs that were really measured: the sweep of the tests' size, on a model that proves nothing."""

from __future__ import annotations

import functools
import itertools

import pytest

from engine.cases import Observation, case, cases, observe, verdict
from engine.jobs import run_job
from engine.spec import spec_hash

IDS = [known.id for known in cases()]


@functools.cache
def measured(case_id: str) -> list[Observation]:
    """Every spec of the sweep measured once, and counted as often as the sweep asks for."""
    sweep = case(case_id).sweep("test")
    outcomes = [(spec, run_job(spec, lambda _: None)) for spec in sweep.specs]
    number = itertools.count(1)
    return [
        observe(
            next(number),
            spec.model_dump(mode="json"),
            "succeeded",
            [{"name": check.name, "passed": check.passed} for check in outcome.checks],
            None,
            [(metric.name, metric.variant, metric.value) for metric in outcome.metrics if metric.x is None],
        )
        for _ in range(sweep.replicas)
        for spec, outcome in outcomes
    ]


@pytest.mark.parametrize("case_id", IDS)
def test_a_measured_sweep_is_enough_for_a_verdict_with_every_ratio(case_id: str) -> None:
    runs = measured(case_id)
    found = verdict(case(case_id), runs, {"cpu"}, "test")
    # Times of a model this small may disagree from repeat to repeat, but never for want of a run or a metric.
    assert "disagree" in found.sentence if found.word == "not enough data yet" else found.have == found.need
    assert found.key_value is not None
    assert all(ratio.measured is not None and ratio.measured > 0 for ratio in found.ratios)
    assert {run.spec_hash for run in runs} == {spec_hash(spec) for spec in case(case_id).sweep("test").specs}


def test_merging_really_needs_as_much_in_place_as_out_of_place_in_float32_and_much_less_in_half_precision() -> None:
    found = verdict(case("merge"), measured("merge"), {"cpu"}, "test")
    in_place = {ratio.label: ratio.measured for ratio in found.ratios if ratio.label.startswith("+=")}
    assert in_place["+= (stock PEFT) / w + delta, float32"] == pytest.approx(1.0)
    assert (in_place["+= (stock PEFT) / w + delta, bfloat16"] or 1.0) < 0.9
