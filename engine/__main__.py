"""The command line: the same engine as the dashboard, for scripts and for machines without a browser.

Prints progress on stderr and one JSON document on stdout. Exit status 0 = done (also when the result is
``out_of_memory``), 2 = bad input (one sentence naming the field), 1 = failed. Measures nothing in its own process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.session import DatabaseError, home, open_database
from engine import catalog
from engine.executors import ExecutorError, Work, Worker
from engine.result import Progress, Result
from engine.secrets import masking
from engine.spec import (
    MEASURED_KINDS,
    InspectSpec,
    Measured,
    MergeFilesSpec,
    PlanSpec,
    PredictSpec,
    SpecError,
    parse_spec,
    spec_hash,
)

if TYPE_CHECKING:
    from engine.executors import Executor
    from engine.executors.local import LocalExecutor

DONE, FAILED, BAD_INPUT = 0, 1, 2
_LOOK_EVERY_S = 0.05
_START_METHODS = ("forkserver", "spawn")
_LARGEST_IMPORT_BYTES = 2 * 2**30


class BadInput(ValueError):
    """Something given on the command line cannot work; the text is one sentence that names it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    sys.stderr = masking(sys.stderr)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("engine").setLevel(logging.INFO)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (BadInput, SpecError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except (DatabaseError, ExecutorError) as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Measure PEFT adapters without a browser.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=command)
        return subparser

    measure = add("measure", _measure, "run one spec in a fresh process and print the result")
    measure.add_argument("spec", metavar="SPEC.json|-", help="a file with the spec, or - for standard input")
    predict = add("predict", _predict, "predict the peak memory of a spec, without its weights and its device")
    predict.add_argument("spec", metavar="SPEC.json|-", help="a file with the spec, or - for standard input")
    inspect = add("inspect", _inspect, "list a model's adaptable modules, shapes, counts and parameter totals")
    inspect.add_argument("model", metavar="MODEL", help="a bundled model, a folder with a config.json, or a hub id")
    merging = add("merge", _merge, "merge a LoRA or DoRA checkpoint into a model's files, from disk to disk")
    merging.add_argument("base", metavar="BASE", help="folder of the model: config.json and safetensors")
    merging.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter as PEFT saved it")
    merging.add_argument("out", metavar="OUT", help="folder to make; what an interrupted merge left there is resumed")
    add("catalog", _catalog, "list models, adapter types, strategies and the devices here")
    supervise = add("supervise", _supervise, "claim and run queued runs until stopped")
    supervise.add_argument(
        "--idle-exit", metavar="SECONDS", type=float, default=None, help="end after so long without work"
    )
    importing = add("import", _import, "store results measured elsewhere")
    importing.add_argument(
        "results",
        metavar="RESULT.json",
        nargs="+",
        help="one document or a list of them, as it is or as .json.gz; or -",
    )
    exporting = add("export", _export, "print stored results as documents")
    exporting.add_argument("run_ids", metavar="RUN_ID", nargs="+", type=int)
    return parser


# --- measuring ------------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace) -> int:
    spec = parse_spec(_read(options.spec, "SPEC.json"))
    if isinstance(spec, InspectSpec | PredictSpec | PlanSpec | MergeFilesSpec):
        command = {"merge_files": "merge", "plan": "predict"}.get(spec.kind, spec.kind)
        raise BadInput(f"kind: measure runs what is measured; for {spec.kind} use `python -m engine {command}`")
    _refuse_what_cannot_work(spec)
    executor = _executor()
    executor.start()
    lock = executor.lock(spec.device)
    if lock is None:
        print(f"Waiting for {spec.device}: another measurement is running", file=sys.stderr)
    while lock is None:
        time.sleep(0.2)
        lock = executor.lock(spec.device)
    with tempfile.TemporaryDirectory(prefix="peft-lab-") as folder:
        worker = executor.submit(Work.of(spec, Path(folder)), lock)
        lock.close()
        try:
            _show_phases(worker)
        finally:
            worker.cancel(("cancelled", "Interrupted"))
        document = worker.collect()
        log = Path(folder, "log.txt").read_text(errors="replace") if Path(folder, "log.txt").exists() else ""
    print(json.dumps(document))
    if document["error"] is not None:
        print("".join(f"{line}\n" for line in log.splitlines()[-20:]), end="", file=sys.stderr)
        print(document["error"]["text"], file=sys.stderr)
    return DONE if document["state"] in ("succeeded", "out_of_memory") else FAILED


def _show_phases(worker: Worker) -> None:
    """Wait for a worker, and show on stderr what it is at."""
    phase = ""
    while worker.is_alive():
        progress = worker.progress()
        if progress is not None and progress.phase != phase:
            phase = progress.phase
            print(f"{worker.age_s:7.1f} s  {phase}", file=sys.stderr)
        time.sleep(_LOOK_EVERY_S)


def _refuse_what_cannot_work(spec: Measured) -> None:
    from engine.catalog import requirements
    from engine.measure.environment import devices

    problems = requirements.problems(spec, devices(), None)
    if not problems:
        groups = catalog.models()[spec.model].groups if spec.model in catalog.models() else _groups_of(spec.model)
        problems = requirements.problems(spec, devices(), groups)
    if problems:
        raise problems[0]


def _groups_of(model: str) -> tuple[catalog.ModuleGroup, ...]:
    from engine.adapters import list_groups
    from engine.models import build_meta

    return tuple(list_groups(build_meta(model)))


def _executor() -> LocalExecutor:
    from engine.executors.local import LocalExecutor

    method = os.environ.get("PEFT_LAB_START_METHOD", "forkserver")
    if method not in _START_METHODS:
        raise BadInput(f"PEFT_LAB_START_METHOD: must be {' or '.join(_START_METHODS)}, not {method!r}")
    return LocalExecutor("spawn" if method == "spawn" else "forkserver")


# --- merging files ----------------------------------------------------------------------------------------------------


def _merge(options: argparse.Namespace) -> int:
    spec = parse_spec({"kind": "merge_files", "base": options.base, "adapter": options.adapter, "out": options.out})
    assert isinstance(spec, MergeFilesSpec)
    from engine.catalog.kinds.merge_files import problems

    # Before the libraries are imported, which takes seconds.
    for problem in problems(spec):
        raise problem
    from engine.jobs.merge_files import MergeStopped, merge

    try:
        document = merge(spec, _progress_printer())
    except MergeStopped as error:
        print(error, file=sys.stderr)
        return FAILED
    print(json.dumps(document))
    return DONE


def _progress_printer(every_s: float = 1.0) -> Callable[[Progress], None]:
    """Prints where a job is on stderr: each phase at once, its steps every so often."""
    start_s = last_s = time.monotonic()
    phase = ""

    def show(progress: Progress) -> None:
        nonlocal last_s, phase
        now_s = time.monotonic()
        if progress.phase == phase and now_s - last_s < every_s:
            return
        phase, last_s = progress.phase, now_s
        steps = f" {progress.done} of {progress.total}" if progress.total else ""
        left = f", about {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
        print(f"{now_s - start_s:7.1f} s  {phase}{steps}{left}", file=sys.stderr)

    return show


# --- predicting -----------------------------------------------------------------------------------------------------


def _predict(options: argparse.Namespace) -> int:
    spec = parse_spec(_read(options.spec, "SPEC.json"))
    if isinstance(spec, InspectSpec | MergeFilesSpec):
        raise BadInput(f"kind: must be one of {', '.join((*MEASURED_KINDS, 'predict', 'plan'))}, not {spec.kind}")
    from engine.jobs import plan, predict
    from engine.measure.environment import environment

    if isinstance(spec, PlanSpec):
        outcome = plan.run(spec, _progress_printer())
    elif isinstance(spec, PredictSpec):
        outcome = predict.run(spec, _progress_printer())
    else:
        outcome = predict.single(spec)
        # What is stored or imported is a prediction, never a measurement.
        spec = PredictSpec(of=(spec,))
    result = Result(
        state="succeeded",
        spec=spec.model_dump(mode="json"),
        spec_hash=spec_hash(spec),
        metrics=outcome.metrics,
        samples=outcome.samples,
        environment=environment(),
        inspection=outcome.inspection,
    )
    print(json.dumps(result.to_document()))
    return DONE


# --- looking --------------------------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> int:
    from engine.inspection import inspect_model

    print(json.dumps(inspect_model(options.model)))
    return DONE


def _catalog(_options: argparse.Namespace) -> int:
    from engine.measure.environment import devices

    document = {
        "models": {key: asdict(entry) for key, entry in catalog.models().items()},
        "adapter_types": {key: asdict(entry) for key, entry in catalog.adapter_types().items()},
        "strategies": {kind: [asdict(entry) for entry in catalog.strategies(kind)] for kind in MEASURED_KINDS},
        "devices": [asdict(device) for device in devices()],
    }
    print(json.dumps(document, default=_plain))
    return DONE


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset | set) else dict(value)


# --- the database ---------------------------------------------------------------------------------------------------


def _supervise(options: argparse.Namespace) -> int:
    from engine.supervisor import AlreadySupervised, Supervisor, hold_lock

    folder = home()
    try:
        hold_lock(folder)
    except AlreadySupervised as error:
        print(error, file=sys.stderr)
        return FAILED
    database = open_database()
    supervisor = Supervisor(database, folder, _place_of_runs())
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    supervisor.run(options.idle_exit)
    database.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # multiprocessing would wait here for running workers; they go on alone and the next supervisor adopts them.
    os._exit(DONE)


def _place_of_runs() -> Executor:
    """Where queued runs are measured: this machine, or the cluster that ``PEFT_LAB_EXECUTOR`` names."""
    address = os.environ.get("PEFT_LAB_EXECUTOR") or "local"
    local = _executor()
    if address == "local":
        return local
    try:
        from engine.executors.ray import RayExecutor
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise BadInput("PEFT_LAB_EXECUTOR: Ray is not installed here; run `make cluster`") from None
    return RayExecutor(address, local)


def _import(options: argparse.Namespace) -> int:
    from db import actions, transfer
    from engine.catalog.documents import document_spec

    database = open_database()
    stored, status = [], DONE
    for name in options.results:
        try:
            data = _read_bytes(name)
            checked = transfer.check_file(data, document_spec, largest_bytes=_LARGEST_IMPORT_BYTES)
        except (BadInput, transfer.ImportRefused) as error:
            # A bad file keeps no good one out, and nothing of it is stored.
            print(error if isinstance(error, BadInput) else f"{name}: {error}", file=sys.stderr)
            status = BAD_INPUT
            continue
        with database.writing() as db:
            found = transfer.store_runs(db, checked)
            if new := [run_id for run_id, created in found if created]:
                actions.record(db, actions.os_user(), "import", new, Path(name).name)
        stored += [{"file": name, "run_id": run_id, "created": created} for run_id, created in found]
    print(json.dumps(stored))
    return status


def _export(options: argparse.Namespace) -> int:
    from db import transfer

    database = open_database()
    try:
        with database.reading() as db:
            documents = [transfer.export_document(db, run_id) for run_id in options.run_ids]
    except transfer.UnknownRun as error:
        raise BadInput(f"RUN_ID: {error}") from None
    print(json.dumps(documents[0] if len(documents) == 1 else documents))
    return DONE


def _read(name: str, what: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error.strerror).lower()
        raise BadInput(f"{what}: {name} cannot be read: {reason}") from None


def _read_bytes(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise BadInput(f"RESULT.json: {name} cannot be read: {str(error.strerror).lower()}") from None


if __name__ == "__main__":
    sys.exit(main())
