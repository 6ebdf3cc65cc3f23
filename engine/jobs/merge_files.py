"""The request that merges an adapter on disk into a model on disk. Its memory is watched, nothing else is measured.

Everything that can be wrong is found before anything is written. What a killed run finished stays beside the output and
the next run goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.catalog.kinds.merge_files import problems
from engine.jobs.outcome import Outcome
from engine.measure.process_memory import PeakIncrease
from engine.merging.adapter_folder import AdapterFolder, open_adapter
from engine.merging.base_folder import BaseFolder, open_base
from engine.merging.output_folder import OutputFolder, fingerprint, finished_before, space_problem
from engine.merging.plan import Plan, make_plan
from engine.merging.running import Written, remaining_bytes, shard_size, write_model
from engine.merging.weight_file import WeightFileError
from engine.result import Check, Metric, Progress
from engine.spec import MergeFilesSpec, SpecError

Report = Callable[[Progress], None]


class MergeStopped(RuntimeError):
    """The disk gave up halfway; the text is one sentence. What is finished stays, and the next run resumes."""


def run(spec: MergeFilesSpec, report: Report) -> Outcome:
    """Merge the files; the outcome's metrics say what was written, in how long and in how much memory.

    Raises:
        SpecError: one sentence naming the field at fault; then nothing was written.
        MergeStopped: when the disk failed.
    """
    done = merge(spec, report)
    metrics = [
        Metric("merge_files_time_s", "s", done["seconds"]),
        Metric("written_bytes", "bytes", float(done["written_bytes"])),
        Metric("largest_tensor_bytes", "bytes", float(done["largest_tensor_bytes"])),
        Metric("merged_tensors", "count", float(len(done["merged"]))),
        Metric("replaced_tensors", "count", float(len(done["replaced"]))),
        Metric("copied_tensors", "count", float(done["copied_tensors"])),
    ]
    for name in ("merge_files_peak_extra_bytes", "merge_files_peak_extra_rss_bytes"):
        if done[name] is not None:
            metrics.append(Metric(name, "bytes", float(done[name])))
    checks = [Check("written_whole", True, f"{done['shards']} weight files in {done['out']}")]
    if done["untied"]:
        checks.append(Check("untied", True, f"{' and '.join(done['untied'])} have weights of their own now"))
    return Outcome(metrics=tuple(metrics), checks=tuple(checks))


def merge(spec: MergeFilesSpec, report: Report) -> dict[str, Any]:
    """Merge the files and describe what was done, JSON-ready; bytes and seconds.

    Raises:
        SpecError: one sentence naming the field at fault; then nothing was written.
        MergeStopped: when the disk failed.
    """
    report(Progress("checking"))
    start_s = time.perf_counter()
    with PeakIncrease() as memory:
        base, adapter, plan, written = _merge(spec, report)
    return {
        "base": str(base.path),
        "adapter": str(adapter.path),
        "out": spec.out,
        "merged": list(plan.merged),
        "replaced": list(plan.replaced),
        "untied": list(plan.untied),
        "copied_tensors": sum(
            1 for tensor in plan.tensors if tensor.change is None and tensor.file.path != adapter.weights.path
        ),
        "shards": written.shards,
        "resumed_shards": written.resumed_shards,
        "written_bytes": written.bytes_written,
        "model_bytes": sum(shard_size(shard) for shard in plan.shards),
        "largest_tensor_bytes": max(tensor.entry.size_bytes for tensor in plan.tensors),
        "seconds": time.perf_counter() - start_s,
        "merge_files_peak_extra_bytes": memory.rss_anon_bytes,
        "merge_files_peak_extra_rss_bytes": memory.rss_bytes,
    }


def _merge(spec: MergeFilesSpec, report: Report) -> tuple[BaseFolder, AdapterFolder, Plan, Written]:
    for problem in problems(spec):
        raise problem
    base, adapter, out = open_base(Path(spec.base)), open_adapter(Path(spec.adapter)), Path(spec.out)
    plan = make_plan(base, adapter)
    made_from = fingerprint(base, adapter)
    if finished_before(out, made_from):
        return base, adapter, plan, Written(0, len(plan.shards), len(plan.shards))
    if out.is_dir() and any(out.iterdir()):
        raise SpecError("out", f"{out} exists and is not an empty folder")
    try:
        with OutputFolder(out, made_from) as output:
            no_space = space_problem(out, remaining_bytes(plan, output, base))
            if no_space is not None:
                if not output.is_resumed:
                    output.discard()
                raise no_space
            try:
                return base, adapter, plan, write_model(plan, base, adapter, output, report)
            except SpecError:
                output.discard()
                raise
    except (OSError, WeightFileError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MergeStopped(
            f"Writing {out} stopped: {reason}; the same merge started again goes on from there"
        ) from error
