"""The memory pass of a train job: two followed steps from a fresh optimizer, and what the second needed at its peak."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from engine.jobs.train_steps import Side, Trainer, base_model
from engine.measure.breakdown import OPTIMIZER_STATE, PARAMETERS, Peak, StepTracker, state_tensors
from engine.measure.device_memory import DevicePeaks
from engine.measure.process_memory import return_freed_memory
from engine.quantization import scales
from engine.result import Check, Metric, Sample
from engine.strategies.blocks import blocks

MEMORY_STEPS = 2
"""AdamW's state appears in the first step, so the peak is that of the second."""
_NAMES_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What the pass found; ``peak_bytes`` is None where tensors cannot be followed."""

    peak_bytes: int | None
    metrics: list[Metric]
    checks: list[Check]
    samples: list[Sample]


def measure_memory(trainer: Trainer, side: Side) -> Found:
    """Follow two steps of one side.

    Compiled code allocates past PyTorch's dispatcher, so that its tensors cannot be followed: only the allocator of a
    GPU counts them then.
    """
    # Only this side's optimizer state may count, and its creation is to be seen.
    trainer.optimizers.clear()
    return_freed_memory()
    device_peaks = DevicePeaks(trainer.device)
    if side.strategy == "compiled":
        for _ in range(MEMORY_STEPS):
            trainer.step(side)
        return Found(None, list(_device_metrics(device_peaks, side)), [], [])
    with trainer.active(side), _reached_blocks(trainer.model) as reached:
        watch = _MemoryWatch(trainer.model)
        watch.tracker.watch(state_tensors(trainer.optimizer(side)), OPTIMIZER_STATE)
        with watch.tracker, watch.tracker.watching_recomputation():
            for number in range(1, MEMORY_STEPS + 1):
                watch.step = number
                trainer.step_as_is(side, watch)
        peak = watch.tracker.peak()
        metrics = [
            *breakdown(peak, side.variant),
            *_device_metrics(device_peaks, side),
            Metric("gradient_depth_layers", "layers", len(reached), side.variant),
        ]
        checks = [
            _check_depth(trainer.model, reached, side),
            watch.check_gradients(side),
            Check(
                _named("loss_finite", side), math.isfinite(watch.loss), f"the loss of the last step is {watch.loss:.4g}"
            ),
            _check_peak(peak, watch.tracker, side),
        ]
        # One timeline is enough for a chart, that of the step as specified.
        samples = watch.samples() if side.variant is None else []
    return Found(peak.total_bytes, metrics, checks, samples)


def breakdown(peak: Peak, variant: str | None) -> Iterator[Metric]:
    """The peak and its parts in bytes."""
    yield Metric("peak_bytes", "bytes", peak.total_bytes, variant)
    for category, size in peak.bytes.items():
        yield Metric(f"{category.replace(' ', '_')}_bytes", "bytes", size, variant)


def _device_metrics(peaks: DevicePeaks, side: Side) -> Iterator[Metric]:
    found = peaks.peaks()
    if found:
        yield Metric("peak_allocated_bytes", "bytes", found["allocated"], side.variant)
        yield Metric("peak_reserved_bytes", "bytes", found["reserved"], side.variant)


class _MemoryWatch:
    """Passes a step's progress on to the tracker, and looks at the loss and the gradients of the last step."""

    def __init__(self, model: nn.Module) -> None:
        self.tracker = StepTracker(model)
        self.tracker.watch(scales(model), PARAMETERS)
        self.step = self._steps_begun = 0
        self.loss = math.nan
        self._model = model
        self._without_gradient: list[str] = []
        self._trained = 0

    def begin(self, part: str) -> None:
        if self.step == MEMORY_STEPS and self._steps_begun < MEMORY_STEPS:
            self.tracker.begin_counting()
        self._steps_begun = self.step
        self.tracker.begin(f"step {self.step} {part}")

    def forward_ended(self, loss: Tensor) -> None:
        if self.step == MEMORY_STEPS:
            self.loss = float(loss.detach())
        self.tracker.forward_ended()

    def backward_ended(self) -> None:
        self.tracker.backward_ended()
        if self.step == MEMORY_STEPS:
            # What looking at the gradients allocates is not the step's.
            with _disable_current_modes(), torch.no_grad():
                trained = [(name, p.grad) for name, p in self._model.named_parameters() if p.requires_grad]
                self._trained = len(trained)
                self._without_gradient = [name for name, grad in trained if grad is None or not bool(grad.any())]

    def optimizer_ended(self, optimizer: torch.optim.Optimizer) -> None:
        self.tracker.optimizer_ended(optimizer)

    def check_gradients(self, side: Side) -> Check:
        """Every trained parameter gets a gradient, and not one of zeros."""
        missing, name = self._without_gradient, _named("gradients_nonzero", side)
        if not missing:
            return Check(name, True, f"all {self._trained} trained parameters get a gradient that is not zero")
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        shown = ", ".join(missing[:_NAMES_SHOWN])
        return Check(name, False, f"{len(missing)} of {self._trained} trained parameters get none: {shown}{more}")

    def samples(self) -> list[Sample]:
        """Live bytes by category over both steps."""
        return [
            Sample("tensors", moment.time_s, self.tracker.phase_at(moment.time_s), moment.category, moment.bytes)
            for moment in self.tracker.timeline()
        ]


@contextlib.contextmanager
def _reached_blocks(model: nn.Module) -> Iterator[set[int]]:
    """Numbers of the model's blocks whose output a gradient came back to, filled while steps run in the block."""
    reached: set[int] = set()

    def watch(number: int, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(lambda _: reached.add(number))

    handles = [
        block.register_forward_hook(lambda _, __, output, number=number: watch(number, output))
        for number, block in enumerate(blocks(base_model(model)).values())
    ]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _check_depth(model: nn.Module, reached: set[int], side: Side) -> Check:
    names = list(blocks(base_model(model)))
    if not reached:
        detail = f"gradients reach none of the {len(names)} blocks: only what comes after them is trained"
    else:
        detail = f"gradients reach {len(reached)} of {len(names)} blocks, the deepest is {names[min(reached)]}"
    return Check(_named("gradient_depth", side), True, detail)


def _check_peak(peak: Peak, tracker: StepTracker, side: Side) -> Check:
    """The breakdown is read from the history of every storage, the peak counted as it went: they must agree."""
    counted = tracker.counted_peak_bytes
    parts = ", ".join(f"{name} {size}" for name, size in peak.bytes.items())
    detail = f"peak of {counted} bytes in {peak.phase}; {parts}"
    return Check(_named("breakdown_adds_up", side), peak.total_bytes == counted, detail)


def _named(name: str, side: Side) -> str:
    return name if side.variant is None else f"{name}_{side.variant}"
