"""Predict the peak memory of a job and what it is for, without its hardware and without allocating its weights.

The job's own code runs under fake tensors over two shallow models (``engine.prediction``); what it would do over all
blocks follows from these, to the byte. Nothing is measured, and no weight is allocated.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

from transformers import PretrainedConfig

from engine.measure.breakdown import CATEGORIES
from engine.models import build_meta, model_config
from engine.prediction import train
from engine.prediction.depth import Depths, NotRepeating, deepen, deepen_net, depths
from engine.prediction.fake import block_kinds, with_depth
from engine.prediction.stream import Moment, Part, Peak, Stream, course, peak
from engine.result import Metric, Sample
from engine.spec import Measured, SpecError, TrainSpec

History = tuple[Part, Stream]
_TENSORS_SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Tensors:
    """Live bytes at the peak of one category that one module (the same one in all blocks) accounts for."""

    category: str
    module: str
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """The peak of a job, the course of its memory, and how long predicting it took."""

    peak: Peak
    course: tuple[Moment, ...]
    predict_time_s: float

    @property
    def largest(self) -> list[Tensors]:
        """What takes most at the peak, by category and module, largest first."""
        found = [Tensors(category, module, size) for (category, module), size in self.peak.origins.items()]
        return sorted(found, key=lambda tensors: tensors.bytes, reverse=True)[:_TENSORS_SHOWN]

    def metrics(self) -> Iterator[Metric]:
        """The peak and its parts under the names that a measured run gives them."""
        yield Metric("peak_bytes", "bytes", self.peak.total_bytes)
        for category in CATEGORIES:
            yield Metric(f"{category.replace(' ', '_')}_bytes", "bytes", self.peak.bytes.get(category, 0))
        yield Metric("predict_time_s", "s", self.predict_time_s)

    def samples(self) -> Iterator[Sample]:
        """The course as samples; their time is the number of the change, as nothing took any time."""
        for moment in self.course:
            for category, size in moment.bytes.items():
                yield Sample("tensors", float(moment.number), moment.part, category, size)


def predict(spec: Measured) -> Prediction:
    """Predict one spec's peak.

    Raises:
        SpecError: one sentence, when the model cannot be built, PEFT refuses the adapter, or the kind is not predicted.
    """
    start_s = time.perf_counter()
    before, parts = history(spec)
    found = peak(before, parts)
    return Prediction(found, tuple(course(before, parts)), time.perf_counter() - start_s)


def history(spec: Measured) -> History:
    """What is alive before the job's counted parts, and these parts, at the model's full depth.

    Raises:
        SpecError: as :func:`predict`.
    """
    if not isinstance(spec, TrainSpec):
        raise SpecError("kind", f"must be train to be predicted, not {spec.kind}")
    config = model_config(spec.model)
    return _at_full_depth(config, _depths(spec.model), functools.partial(train.record, spec))


@functools.lru_cache(maxsize=64)
def _depths(model: str) -> Depths | None:
    return depths(block_kinds(build_meta(model)))


def _at_full_depth(
    config: PretrainedConfig, found: Depths | None, record: Callable[[PretrainedConfig], History]
) -> History:
    if found is None:
        return record(config)
    times = found.further_periods
    try:
        (few_before, few), (more_before, more) = (
            record(with_depth(config, depth)) for depth in (found.shallow, found.deeper)
        )
        return deepen_net(few_before, more_before, times), deepen(few, more, times)
    except NotRepeating:
        return record(config)
