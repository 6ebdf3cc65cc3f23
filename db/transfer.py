"""Result documents from elsewhere into the database, and stored runs back into the same documents.

Documents are plain mappings; reading and writing files is the caller's. Does not check whether a spec makes sense.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from db.documents import TIMING_FIELDS, DocumentRefused, parse_run
from db.models import MemorySample, Metric, Run, Tag
from db.queue import next_replicas
from db.results import insert_measurements, result_columns


class ImportRefused(ValueError):
    """A document that cannot be stored. The text is one sentence that starts with the field at fault."""


def import_document(
    session: Session, document: Mapping[str, Any], *, adapter: str | None = None, adapter_type: str | None = None
) -> tuple[int, bool]:
    """Store a result that was measured elsewhere. Returns the run's id and whether it is new here.

    A document that is here already, by its uid or else by its content, is not stored again. ``adapter`` is the label
    that pages show ("DoRA"), ``adapter_type`` its PEFT type; by default both come from the document.

    Raises:
        ImportRefused: naming the field at fault; nothing is stored.
    """
    try:
        run = parse_run(document)
    except DocumentRefused as error:
        raise ImportRefused(str(error)) from None
    known = session.scalar(select(Run.id).where(Run.uid == run.uid))
    if known is not None:
        return known, False
    # The savepoint keeps a caller who goes on with the next document from committing half of this one.
    with session.begin_nested():
        columns = {
            "uid": run.uid,
            "kind": run.kind,
            "origin": "import",
            "spec": run.spec,
            "spec_hash": run.spec_hash,
            "model": run.model,
            "adapter": adapter or run.adapter,
            "adapter_type": adapter_type or run.adapter_type,
            "strategy": run.strategy,
            "dtype": run.dtype,
            "device": run.device,
            "replica": next_replicas(session, [run.spec_hash])[run.spec_hash],
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
        LookupError: when there is no such run; the text is one sentence.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise LookupError(f"run {run_id}: does not exist")
    metrics = select(Metric.name, Metric.unit, Metric.value, Metric.variant, Metric.x, Metric.repeat)
    samples = select(
        MemorySample.source, MemorySample.time_s, MemorySample.phase, MemorySample.category, MemorySample.bytes
    )
    failed = run.error_kind is not None or run.error_text is not None
    return {
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
