"""Measure merging an adapter into its base weights: time, memory, what is kept, and how exact the result is.

The adapter has noise in it first, or merging would change nothing. Time, tensor memory and process memory are taken in
separate passes over one model, whose weights are put back in between. What decides whether the result is right is in
``engine.jobs.merge_proof``.
"""

from __future__ import annotations

import contextlib
import gc
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.jobs import merge_proof, merge_reference
from engine.jobs.merge_bench import MergeBench, Report
from engine.jobs.merge_reference import Rows, WeightError
from engine.jobs.outcome import Outcome
from engine.measure.device_memory import DevicePeaks
from engine.measure.process_memory import PeakIncrease
from engine.measure.tensors import TensorTracker
from engine.measure.timing import Timer
from engine.result import Check, Metric, Sample
from engine.spec import MergeSpec
from engine.strategies import merge as strategies

ROUNDS = 10
# Above this a merged model is not saved and loaded again: it would take longer than all else, and twice its memory.
_SAVED_BYTES = 4 * 2**30


def run(spec: MergeSpec, report: Report) -> Outcome:
    """Run one merge spec in this process, which should be a fresh one.

    Raises:
        SpecError: if the model cannot be built, or PEFT cannot attach or merge the adapter.
    """
    gc.freeze()
    try:
        return _measure(spec, report)
    finally:
        gc.unfreeze()


def _measure(spec: MergeSpec, report: Report) -> Outcome:
    bench = MergeBench(spec, report)
    metrics = [Metric("largest_weight_bytes", "bytes", bench.largest_weight_bytes)]
    metrics += _timed_merges(bench)
    memory, samples = _tensor_memory(bench)
    metrics += memory
    metrics += _process_memory(bench)
    proof = _Proof(bench)
    metrics += proof.metrics
    if bench.can_unmerge:
        metrics += _timed_unmerges(bench)
        metrics += _rounds(bench, proof.rows, proof.layers)
    return Outcome(tuple(metrics), tuple(proof.checks), tuple(samples))


def _timed_merges(bench: MergeBench) -> list[Metric]:
    """The repeats after the warm-up, each into the original weights."""
    spec = bench.spec
    for number in range(spec.warmup):
        with bench.put_back(f"warm-up {number + 1} of {spec.warmup}"):
            bench.merge_and_unload(spec.strategy, contextlib.nullcontext())
    metrics = []
    for repeat in range(spec.repeats):
        elapsed = Timer(bench.device)
        with bench.put_back(f"repeat {repeat + 1} of {spec.repeats}"):
            bench.merge_and_unload(spec.strategy, elapsed)
        metrics.append(Metric("merge_time_s", "s", elapsed.seconds, repeat=repeat))
    return metrics


def _tensor_memory(bench: MergeBench) -> tuple[list[Metric], list[Sample]]:
    """Peak of live tensor bytes above those before, what stays of them, and what lived when."""
    tracker = TensorTracker()
    tracker.watch(
        (parameter for parameter in bench.root.parameters() if id(parameter) in bench.base_ids), "base parameters"
    )
    tracker.watch(bench.root.parameters(), "adapter parameters")
    tracker.watch(bench.root.buffers(), "buffers")
    before = bytes_of(bench.root, bench.adapter_ids)
    # Merging may widen the weights.
    phase, largest_bytes = "tensor memory", bench.largest_weight_bytes
    device_peaks = DevicePeaks(bench.device)
    with bench.put_back(phase):
        merged = bench.merge_and_unload(bench.spec.strategy, tracker)
        peak = tracker.peak_extra_bytes
        metrics = [
            Metric("merge_peak_extra_bytes", "bytes", peak),
            Metric("merge_peak_extra_weights", "W", peak / largest_bytes),
            Metric("merge_retained_extra_bytes", "bytes", bytes_of(merged) - before),
        ]
        for variant, increase in device_peaks.increases().items():
            metrics.append(Metric("merge_peak_extra_bytes", "bytes", increase, variant=variant))
        tracker.assign(merged.parameters(), "base parameters")
        samples = [Sample("tensors", at.time_s, phase, at.category, at.bytes) for at in tracker.timeline()]
    return metrics, samples


def bytes_of(model: nn.Module, without: Collection[int] = ()) -> int:
    """Bytes of a model's tensors, less those with these ids; memory that several of them share counts once."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in without]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _process_memory(bench: MergeBench) -> list[Metric]:
    """Peak of the process's resident memory above that before, as the system counts it."""
    increase = PeakIncrease()
    with bench.put_back("process memory"):
        bench.merge_and_unload(bench.spec.strategy, increase)
    views = ((None, increase.rss_bytes), ("anonymous", increase.rss_anon_bytes))
    return [
        Metric("merge_peak_extra_rss_bytes", "bytes", size, variant=variant)
        for variant, size in views
        if size is not None
    ]


class _Proof:
    """Metrics and checks of how exact a merge is; ``rows`` are the sampled weights, of ``layers``."""

    def __init__(self, bench: MergeBench) -> None:
        self.metrics: list[Metric] = []
        self.checks: list[Check] = []
        self._bench = bench
        strategy = bench.spec.strategy
        with bench.put_back("proof: float64 weights"):
            self.rows, self.layers = merge_reference.sample(bench)
        with bench.put_back("proof: float64 logits"):
            self._logits = merge_reference.Logits(bench)
        before = self._dtypes()
        with bench.put_back(f"proof: {strategy}"):
            merged = bench.merge_and_unload(strategy, contextlib.nullcontext())
            ours, logits = merge_reference.weight_error(self.rows), self._logits.of(merged)
            self.checks.append(merge_proof.check_dtype(before, self._dtypes()))
            self.checks.append(_runs(bench, merged))
            saved = self._save_and_reload(merged, logits)
        error = merge_proof.logit_error(logits, self._logits.reference, self._logits.base)
        self._add(None, ours, error)
        stock, stock_error = self._stock()
        self.checks.append(merge_proof.check_weights(ours, stock))
        self.checks.append(merge_proof.check_logits(error, stock_error))
        self.checks.append(saved)

    def _stock(self) -> tuple[WeightError | None, float | None]:
        """Errors of stock PEFT, on weights of its own where they were tied; nothing where that is what was measured."""
        bench = self._bench
        if bench.spec.strategy == "stock" and not strategies.tied_layers(bench.root):
            return None, None
        with bench.put_back("proof: stock"):
            merged = bench.merge_and_unload("untied", contextlib.nullcontext())
            stock, logits = merge_reference.weight_error(self.rows), self._logits.of(merged)
        error = merge_proof.logit_error(logits, self._logits.reference, self._logits.base)
        self._add("stock" if not strategies.tied_layers(bench.root) else "stock, untied", stock, error)
        return stock, error

    def _add(self, variant: str | None, weights: WeightError, logits: float) -> None:
        errors = (("relative_weight_error", weights.relative), ("relative_logit_error", logits))
        # An adapter without an effect has no relative error; a check says so.
        self.metrics += [
            Metric(name, "ratio", error, variant=variant) for name, error in errors if math.isfinite(error)
        ]

    def _dtypes(self) -> Counter[str]:
        return Counter(_dtype(weight) for weight in self._bench.weights())

    def _save_and_reload(self, merged: PreTrainedModel, logits: Tensor) -> Check:
        """Save the merged model as safetensors in a temporary folder, load it again and compare its logits."""
        bench, name = self._bench, "saved_and_reloaded"
        size = bytes_of(merged)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size > _SAVED_BYTES:
            return Check(name, True, f"not run: only models up to {_SAVED_BYTES} bytes are saved, and this has {size}")
        if 1.1 * size > free:
            return Check(
                name, True, f"not run: the model has {size} bytes, and {free} are free in the temporary folder"
            )
        bench.report("saving and loading")
        with tempfile.TemporaryDirectory(prefix="peft-lab-") as folder:
            merged.save_pretrained(folder)
            reloaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, bench.spec.dtype),
                attn_implementation=bench.spec.attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
            reloaded.to(bench.device)  # type: ignore[arg-type]  # its decorator hides `to` being a method
            return merge_proof.check_saved(logits, self._logits.of(reloaded.eval()))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _runs(bench: MergeBench, merged: PreTrainedModel) -> Check:
    """A forward pass in the dtypes that the merge left behind."""
    name = "merged_model_runs"
    try:
        with torch.inference_mode():
            logits = merged(input_ids=bench.input_ids, use_cache=False).logits
    except RuntimeError as error:
        return Check(name, False, f"a forward pass of the merged model fails: {str(error).splitlines()[0]}")
    finite = bool(logits.isfinite().all())
    return Check(name, finite, f"a forward pass gives {'finite' if finite else 'infinite'} logits in {_dtype(logits)}")


def _timed_unmerges(bench: MergeBench) -> list[Metric]:
    """Seconds of taking the whole adapter out of the weights again."""
    spec = bench.spec
    metrics = []
    for repeat in range(spec.repeats):
        elapsed = Timer(bench.device)
        with bench.put_back(f"unmerge {repeat + 1} of {spec.repeats}"):
            bench.merge_adapter(spec.strategy)
            bench.unmerge_adapter(spec.strategy, elapsed)
        metrics.append(Metric("unmerge_time_s", "s", elapsed.seconds, repeat=repeat))
    return metrics


def _rounds(bench: MergeBench, rows: Sequence[Rows], layers: Sequence[BaseTunerLayer]) -> list[Metric]:
    """How far the sampled weights are from their originals after each round of merging and unmerging their layers."""
    strategy = bench.spec.strategy
    metrics = []
    with bench.put_back(f"{ROUNDS} rounds of merging and unmerging"), bench.merging(strategy):
        for number in range(1, ROUNDS + 1):
            for layer in layers:
                layer.merge(safe_merge=strategy == "safe")
                layer.unmerge()
            metrics.append(Metric("merge_drift", "ratio", merge_reference.drift(rows), x=float(number)))
    return [metric for metric in metrics if math.isfinite(metric.value)]
