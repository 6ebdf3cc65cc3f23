"""Print how far predicted peaks are from those of real jobs, beside two common rules, and what a prediction costs.

Run by `make bench-predict`, or one part of it: `python -m tests.benchmarks.bench_predict accuracy cost`. Each measured
peak is the tracked one of a job in a worker process of its own, as the dashboard runs it. Memory does not depend on
what else the machine does; what a prediction takes does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.measure.environment import WORKER_ENVIRONMENT
from tests.benchmarks import table
from tests.benchmarks.prediction_specs import DORA, Asked, all_specs

if TYPE_CHECKING:
    from engine.executors.local import LocalExecutor, LocalWorker

PARTS = ("accuracy", "cost")
MEDIAN_ERROR, WORST_ERROR = 0.005, 0.03
LARGE = {"model": "llama-3.3-70b", "train": {"context_length": 4096}}
LARGE_S, LARGE_BYTES, SWEEP_S = 3.0, 1.5e9, 15.0
_SWEEP = [
    {"model": "mistral-7b", "adapter": adapter, "train": {"context_length": length}}
    for adapter in (None, {}, DORA, {"type": "ia3"})
    for length in (512, 1024, 2048, 4096, 8192)
]
# What a merge or an attach needs beyond the model is all that it has; its weights would hide any error.
_PEAKS = {"init": "init_peak_extra_bytes", "merge": "merge_peak_extra_bytes"}
_RULES = ("predicted", "accelerate", "formula")


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """One peak of one job, and what each rule says of it; None where a rule says nothing."""

    kind: str
    architecture: str
    method: str
    asked: str
    variant: str | None
    measured_bytes: int
    predicted_bytes: int
    accelerate_bytes: int | None
    formula_bytes: int | None
    spec: dict[str, Any]

    def error(self, rule: str) -> float | None:
        """How far a rule is off, relative to what was measured."""
        found: int | None = getattr(self, f"{rule}_bytes")
        if found is None:
            return None
        if self.measured_bytes == 0:
            return 0.0 if found == 0 else math.inf
        return found / self.measured_bytes - 1

    def line(self) -> str:
        shown = "  ".join(f"{'-' if error is None else f'{error:+.2%}':>10}" for error in map(self.error, _RULES))
        variant = "" if self.variant is None else f", {self.variant}"
        name = f"{self.architecture}, {self.method}, {self.asked}{variant}"
        return f"{name[:100]:100} {self.measured_bytes / 2**20:11.3f} MiB  {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each cost is taken (default 3)")
    parser.add_argument("--only", default="", help="only specs of architectures whose label contains this")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        # What workers start with has to be there before the first import of torch.
        command = [sys.executable, "-m", "tests.benchmarks.bench_predict", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | dict(WORKER_ENVIRONMENT))
    warnings.simplefilter("ignore")
    from engine.measure.environment import environment

    machine = environment()
    print(table.machine_line(machine))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "accuracy": lambda: _accuracy(arguments.only),
        "cost": lambda: _cost(arguments.rounds),
    }
    for part in arguments.parts:
        figures = parts[part]()
        if not arguments.only:
            print(f"  written to {table.save(f'predict-{part}', machine, figures)}")


# --- accuracy ---------------------------------------------------------------------------------------------------------


def _accuracy(only: str) -> dict[str, Any]:
    from engine.executors.local import LocalExecutor
    from engine.spec import SpecError

    print(f"\n{'error of the peak: predicted, accelerate estimate-memory, parameters x bytes':100} {'measured':>15}")
    held: list[Held] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="peft-lab-bench-") as folder:
        asked = [one for one in all_specs(Path(folder, "models")) if only in one.architecture]
        executor = LocalExecutor()
        executor.start()
        for number, one in enumerate(asked, 1):
            print(f"\r  {number}/{len(asked)}", end="", file=sys.stderr, flush=True)
            try:
                found = list(_held(executor, one, Path(folder, str(number))))
            except (JobFailed, SpecError) as error:
                failed.append(f"{one.architecture}, {one.method}, {_asked_text(one.document)}: {error}")
                print(f"\r{failed[-1]}", flush=True)
                continue
            except KeyboardInterrupt:
                # What is cut short keeps what it had.
                print(f"\rinterrupted: {number - 1} of {len(asked)} specs were compared")
                break
            held += found
            print("".join(f"\r{peak.line()}\n" for peak in found), end="", flush=True)
    print()
    if failed:
        print(f"{len(failed)} specs could not be measured or predicted, and are not compared")
    summary = {name: _summary(name, rows) for name, rows in _groups(held).items()}
    peaks = [{**dataclasses.asdict(one), "spec": _without_folder(one.spec)} for one in held]
    return {"specs": len(asked), "peaks": peaks, "not_compared": failed, "summary": summary}


class JobFailed(RuntimeError):
    """A job that should have been measured ended otherwise; the text says how."""


def _held(executor: LocalExecutor, asked: Asked, folder: Path) -> Iterator[Held]:
    """Every peak that a spec's job has, measured and by each rule; the job runs while the rules are asked."""
    from engine.executors import Work
    from engine.jobs.predict import checked
    from engine.spec import InferenceSpec, InspectSpec, MergeFilesSpec, PredictSpec, TrainSpec, parse_spec
    from tests.benchmarks.estimates import accelerate_bytes, formula_bytes

    spec = parse_spec(asked.document)
    assert not isinstance(spec, InspectSpec | MergeFilesSpec | PredictSpec)
    while (lock := executor.lock("cpu")) is None:
        time.sleep(0.2)
    worker = executor.submit(Work.of(spec, folder), lock)
    lock.close()
    name = _PEAKS.get(spec.kind, "peak_bytes")
    predicted = {metric.variant: metric.value for metric in checked(spec).metrics() if metric.name == name}
    accelerate = accelerate_bytes(spec) if isinstance(spec, TrainSpec | InferenceSpec) else None
    measured = _measured(worker)
    formula = None
    if isinstance(spec, TrainSpec | InferenceSpec):
        formula = formula_bytes(spec, int(measured.get(("trainable_parameters", None), 0)))
    for variant, value in predicted.items():
        yield Held(
            spec.kind,
            asked.architecture,
            asked.method,
            _asked_text(asked.document),
            variant,
            int(measured[name, variant]),
            int(value),
            accelerate,
            formula,
            asked.document,
        )


def _measured(worker: LocalWorker) -> Mapping[tuple[str, str | None], float]:
    """The metrics of a job by name and variant, once it has ended.

    Raises:
        JobFailed: if it did not end well.
    """
    while worker.is_alive():
        time.sleep(0.02)
    document = worker.collect()
    if document["state"] != "succeeded":
        raise JobFailed(document["error"]["text"])
    return {(metric["name"], metric["variant"]): metric["value"] for metric in document["metrics"]}


def _asked_text(document: dict[str, Any]) -> str:
    section = document.get("train") or document.get("inference") or {}
    length = section.get("context_length") or section.get("prompt_tokens")
    words = [
        document["kind"],
        {"float32": "fp32", "bfloat16": "bf16"}[document["dtype"]],
        document["attention"],
        "" if length is None else f"{length} tokens",
        "checkpointing" if section.get("gradient_checkpointing") else "",
        document.get("strategy", ""),
    ]
    return " ".join(word for word in words if word)


def _without_folder(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "model": Path(spec["model"]).name}


def _groups(held: Sequence[Held]) -> dict[str, list[Held]]:
    """All peaks by kind, then training's by architecture."""
    found: dict[str, list[Held]] = {}
    for one in held:
        found.setdefault(one.kind, []).append(one)
    for one in held:
        if one.kind == "train":
            found.setdefault(f"train, {one.architecture}", []).append(one)
    return found


def _summary(name: str, held: Sequence[Held]) -> dict[str, Any]:
    """Median and worst error of each rule over some peaks, printed and returned."""
    specs = len({json.dumps(one.spec, sort_keys=True) for one in held})
    found: dict[str, Any] = {"specs": specs, "peaks": len(held)}
    print(f"{name}: {len(held)} peaks of {specs} specs")
    for rule in _RULES:
        errors = [abs(error) for error in (one.error(rule) for one in held) if error is not None]
        if not errors:
            continue
        median, worst = statistics.median(errors), max(errors)
        equal = sum(error == 0 for error in errors)
        found[rule] = {"median": median, "worst": worst, "n": len(errors), "equal": equal}
        line = f"  {rule:11} median {median:8.3%}  worst {worst:8.2%}  equal to the byte {equal}/{len(errors)}"
        if rule == "predicted":
            passed = median <= MEDIAN_ERROR and worst <= WORST_ERROR
            line += f"  {'pass' if passed else 'MISS'} (median <= {MEDIAN_ERROR:.1%}, worst <= {WORST_ERROR:.0%})"
        print(line)
    return found


# --- cost -------------------------------------------------------------------------------------------------------------

_CHILD = """
import json, sys, time
import engine.preload
from engine.measure.process_memory import read_process_memory
from engine.predict import predict
from engine.spec import parse_spec
seconds = []
for documents in json.loads(sys.argv[1]):
    start_s = time.perf_counter()
    for document in documents:
        predict(parse_spec({"kind": "train", **document}))
    seconds.append(time.perf_counter() - start_s)
print(json.dumps([seconds, read_process_memory().peak_rss_bytes]))
"""


def _cost(rounds: int) -> dict[str, Any]:
    """Seconds and process memory of predictions, each round in a fresh process in which another model came before."""
    from engine.measure.disturbance import BackgroundCpu

    warm = [{"model": "tiny-test"}]
    large: list[float] = []
    sweep: list[float] = []
    peaks_bytes: list[int] = []
    print(f"\n{table.HEADER}")
    with BackgroundCpu() as background:
        for number in range(rounds):
            print(f"\r  round {number + 1}/{rounds}", end="", file=sys.stderr, flush=True)
            (_, first_s), peak_bytes = _in_a_fresh_process([warm, [LARGE]])
            (_, sweep_s), _ = _in_a_fresh_process([warm, _SWEEP])
            large.append(first_s)
            sweep.append(sweep_s)
            peaks_bytes.append(peak_bytes)
    print(file=sys.stderr)
    print(table.row("llama-3.3-70b at 4096 tokens", large, LARGE_S))
    print(table.row("mistral-7b: 4 methods x 5 lengths", sweep, SWEEP_S))
    print(table.row("process peak for llama-3.3-70b, GB", [peak / 1e9 for peak in peaks_bytes], LARGE_BYTES / 1e9))
    share = background.share
    print(f"  CPU used by others meanwhile: {'unknown' if share is None else f'{share:.1%}'}")
    return {
        "llama_3_3_70b_s": large,
        "mistral_7b_sweep_s": sweep,
        "llama_3_3_70b_process_peak_bytes": peaks_bytes,
        "background_cpu_share": share,
    }


def _in_a_fresh_process(batches: list[list[dict[str, Any]]]) -> tuple[list[float], int]:
    """Seconds of each batch of predictions, one after another in one process, and the process's peak memory."""
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, json.dumps(batches)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    seconds, peak_bytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak_bytes


if __name__ == "__main__":
    main()
