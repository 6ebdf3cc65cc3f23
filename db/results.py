"""Writes a checked result into the tables: the run's own columns, its metrics and its thinned-out samples.

Shared by the end of a run and by imports. Does not check documents and does not decide whether they may be stored.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from db.bulk import insert_rows
from db.documents import ParsedResult
from db.downsampling import downsample
from db.models import Base, MemorySample, Metric


def result_columns(result: ParsedResult) -> dict[str, Any]:
    """The columns of ``runs`` that a result fills."""
    shares = [metric.value for metric in result.metrics if metric.name == "background_cpu_share"]
    return {
        "state": result.state,
        "error_kind": result.error_kind,
        "error_text": result.error_text,
        "environment": result.environment,
        "checks": result.checks,
        "failed_checks": sum(not check["passed"] for check in result.checks),
        "inspection": result.inspection,
        "background_cpu_share": max(shares, default=None),
    }


def insert_measurements(session: Session, run_id: int, result: ParsedResult) -> None:
    """Store the metrics as they are and the samples downsampled."""
    connection = session.connection()
    metrics = [{"run_id": run_id, **metric._asdict()} for metric in result.metrics]
    insert_rows(connection, Base.metadata.tables[Metric.__tablename__], metrics)
    samples = [
        # Spelled out, because there are thousands: twice as fast as their own way to become a dict.
        {"run_id": run_id, "source": source, "time_s": time_s, "phase": phase, "category": category, "bytes": size}
        for source, time_s, phase, category, size in downsample(list(result.samples))
    ]
    insert_rows(connection, Base.metadata.tables[MemorySample.__tablename__], samples)
