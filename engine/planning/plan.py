"""For several ways to train a model and several places: what fits, how far each goes, what to change, what comes first.

All figures of memory are the predictor's (``needs``); this module says which to ask for, in as few looks as it can.
Measures nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from engine.catalog import adapter_label, requirements
from engine.catalog.choices import FULL_FINE_TUNING
from engine.catalog.fitting import PROCESS_SOURCE, RANKING, RULE, Candidate, fit, ranked
from engine.planning.base_weights import base_weights
from engine.planning.changes import Change, changes, together
from engine.planning.needs import Need, Needs
from engine.planning.places import Place, place
from engine.planning.search import largest
from engine.planning.step_time import METHOD, Step, step, trained_parameters
from engine.result import Progress
from engine.spec import PlanSpec, SpecError, TrainSpec, spec_hash

_MOST_TOKENS = 2**17
_MOST_SEQUENCES = 1024
_FINEST_UNIT, _COARSEST_UNIT, _UNITS = 1, 64, 64
_MOST_TOGETHER = 4

Json = dict[str, Any]


def plan(spec: PlanSpec, report: Callable[[Progress], None]) -> Json:
    """The plan as JSON-ready values: places, methods, the base's weights, an answer for each pair, and rankings.

    A way that cannot be trained or predicted has a sentence as its ``error``, and does not keep the others from it.

    Raises:
        SpecError: one sentence, when the model itself cannot be built.
    """
    start_s = time.perf_counter()
    return _Planner(spec, report).plan(start_s)


class _Planner:
    def __init__(self, spec: PlanSpec, report: Callable[[Progress], None]) -> None:
        self._spec = spec
        self._places = [place(name) for name in spec.places]
        self._report = report
        self._method = 0
        self._needs = Needs(self._tell)
        self._step_time_from = next((one for one in self._places if one.half_flops_per_s is not None), None)

    def plan(self, start_s: float) -> Json:
        self._tell()
        base = base_weights(self._spec.of[0].model, self._spec.of[0].task)
        methods, answers = [], []
        for number, method in enumerate(self._spec.of):
            self._method = number
            self._tell()
            found, cost = self._described(method)
            methods.append(found)
            answers += [{"method": number, **self._answer(method, one, cost)} for one in self._places]
        section = self._spec.of[0].train
        return {
            "model": self._spec.of[0].model,
            "context_length": section.context_length,
            "batch_size": section.batch_size,
            "places": [dataclasses.asdict(one) for one in self._places],
            "methods": methods,
            "base": [
                {
                    **dataclasses.asdict(weights),
                    "fits": {one.id: fit(weights.bytes, one.memory_bytes) for one in self._places},
                }
                for weights in base
            ],
            "answers": answers,
            "rankings": {one.id: _ranking([a for a in answers if a["place"] == one.id]) for one in self._places},
            "rules": {"fit": RULE, "ranking": RANKING, "step_time": METHOD, "process": PROCESS_SOURCE},
            "predictions": self._needs.predictions,
            "plan_time_s": time.perf_counter() - start_s,
        }

    def _tell(self) -> None:
        self._report(Progress("planning", self._method, len(self._spec.of)))

    def _described(self, method: TrainSpec) -> tuple[Json, Step | None]:
        """A method's label and size, and what its step does where a place says how fast it is."""
        adapter = None if method.adapter is None else method.adapter.model_dump(mode="json")
        label = FULL_FINE_TUNING if adapter is None else adapter_label(adapter)
        found: Json = {
            "label": label,
            "spec": method.model_dump(mode="json"),
            "spec_hash": spec_hash(method),
            "trained_parameters": None,
        }
        try:
            cost = None
            if self._step_time_from is not None and method.dtype != "float32" and method.quantization is None:
                cost = step(method, self._step_time_from)
            found["trained_parameters"] = trained_parameters(method) if cost is None else cost.trainable_parameters
        except (SpecError, RuntimeError):
            # The answers say what keeps it from being predicted.
            return found, None
        return found, cost

    def _answer(self, method: TrainSpec, where: Place, cost: Step | None) -> Json:
        found: Json = {"place": where.id, "error": None}
        try:
            need = self._needs.need(method, where)
        except SpecError as error:
            return {**found, "error": str(error)}
        context, unit, end = self._largest_context(method, where)
        batch = self._largest(method, where, "batch_size", _MOST_SEQUENCES, 1)
        options = [] if need.fit == "fits" else self._changes(method, where, need)
        return {
            **found,
            "needed_bytes": need.bytes,
            "tensor_bytes": need.tensor_bytes,
            "fit": need.fit,
            "largest_context": context,
            "context_unit": unit,
            "context_end": end,
            "largest_batch": batch,
            "batch_end": _MOST_SEQUENCES,
            "step_time_s": None if cost is None else cost.seconds(where),
            "changes": [json for _, json in options],
            "together": self._together(method, where, [change for change, _ in options]),
        }

    # --- how far it goes --------------------------------------------------------------------------------------------

    def _largest_context(self, method: TrainSpec, where: Place) -> tuple[int, int, int]:
        """The largest context, the steps in which it was looked for, and the longest that the model takes."""
        end = _longest(method, where)
        unit = max(_FINEST_UNIT, min(_COARSEST_UNIT, 2 ** ((end // _UNITS).bit_length() - 1) if end >= _UNITS else 1))
        return self._largest(method, where, "context_length", end, unit), unit, end

    def _largest(self, method: TrainSpec, where: Place, field: str, end: int, unit: int) -> int:
        """The largest value of a field of the section that fits in full, as a multiple of ``unit``; 0 if none does."""
        asked = getattr(method.train, field)

        def need(number: int) -> float:
            try:
                return self._needs.need(_with(method, field, number * unit), where).bytes
            except SpecError:
                # Fewer tokens than slices, or more of something than the predictor takes.
                return 0.0 if number * unit < asked else math.inf

        known, hints = (
            {value // unit: size for value, size in looked(method, field, where).items() if value % unit == 0}
            for looked in (self._needs.known, self._needs.hints)
        )
        return unit * largest(need, where.memory_bytes, end // unit, known, hints)

    # --- what to change ---------------------------------------------------------------------------------------------

    def _changes(self, method: TrainSpec, where: Place, need: Need) -> list[tuple[Change, Json]]:
        """What each change saves there, most first; those that cannot be made or cannot be predicted are left out."""
        found = []
        for change in changes(method):
            try:
                changed = self._needs.need(change.applied(method), where)
            except SpecError:
                continue
            if changed.bytes < need.bytes:
                found.append((change, _changed(change, need, changed)))
        return sorted(found, key=lambda pair: -int(pair[1]["saved_bytes"]))

    def _together(self, method: TrainSpec, where: Place, options: list[Change]) -> Json | None:
        """The fewest of the changes, most saving first, that together make it fit; None where one does or all do not.

        Those that ask for another training (fewer tokens, another adapter) come last.
        """
        options = [change for change in options if change.is_same_training] + [
            change for change in options if not change.is_same_training
        ]
        for number in range(1, min(len(options), _MOST_TOGETHER) + 1):
            changed = together(method, options[:number])
            try:
                need = None if changed is None else self._needs.need(changed, where)
            except SpecError:
                need = None
            if changed is not None and need is not None and need.fit == "fits":
                return {
                    "changes": [change.id for change in options[:number]],
                    "labels": [change.label for change in options[:number]],
                    "needed_bytes": need.bytes,
                    "spec": changed.model_dump(mode="json"),
                }
        return None


def _changed(change: Change, need: Need, changed: Need) -> Json:
    return {
        "id": change.id,
        "label": change.label,
        "cost": change.cost,
        "is_same_training": change.is_same_training,
        "needed_bytes": changed.bytes,
        "saved_bytes": need.bytes - changed.bytes,
        "fit": changed.fit,
    }


def _ranking(answers: list[Json]) -> list[int]:
    """The numbers of the methods at one place, best first."""
    candidates = [
        Candidate(None, 0)
        if answer["error"] is not None
        else Candidate(answer["fit"], answer["needed_bytes"], answer["step_time_s"])
        for answer in answers
    ]
    return [answers[number]["method"] for number in ranked(candidates)]


def _with(method: TrainSpec, field: str, value: int) -> TrainSpec:
    return method.model_copy(update={"train": method.train.model_copy(update={field: value})})


def _longest(method: TrainSpec, where: Place) -> int:
    """The longest context that the model takes, as far as anything is known to limit it."""

    def too_long(number: int) -> float:
        found = requirements.problems(_with(method, "context_length", number), [where.as_device], None)
        return float(any(problem.field == "train.context_length" for problem in found))

    return largest(too_long, 0.5, _MOST_TOKENS)
