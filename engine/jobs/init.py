"""Measure attaching an adapter: how long it takes, how much memory it needs, and that a strategy's result is stock's.

Building the model is not measured. Time, tensor memory and process memory are taken in separate passes over one model,
which is put back between them. How a strategy is proven is in ``engine.jobs.init_proof``.
"""

from __future__ import annotations

import gc

import torch
from torch import nn

from engine import adapters
from engine.jobs.attaching import Bench, Report
from engine.jobs.init_proof import ATTACHES as PROOF_ATTACHES
from engine.jobs.init_proof import prove
from engine.jobs.outcome import Outcome
from engine.measure.device_memory import DevicePeaks
from engine.measure.process_memory import PeakIncrease
from engine.measure.tensors import TensorTracker
from engine.measure.timing import Timer
from engine.result import Check, Metric, Sample
from engine.spec import InitSpec
from engine.strategies import proof


def run(spec: InitSpec, report: Report) -> Outcome:
    """Run one init spec in this process, which should be a fresh one.

    Raises:
        SpecError: if the model cannot be built or PEFT refuses the adapter.
    """
    # Imports leave hundreds of thousands of objects; set apart, they do not make every collection take 0.1 s.
    gc.freeze()
    try:
        return _measure(spec, report)
    finally:
        gc.unfreeze()


def _measure(spec: InitSpec, report: Report) -> Outcome:
    proven = spec.strategy != "stock"
    bench = Bench(spec, report, 3 + spec.warmup + spec.repeats + (PROOF_ATTACHES if proven else 0))
    metrics, checks = _first_attach(bench)
    metrics += _timed_attaches(bench)
    memory, samples = _tensor_memory(bench)
    metrics += memory
    metrics += _process_memory(bench)
    if proven:
        checks += prove(bench)
    return Outcome(tuple(metrics), tuple(checks), tuple(samples))


def _first_attach(bench: Bench) -> tuple[list[Metric], list[Check]]:
    """The first attach of this process, a forward pass before and after it, and what is wrong with the result."""
    metrics = [_forward_time(bench, bench.model, "base")]
    attach_time = Timer(bench.device)
    with bench.attached("first attach", around=attach_time) as model:
        metrics.append(Metric("first_attach_time_s", "s", attach_time.seconds))
        metrics.append(_forward_time(bench, model, "adapter"))
        added = [parameter for parameter in model.parameters() if id(parameter) not in bench.base]
        metrics.append(Metric("adapter_parameters", "parameters", sum(parameter.numel() for parameter in added)))
        metrics.append(Metric("adapted_modules", "modules", len(bench.module_names)))
        checks = [proof.check_no_meta(adapters.left_on_meta(model))]
        magnitudes = proof.dora_magnitudes(model)
        if magnitudes:
            checks.append(proof.check_no_zero_norm({name: found.values for name, found in magnitudes.items()}))
    return metrics, checks


def _forward_time(bench: Bench, model: nn.Module, variant: str) -> Metric:
    """Seconds of one forward pass over a few tokens: the first of its kind in this process."""
    bench.report(f"first forward pass ({variant})")
    with torch.inference_mode(), Timer(bench.device) as elapsed:
        model(input_ids=bench.input_ids)
    return Metric("first_forward_time_s", "s", elapsed.seconds, variant=variant)


def _timed_attaches(bench: Bench) -> list[Metric]:
    """The repeats after the warm-up, each onto the bare model; for ``staged`` also when each stage was ready."""
    metrics = []
    for number in range(bench.spec.warmup):
        with bench.attached(f"warm-up {number + 1} of {bench.spec.warmup}"):
            pass
    for repeat in range(bench.spec.repeats):
        elapsed = Timer(bench.device)
        with bench.attached(f"repeat {repeat + 1} of {bench.spec.repeats}", around=elapsed):
            metrics.append(Metric("init_time_s", "s", elapsed.seconds, repeat=repeat))
            for stage in bench.stages:
                metrics.append(Metric("init_time_s", "s", stage.elapsed_s, "stage", float(stage.number), repeat))
    return metrics


def _tensor_memory(bench: Bench) -> tuple[list[Metric], list[Sample]]:
    """Peak of live tensor bytes above the bare model's, and what lived when."""
    tracker = TensorTracker()
    tracker.watch(bench.model.parameters(), "base parameters")
    tracker.watch(bench.model.buffers(), "buffers")
    phase = "tensor memory"
    device_peaks = DevicePeaks(bench.device)
    with bench.attached(phase, around=tracker) as model:
        metrics = [Metric("init_peak_extra_bytes", "bytes", tracker.peak_extra_bytes)]
        for variant, increase in device_peaks.increases().items():
            metrics.append(Metric("init_peak_extra_bytes", "bytes", increase, variant=variant))
        tracker.assign(model.parameters(), "adapter parameters")
        tracker.assign(model.buffers(), "buffers")
        samples = [Sample("tensors", at.time_s, phase, at.category, at.bytes) for at in tracker.timeline()]
    return metrics, samples


def _process_memory(bench: Bench) -> list[Metric]:
    """Peak of the process's resident memory above the bare model's, as the system counts it."""
    increase = PeakIncrease()
    with bench.attached("process memory", around=increase):
        pass
    views = ((None, increase.rss_bytes), ("anonymous", increase.rss_anon_bytes))
    return [
        Metric("init_peak_extra_rss_bytes", "bytes", size, variant=variant)
        for variant, size in views
        if size is not None
    ]
