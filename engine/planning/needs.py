"""What a train spec needs at a place, by the predictor; each answer is kept, and shared where places do the same.

Searches nothing. Two cards on which PyTorch chooses the same attention kernels go through the same history of memory;
only what the allocator and the libraries make of it is each card's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from engine import predict as predictor
from engine.catalog import requirements
from engine.catalog.fitting import Fit, fit, process_bytes
from engine.planning.places import Place
from engine.predict import History
from engine.prediction.attention import choose
from engine.prediction.fake_cuda import FakeCuda
from engine.prediction.fake_mps import FakeMps
from engine.prediction.stream import peak
from engine.spec import NotHere, SpecError, TrainSpec, spec_hash


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What has to fit into the place's memory, how much of it are the job's tensors, and whether it does."""

    bytes: int
    tensor_bytes: int
    fit: Fit


class Needs:
    """Answers for many specs and places; ``predictions`` counts how often a job was gone through for them."""

    def __init__(self, looked: Callable[[], None] = lambda: None) -> None:
        self.predictions = 0
        self._looked = looked
        self._histories: dict[tuple[str, str], list[tuple[FakeCuda | FakeMps | None, History]]] = {}
        self._asked: list[tuple[TrainSpec, str, Need]] = []
        self._answers: dict[tuple[str, str], Need | SpecError] = {}

    def need(self, spec: TrainSpec, place: Place) -> Need:
        """What the spec needs at the place.

        Raises:
            SpecError: one sentence, when it cannot run there or cannot be predicted.
        """
        here = spec.model_copy(update={"device": place.device})
        key = (spec_hash(here), place.id)
        if key not in self._answers:
            try:
                self._answers[key] = found = self._predicted(here, place)
                self._asked.append((here, place.id, found))
            except SpecError as error:
                self._answers[key] = error
        answer = self._answers[key]
        if isinstance(answer, SpecError):
            raise answer
        return answer

    def known(self, spec: TrainSpec, field: str, place: Place) -> dict[int, float]:
        """What specs need at the place that differ from this one only in this field of their section, by its value."""
        return {value: need.bytes for value, need in self._alike(spec, field, place.id)}

    def hints(self, spec: TrainSpec, field: str, place: Place) -> dict[int, float]:
        """About what such specs need there, from what their tensors took at the other place that was asked most.

        Raises:
            SpecError: as :meth:`need`.
        """
        need = self.need(spec, place)
        others = {name for _, name, _ in self._asked if name != place.id}
        best = max((self._alike(spec, field, name) for name in sorted(others)), key=len, default=[])
        return {value: float(other.tensor_bytes + need.bytes - need.tensor_bytes) for value, other in best}

    def _alike(self, spec: TrainSpec, field: str, place_id: str) -> list[tuple[int, Need]]:
        wanted = _without(spec, field)
        return [
            (getattr(asked.train, field), need)
            for asked, name, need in self._asked
            if name == place_id and _without(asked, field) == wanted
        ]

    def _predicted(self, spec: TrainSpec, place: Place) -> Need:
        for problem in requirements.problems(spec, [place.as_device], None):
            if not isinstance(problem, NotHere):
                raise problem
        before, parts = self._history(spec, place)
        tensor_bytes = peak(before, parts).total_bytes
        if place.capability is not None:
            needed_bytes = predictor.taken(spec, before, parts, place.capability).total_bytes
        else:
            needed_bytes = process_bytes(tensor_bytes) if place.device == "cpu" else tensor_bytes
        return Need(needed_bytes, tensor_bytes, fit(needed_bytes, place.memory_bytes))

    def _history(self, spec: TrainSpec, place: Place) -> History:
        known = self._histories.setdefault((spec_hash(spec), place.device), [])
        for device, found in known:
            if not isinstance(device, FakeCuda) or _chooses_alike(device, place):
                return found
        device = _device(place)
        self.predictions += 1
        found = predictor.history(spec, device=device)
        known.append((device, found))
        self._looked()
        return found


def _without(spec: TrainSpec, field: str) -> TrainSpec:
    """The spec without what decides on nothing here: its device, and this field of its section."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={field: None}), "device": ""})


def _device(place: Place) -> FakeCuda | FakeMps | None:
    if place.capability is not None:
        return FakeCuda(place.capability)
    return FakeMps() if place.device == "mps" else None


def _chooses_alike(device: FakeCuda, place: Place) -> bool:
    """Whether PyTorch would choose the same kernels at the place for all that it met on the device."""
    assert place.capability is not None
    return all(choose(call, place.capability).kernel == choice.kernel for call, choice in device.calls.items())
