"""The request that predicts the peak memory of specs. Measures nothing, allocates no weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from engine import catalog
from engine.catalog import Card, requirements
from engine.jobs.outcome import Outcome
from engine.predict import Prediction, predict
from engine.result import Device, Progress
from engine.spec import Measured, NotHere, PredictSpec, SpecError, prediction_key, spec_hash

_DTYPES = ("float32", "bfloat16", "float16")


def run(spec: PredictSpec, report: Callable[[Progress], None]) -> Outcome:
    """Predict each of the request's specs; ``predictions`` of the outcome's ``inspection`` holds one entry for each.

    A spec that cannot be predicted has the reason as its ``error``, and does not keep the others from it.
    """
    entries: list[dict[str, Any]] = []
    start_s = time.perf_counter()
    for done, one in enumerate(spec.of):
        eta_s = (time.perf_counter() - start_s) / done * (len(spec.of) - done) if done else None
        report(Progress("predicting", done, len(spec.of), eta_s))
        entries.append(entry(one, spec.card))
    return Outcome(inspection={"predictions": entries})


def single(spec: Measured) -> Outcome:
    """Predict one spec: its metrics, the course of its memory as samples, and the rest as the ``inspection``.

    Raises:
        SpecError: one sentence, when it cannot be predicted.
    """
    found = checked(spec)
    return Outcome(metrics=tuple(found.metrics()), samples=tuple(found.samples()), inspection=found.inspection())


def entry(spec: Measured, card: str | None = None) -> dict[str, Any]:
    """One spec's prediction as JSON-ready values, or the sentence that says why there is none."""
    names = {"key": prediction_key(spec, card), "spec_hash": spec_hash(spec)}
    try:
        found = checked(spec, card)
    except SpecError as error:
        return {**names, "error": {"field": error.field, "text": str(error)}}
    return {
        **names,
        "error": None,
        "metrics": [dataclasses.asdict(metric) for metric in found.metrics()],
        "course": [moment._asdict() for moment in found.highest.course],
        **found.inspection(),
    }


def checked(spec: Measured, card_id: str | None = None) -> Prediction:
    """Predict a spec, on a card if there is one, after checking all that needs no model. The device need not be here.

    Raises:
        SpecError: one sentence.
    """
    card = None if card_id is None else catalog.card(card_id)
    there = _device(spec, card)
    spec = spec.model_copy(update={"device": there.id})
    for problem in requirements.problems(spec, [there], None):
        if not isinstance(problem, NotHere):
            raise problem
    return predict(spec, card)


def _device(spec: Measured, card: Card | None) -> Device:
    """What the job would run on."""
    if card is None:
        kind: Any = spec.device.partition(":")[0]
        return Device(spec.device, kind, spec.device, 0, _DTYPES)
    kind = card.device
    return Device("cuda:0" if kind == "cuda" else kind, kind, card.label, card.memory_bytes, card.dtypes)
