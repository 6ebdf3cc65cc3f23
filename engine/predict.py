"""Predict the peak memory of a job and what it is for, without its hardware and without allocating its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

from transformers import PretrainedConfig

from engine.models import build_meta, model_config
from engine.prediction import train
from engine.prediction.depth import Depths, NotRepeating, deepen, deepen_net, depths
from engine.prediction.fake import block_kinds, with_depth
from engine.prediction.stream import Part, Peak, Stream, peak
from engine.spec import TrainSpec

History = tuple[Part, Stream]


def history(spec: TrainSpec) -> History:
    """What is alive before the job's counted parts, and these parts, at the model's full depth."""
    config = model_config(spec.model)
    return _at_full_depth(config, _depths(spec.model), functools.partial(train.record, spec))


def predict_peak(spec: TrainSpec) -> Peak:
    """The peak of a job and what it is for."""
    return peak(*history(spec))


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
