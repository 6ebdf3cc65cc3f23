"""Result documents from elsewhere into the database, and stored runs back into the same documents.

Documents are plain mappings, and files of them bytes; opening files is the caller's. What a spec means is not known
here: whoever imports a file brings the function that does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from db.documents import FORMAT, TIMING_FIELDS, DocumentRefused, ParsedRun, canonical_sha256, parse_run
from db.downsampling import downsample
from db.files import FileRefused, documents
from db.locks import take_turn
from db.models import MemorySample, Metric, Run, Tag
from db.packing import PackedSamples
from db.queue import next_replicas
from db.results import insert_measurements, result_columns


class ImportRefused(ValueError):
    """A file that cannot be stored. The text is one sentence, which names the document and field that are at fault."""


class UnknownRun(LookupError):
    """A run that is not stored. The text is one sentence."""


class Described(Protocol):
    """What only the engine can say of a document's spec: its whole form, that form's hash, and the adapter's label."""

    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def spec_hash(self) -> str: ...
    @property
    def adapter(self) -> str | None: ...


Describe = Callable[[Mapping[str, Any]], Described]
"""Takes a document's spec; raises ValueError with one sentence when it makes no sense."""


def check_file(
    data: bytes, describe: Describe, *, largest_bytes: int, progress: Callable[[int], None] | None = None
) -> list[ParsedRun]:
    """The runs in a file, every one of them checked and ready for ``store_runs``. Stores nothing.

    Args:
        largest_bytes: how much the file may hold when it is unpacked.
        progress: called with the number of documents checked so far.

    Raises:
        ImportRefused: with one sentence about the file, or that names the document and its field.
    """
    checked: list[ParsedRun] = []
    in_list = False
    try:
        for document, is_alone in documents(data, largest_bytes):
            in_list = not is_alone
            checked.append(_checked(document, describe))
            if progress is not None:
                progress(len(checked))
    except FileRefused as error:
        raise ImportRefused(str(error)) from None
    except ValueError as error:
        raise ImportRefused(f"document {len(checked) + 1}: {error}" if in_list else str(error)) from None
    return checked


def store_runs(
    session: Session,
    checked: Iterable[ParsedRun],
    *,
    origin: str = "import",
    progress: Callable[[int], None] | None = None,
) -> list[tuple[int, bool]]:
    """Store every checked run that is not here yet, by its uid. Returns each run's id and whether it is new here.

    Args:
        origin: "import", or "sample" for the runs that come with the project.
        progress: called with the number of runs done so far.
    """
    take_turn(session, "new runs")
    stored = []
    for run in checked:
        stored.append(_store(session, run, origin))
        if progress is not None:
            progress(len(stored))
    return stored


def _checked(document: object, describe: Describe) -> ParsedRun:
    """A document's run with its spec in whole form.

    Raises:
        ValueError: one sentence that starts with the field at fault.
    """
    run = parse_run(document)
    described = describe(run.spec)
    # A wrong hash would make it a replica of runs that measured something else.
    if run.spec_hash not in (canonical_sha256(run.spec), described.spec_hash):
        raise DocumentRefused("spec_hash: must be the hash of this spec")
    if run.result.inspection is not None:
        raise DocumentRefused("inspection: must be null, because a measurement inspects nothing")
    samples = PackedSamples(downsample(run.result.samples))
    return replace(
        run,
        spec=described.spec,
        spec_hash=described.spec_hash,
        adapter=run.adapter or described.adapter,
        result=replace(run.result, samples=samples),
    )


def _store(session: Session, run: ParsedRun, origin: str) -> tuple[int, bool]:
    """The id of the run, and whether it had to be stored."""
    known = session.scalar(select(Run.id).where(Run.uid == run.uid))
    if known is not None:
        return known, False
    # The savepoint keeps a caller who goes on with the next document from committing half of this one.
    with session.begin_nested():
        columns = {
            "uid": run.uid,
            "kind": run.kind,
            "origin": origin,
            "spec": run.spec,
            "spec_hash": run.spec_hash,
            "model": run.model,
            "adapter": run.adapter,
            "adapter_type": run.adapter_type,
            "strategy": run.strategy,
            "dtype": run.dtype,
            "device": run.device,
            "replica": next_replicas(session, [run.spec_hash], origin)[run.spec_hash],
            "created_at": time.time(),
            "name": run.name,
            "note": run.note,
            **run.timing,
            **result_columns(run.result),
        }
        run_id = session.scalars(insert(Run).values(columns).returning(Run.id)).one()
        insert_measurements(session, run_id, run.result)
        if run.tags:
            session.execute(insert(Tag), [{"run_id": run_id, "name": name} for name in sorted(set(run.tags))])
    return run_id, True


def export_document(session: Session, run_id: int) -> dict[str, Any]:
    """The result document of a run, with its uid, timing, labels, name, note and tags.

    A run that has not ended gives what is known so far; such a document says so by its state and cannot be imported.

    Raises:
        UnknownRun: when there is none of this id.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise UnknownRun(f"there is no run {run_id}")
    metrics = select(Metric.name, Metric.unit, Metric.value, Metric.variant, Metric.x, Metric.repeat)
    samples = select(
        MemorySample.source, MemorySample.time_s, MemorySample.phase, MemorySample.category, MemorySample.bytes
    )
    failed = run.error_kind is not None or run.error_text is not None
    return {
        "format": FORMAT,
        "uid": run.uid,
        "state": run.state,
        "spec": run.spec,
        "spec_hash": run.spec_hash,
        "metrics": [
            dict(row._mapping) for row in session.execute(metrics.filter_by(run_id=run_id).order_by(Metric.id))
        ],
        "checks": run.checks or [],
        "samples": [
            dict(row._mapping) for row in session.execute(samples.filter_by(run_id=run_id).order_by(MemorySample.id))
        ],
        "environment": run.environment or {},
        "error": {"kind": run.error_kind, "text": run.error_text} if failed else None,
        "inspection": run.inspection,
        "timing": {name: getattr(run, name) for name in TIMING_FIELDS},
        "adapter": run.adapter,
        "adapter_type": run.adapter_type,
        "name": run.name,
        "note": run.note,
        "tags": list(session.scalars(select(Tag.name).where(Tag.run_id == run_id).order_by(Tag.name))),
    }


def ids_of_origin(session: Session, origin: str) -> list[int]:
    """The ids of the runs that came this way, archived ones too."""
    return list(session.scalars(select(Run.id).where(Run.origin == origin).order_by(Run.id)))
