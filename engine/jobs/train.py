"""Measure training steps: how long each part takes, how much memory they need at their peak, and what it is for.

Building the model and attaching the adapter are not measured. Time and memory are taken in separate passes; where the
spec asks for anything but stock PEFT, stock is measured beside it, in turns. What shows that the gradients are the same
is in ``engine.jobs.train_proof``, the model and the step in ``engine.jobs.train_steps``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

from engine import adapters
from engine.jobs.outcome import Outcome
from engine.jobs.train_fit import check_fits
from engine.jobs.train_memory import MEMORY_STEPS, measure_memory
from engine.jobs.train_proof import prove
from engine.jobs.train_steps import Report, Side, StepTimes, prepare, sides_of
from engine.measure.compilation import Compilation
from engine.measure.process_memory import read_process_memory, reset_peak, return_freed_memory
from engine.result import Check, Metric, Progress, Sample
from engine.spec import TrainSpec


def run(spec: TrainSpec, report: Report) -> Outcome:
    """Run one train spec in this process, which should be a fresh one.

    Raises:
        SpecError: if the model cannot be built or PEFT refuses the adapter.
    """
    # Imports leave hundreds of thousands of objects; set apart, they do not make every collection take 0.1 s.
    gc.freeze()
    try:
        return _Run(spec, report).outcome()
    finally:
        gc.unfreeze()


class _Run:
    """One run: what is measured in which order, and how far it is."""

    def __init__(self, spec: TrainSpec, report: Report) -> None:
        self.spec, self._report = spec, report
        before = read_process_memory()
        self._rss_before = None if before is None or before.peak_rss_bytes is None else before.rss_bytes
        self.trainer = prepare(spec, report)
        self.sides = sides_of(spec)
        self._steps_left = len(self.sides) * (spec.warmup + spec.repeats + MEMORY_STEPS)
        self._step_s: list[float] = []
        self._peak_rss: dict[str | None, int] = {}

    def outcome(self) -> Outcome:
        model = self.trainer.model
        checks: list[Check] = []
        if len(self.sides) > 1:
            self._say("proof: gradients beside stock's")
            checks += prove(self.trainer, self.sides[0])
            too_large = check_fits(self.trainer, self.sides[1])
            if too_large is not None:
                checks.append(too_large)
                self._leave_out(self.sides[1])
        metrics = [
            Metric("trainable_parameters", "parameters", adapters.trainable_parameters(model)),
            Metric("total_parameters", "parameters", adapters.parameter_count(model)),
        ]
        metrics += self._time()
        samples: list[Sample] = []
        for side in self.sides:
            self._say("memory" if side.variant is None else f"memory ({side.words})")
            found = measure_memory(self.trainer, side)
            self._steps_left -= MEMORY_STEPS
            metrics += found.metrics
            metrics += self._beside(side, found.peak_bytes)
            checks += found.checks
            samples += found.samples
        return Outcome(tuple(metrics), tuple(checks), tuple(samples))

    def _leave_out(self, side: Side) -> None:
        self._steps_left -= self._steps_left // len(self.sides)
        self.sides.remove(side)

    def _say(self, phase: str) -> None:
        mean_s = sum(self._step_s) / len(self._step_s) if self._step_s else None
        self._report(Progress(phase, eta_s=None if mean_s is None else mean_s * self._steps_left))

    def _step(self, side: Side, phase: str) -> StepTimes:
        self._say(phase if side.variant is None else f"{phase} ({side.words})")
        times = self.trainer.step(side)
        self._step_s.append(times.step_s)
        self._steps_left -= 1
        return times

    # --- time -------------------------------------------------------------------------------------------------------

    def _time(self) -> Iterator[Metric]:
        """Warm-up, then the repeats of all sides in turns; the process's own peak is read between two steps."""
        spec = self.spec
        for side in self.sides:
            if side.strategy == "compiled":
                compilation = Compilation()
                first = self._step(side, "first compiled step")
                yield Metric("first_step_time_s", "s", first.step_s)
        for number in range(spec.warmup):
            for side in self.sides:
                self._step(side, f"warm-up {number + 1} of {spec.warmup}")
        return_freed_memory()
        tokens = spec.train.batch_size * spec.train.context_length * spec.train.accumulation
        for repeat in range(spec.repeats):
            for side in self.sides:
                counts = reset_peak()
                times = self._step(side, f"repeat {repeat + 1} of {spec.repeats}")
                if counts:
                    self._see_peak(side)
                values = {
                    "step_time_s": times.step_s,
                    "forward_time_s": times.forward_s,
                    "backward_time_s": times.backward_s,
                    "optimizer_time_s": times.optimizer_s,
                }
                for name, seconds in values.items():
                    yield Metric(name, "s", seconds, side.variant, repeat=repeat)
                yield Metric("train_tokens_per_s", "tokens/s", tokens / times.step_s, side.variant, repeat=repeat)
        if any(side.strategy == "compiled" for side in self.sides):
            yield from compilation.metrics()

    def _beside(self, side: Side, peak_bytes: int | None) -> Iterator[Metric]:
        """What the system counted, and how much of it no tensor accounts for."""
        rss_bytes = self._peak_rss.get(side.variant)
        if rss_bytes is None:
            return
        yield Metric("peak_rss_bytes", "bytes", rss_bytes, side.variant)
        if peak_bytes is not None and self.spec.device == "cpu":
            yield Metric("unattributed_bytes", "bytes", rss_bytes - peak_bytes, side.variant)

    def _see_peak(self, side: Side) -> None:
        memory = read_process_memory()
        if memory is not None and memory.peak_rss_bytes is not None and self._rss_before is not None:
            increase = memory.peak_rss_bytes - self._rss_before
            self._peak_rss[side.variant] = max(increase, self._peak_rss.get(side.variant, 0))
