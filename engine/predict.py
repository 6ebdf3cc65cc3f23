"""Predict the peak memory of a job and what it is for, without its hardware and without allocating its weights.

The job's own code runs under fake tensors over two shallow models (``engine.prediction``); what it would do over all
blocks follows from these, to the byte. Nothing is measured, and no weight is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PretrainedConfig

from engine.catalog import Card
from engine.measure.breakdown import CATEGORIES
from engine.measure.environment import compute_capability
from engine.models import build_meta, model_config
from engine.prediction import inference, init, merge, train
from engine.prediction.attention import Capability
from engine.prediction.blame import explained
from engine.prediction.cuda_memory import OnDevice, on_device
from engine.prediction.depth import Depths, NotRepeating, deepen, deepen_net, depths
from engine.prediction.fake import block_kinds, with_depth
from engine.prediction.fake_cuda import FakeCuda
from engine.prediction.fake_mps import FakeMps
from engine.prediction.sameness import blocks_differ
from engine.prediction.stream import Moment, Part, Peak, Stream, course, joined, peak
from engine.result import Metric, Sample
from engine.spec import InferenceSpec, InitSpec, Measured, MergeSpec, SpecError, TrainSpec

History = tuple[Part, Stream]
Record = Callable[[PretrainedConfig], tuple[History, ...]]
"""Records a job over a model of this config: stretches of its history that follow each other."""
FakeDevice = FakeCuda | FakeMps
_TENSORS_SHOWN = 10
AMPERE: Capability = (8, 0)
"""The compute capability of a CUDA device that is not here and of which no card is named."""
_ON_TWO_DEVICES = ("gpu_offload", "gpu_then_cpu")
# Outside of training these look at the device that they run on: norms, blocks and factors are of other dtypes on a CPU.
_OTHERWISE_ON_A_CPU = ("zero_b_norm", "factored_norm", "deferred", "batched_norm", "staged", "row_blocks", "fused")


@dataclasses.dataclass(frozen=True, slots=True)
class Tensors:
    """Live bytes at the peak of one category that one module (the same one in all blocks) accounts for."""

    category: str
    module: str
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The peak of one form of the model, by the variant that a measured run has it under, and its memory's course.

    On a CUDA device also what the job takes of it.
    """

    variant: str | None
    peak: Peak
    course: tuple[Moment, ...]
    on_device: OnDevice | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """The peak of a job in each form that it has, what there is to say of it, and how long predicting it took.

    Only inference has more than one form of the model. ``own_metrics`` are those that only this kind of job has.
    """

    forms: tuple[Form, ...]
    own_metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    predict_time_s: float

    @property
    def highest(self) -> Form:
        """The form with the highest peak."""
        return max(self.forms, key=lambda form: form.peak.total_bytes)

    @property
    def peak(self) -> Peak:
        """The highest peak."""
        return self.highest.peak

    @property
    def needed_bytes(self) -> int:
        """What has to fit into the device: all that the job takes of a CUDA device, the tensors' peak elsewhere."""
        device = self.highest.on_device
        return self.peak.total_bytes if device is None else device.total_bytes

    @property
    def largest(self) -> list[Tensors]:
        """What takes most at the peak, by category and module, largest first."""
        found = [Tensors(category, module, size) for (category, module), size in self.peak.origins.items()]
        return sorted(found, key=lambda tensors: tensors.bytes, reverse=True)[:_TENSORS_SHOWN]

    def metrics(self) -> Iterator[Metric]:
        """The peaks and their parts under the names that a measured run gives them."""
        for form in self.forms:
            yield Metric("peak_bytes", "bytes", form.peak.total_bytes, form.variant)
            for category, size in form.peak.bytes.items():
                yield Metric(f"{category.replace(' ', '_')}_bytes", "bytes", size, form.variant)
            if form.on_device is not None:
                yield Metric("peak_allocated_bytes", "bytes", form.on_device.peak_allocated_bytes, form.variant)
                yield Metric("peak_reserved_bytes", "bytes", form.on_device.peak_reserved_bytes, form.variant)
        yield from self.own_metrics
        yield Metric("predict_time_s", "s", self.predict_time_s)

    def samples(self) -> Iterator[Sample]:
        """The highest form's course; the time of a sample is the number of the change, as nothing took any time."""
        for moment in self.highest.course:
            for category, size in moment.bytes.items():
                yield Sample("tensors", float(moment.number), moment.part, category, size)

    def inspection(self) -> dict[str, Any]:
        """What is neither a metric nor a sample: where the highest peak is, what it consists of, and notes."""
        device = self.highest.on_device
        return {
            "peak_variant": self.highest.variant,
            "peak_part": self.peak.part,
            "top_tensors": [dataclasses.asdict(tensors) for tensors in self.largest],
            "device_terms": [dataclasses.asdict(term) for term in device.terms] if device else None,
            "notes": list(self.notes),
        }


def predict(spec: Measured, card: Card | None = None) -> Prediction:
    """Predict one spec's peak, on its own device or, if there is one, on that card.

    Raises:
        SpecError: one sentence, when the model cannot be built, PEFT refuses the adapter, or what the spec asks for is
            not predicted.
    """
    start_s = time.perf_counter()
    device, remarks = fake_device(spec, card)
    recorders = _recorders(spec, isinstance(device, FakeCuda))
    with contextlib.nullcontext() if device is None else device.running():
        found = [(variant, *_recorded(spec, record)) for variant, record in recorders.items()]
    forms = [
        Form(
            variant,
            _with_all_categories(spec, peak(before, parts)),
            tuple(course(before, parts)),
            taken(spec, before, parts, device.capability) if isinstance(device, FakeCuda) else None,
        )
        for variant, before, parts, _ in found
    ]
    own = () if isinstance(spec, TrainSpec | InferenceSpec) else tuple(_extra(spec, found[0][1], forms[0].peak))
    notes = dict.fromkeys([note for *_, note in found] + remarks + (device.notes() if device else []))
    return Prediction(tuple(forms), own, tuple(notes), time.perf_counter() - start_s)


def history(spec: Measured, variant: str | None = None, device: FakeDevice | None = None) -> History:
    """What is alive before the counted parts of the job in one form, and these parts, at the model's full depth.

    The job runs on that device, or on a CPU.

    Raises:
        SpecError: as :func:`predict`.
        KeyError: if the job has no such form.
    """
    record = _recorders(spec, isinstance(device, FakeCuda))[variant]
    with contextlib.nullcontext() if device is None else device.running():
        before, parts, _ = _recorded(spec, record)
    return before, parts


def fake_device(spec: Measured, card: Card | None = None) -> tuple[FakeDevice | None, list[str]]:
    """What a spec's job runs on, None for a CPU, and what has to be said of it.

    Raises:
        SpecError: one sentence, when that device lacks what the spec asks for.
    """
    kind = spec.device.partition(":")[0] if card is None else card.device
    if kind == "cpu":
        return None, []
    remarks = []
    if spec.strategy in _OTHERWISE_ON_A_CPU and not isinstance(spec, TrainSpec):
        remarks.append(f"{spec.strategy} is predicted as it works on a CPU; on a GPU it uses other dtypes")
    if kind == "mps":
        return FakeMps(), remarks
    known = compute_capability(spec.device) if card is None else card.compute_capability
    major, minor = known or AMPERE
    if spec.attention == "flash_attention_2" and (major, minor) < AMPERE:
        raise SpecError("attention", f"flash_attention_2 needs compute capability 8.0, not {major}.{minor}; use sdpa")
    if known is None:
        remarks.append(f"{spec.device} is not here: taken for a device of compute capability {major}.{minor}")
    return FakeCuda((major, minor)), remarks


def taken(spec: Measured, before: Part, parts: Stream, capability: Capability) -> OnDevice:
    """What a job of this history takes of a CUDA device of that compute capability.

    A step is gone through twice, as the cache of later ones is in pieces; its gradients are taken in another thread.
    """
    times = 2 if isinstance(spec, TrainSpec) else 1
    return on_device(before, parts, capability, handles=times, rounds=times)


def _recorders(spec: Measured, on_gpu: bool) -> dict[str | None, Record]:
    """What records each form of a spec's job.

    Raises:
        SpecError: one sentence on the field that keeps the spec from being predicted.
    """
    for field, sentence in _not_predicted(spec).items():
        raise SpecError(field, sentence)
    # Fake tensors of other devices need these; what such a device does otherwise is up to ``FakeDevice``.
    spec = spec.model_copy(update={"device": "cpu"})
    if isinstance(spec, TrainSpec):
        return {None: lambda config: (train.record(spec, config, on_gpu),)}
    if isinstance(spec, InitSpec):
        return {None: functools.partial(init.record, spec)}
    if isinstance(spec, MergeSpec):
        return {None: functools.partial(merge.record, spec)}
    return {form: functools.partial(inference.record, spec, form) for form in inference.forms(spec)}


def _recorded(spec: Measured, record: Record) -> tuple[Part, Stream, str]:
    """The history at full depth, and a note on the depth at which it was seen."""
    config = model_config(spec.model)
    with explained(spec):
        return _at_full_depth(config, depths_for(spec), record)


def _with_all_categories(spec: Measured, found: Peak) -> Peak:
    """A training step's peak with all categories that a measured one has, those of nothing too."""
    if not isinstance(spec, TrainSpec):
        return found
    return dataclasses.replace(found, bytes={name: found.bytes.get(name, 0) for name in CATEGORIES})


def _extra(spec: InitSpec | MergeSpec, before: Part, found: Peak) -> Iterator[Metric]:
    """What attaching or merging needs at its peak beyond what was there before."""
    extra_bytes = found.total_bytes - sum(change.bytes for change in before.changes)
    yield Metric(f"{spec.kind}_peak_extra_bytes", "bytes", extra_bytes)
    if isinstance(spec, MergeSpec):
        largest_bytes = merge.largest_weight_bytes(spec, _shallow(spec))
        yield Metric("merge_peak_extra_weights", "W", extra_bytes / largest_bytes)
        yield Metric("largest_weight_bytes", "bytes", largest_bytes)


def _shallow(spec: Measured) -> PretrainedConfig:
    """The config of the fewest blocks in which every kind of layer occurs."""
    config, found = model_config(spec.model), depths_for(spec)
    return config if found is None else with_depth(config, found.shallow)


def _not_predicted(spec: Measured) -> dict[str, str]:
    """The fields of a spec that keep it from being predicted, and what would be right."""
    found = {}
    if spec.strategy in _ON_TWO_DEVICES:
        found["strategy"] = f"must work on one device to be predicted, and {spec.strategy} moves weights between two"
    if isinstance(spec, TrainSpec) and spec.strategy == "compiled":
        found["strategy"] = "must be stock to be predicted: what compiled code allocates nothing can follow"
    return found


def depths_for(spec: Measured) -> Depths | None:
    """Two depths that stand for the spec's model with its adapter; None where all of its blocks have to be run."""
    return None if spec.adapter is not None and blocks_differ(spec.adapter) else _depths(spec.model)


@functools.lru_cache(maxsize=64)
def _depths(model: str) -> Depths | None:
    return depths(block_kinds(build_meta(model)))


def _at_full_depth(config: PretrainedConfig, found: Depths | None, record: Record) -> tuple[Part, Stream, str]:
    if found is not None:
        times = found.further_periods
        try:
            pairs = zip(*(record(with_depth(config, depth)) for depth in (found.shallow, found.deeper)), strict=True)
            histories = [(deepen_net(few[0], more[0], times), deepen(few[1], more[1], times)) for few, more in pairs]
            return *_one(histories), f"seen over {found.shallow} and {found.deeper} blocks; all others do the same"
        except NotRepeating:
            pass
    return *_one(record(config)), "seen over all blocks"


def _one(histories: Sequence[History]) -> History:
    return functools.reduce(lambda first, second: joined(first, second, "between"), histories)
