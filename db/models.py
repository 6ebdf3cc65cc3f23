"""The tables, as typed SQLAlchemy models.

Columns and constraints only: no queries and no behaviour. Names that end in ``_at`` are seconds since 1970 (UTC),
memory is in bytes. A change here needs a new migration under ``db/migrations/versions``; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Integer, MetaData, String, Text, desc
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Samples are counted by the thousand millions. SQLite's integers all have 64 bits, and it numbers rows only where the
# type has just this name.
Id = BigInteger().with_variant(Integer(), "sqlite")
Json = dict[str, Any]
JsonList = list[Json]


class Base(DeclarativeBase):
    """Base of every table: fixed constraint names (migrations need them) and one type per Python type."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - the attribute is SQLAlchemy's
        str: String(),
        float: Double(),
        Json: JSON(none_as_null=True),
        JsonList: JSON(none_as_null=True),
    }


class Sweep(Base):
    """Runs that were launched together."""

    __tablename__ = "sweeps"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    created_at: Mapped[float]


class Run(Base):
    """One spec executed once. While it is ``queued`` or ``running`` this row is also the queue's entry."""

    __tablename__ = "runs"
    __table_args__ = (
        # The claim reads the first row of this index: one state, highest priority first, oldest first.
        Index("ix_runs_claim", "state", desc("priority"), "id"),
        Index("ix_runs_spec_hash_state", "spec_hash", "state"),
        # An id is part of addresses that people keep, so that of a deleted run is never given to another.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(index=True)
    state: Mapped[str]
    priority: Mapped[int] = mapped_column(default=0)
    origin: Mapped[str] = mapped_column(default="local")

    spec: Mapped[Json]
    spec_hash: Mapped[str]
    model: Mapped[str] = mapped_column(index=True)
    adapter: Mapped[str | None] = mapped_column(index=True)
    adapter_type: Mapped[str | None]
    strategy: Mapped[str | None]
    dtype: Mapped[str | None]
    device: Mapped[str] = mapped_column(index=True)
    node: Mapped[str | None]
    device_type: Mapped[str | None]
    sweep_id: Mapped[int | None] = mapped_column(Id, ForeignKey("sweeps.id", ondelete="SET NULL"), index=True)
    replica: Mapped[int] = mapped_column(default=0)

    created_at: Mapped[float]
    claimed_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None] = mapped_column(index=True)
    heartbeat_at: Mapped[float | None]
    archived_at: Mapped[float | None]

    supervisor: Mapped[str | None]
    worker_pid: Mapped[int | None]
    worker_process_started_at: Mapped[float | None]
    run_folder: Mapped[str | None]
    progress: Mapped[Json | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)

    error_kind: Mapped[str | None]
    error_text: Mapped[str | None] = mapped_column(Text)
    environment: Mapped[Json | None]
    checks: Mapped[JsonList | None]
    failed_checks: Mapped[int | None]
    inspection: Mapped[Json | None]
    background_cpu_share: Mapped[float | None]

    name: Mapped[str | None]
    note: Mapped[str | None] = mapped_column(Text)


class Metric(Base):
    """One measured number of one run. ``x`` is the position along an axis where the metric has one."""

    __tablename__ = "metrics"
    __table_args__ = (
        Index("ix_metrics_run_id_name", "run_id", "name"),
        # Answers medians over all runs, and which metrics there are, without a look at the table.
        Index("ix_metrics_name_variant_run_id_value", "name", "variant", "run_id", "value"),
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    run_id: Mapped[int] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    name: Mapped[str]
    unit: Mapped[str]
    variant: Mapped[str | None]
    x: Mapped[float | None]
    repeat: Mapped[int]
    value: Mapped[float]


class MemorySample(Base):
    """Memory of one run at one moment, in one category as one source saw it."""

    __tablename__ = "memory_samples"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    run_id: Mapped[int] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    source: Mapped[str]
    time_s: Mapped[float]
    phase: Mapped[str]
    category: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)


class Prediction(Base):
    """What a spec was predicted to take, or why it cannot be predicted, under the key of what decides that."""

    __tablename__ = "predictions"

    key: Mapped[str] = mapped_column(primary_key=True)
    spec_hash: Mapped[str] = mapped_column(index=True)
    card: Mapped[str | None]
    document: Mapped[Json]
    # Apart from the rest, as lists of predictions do without it and it is most of the bytes.
    course: Mapped[JsonList]
    created_at: Mapped[float]


class Node(Base):
    """A machine whose devices runs can be measured on, as the supervisor last saw it."""

    __tablename__ = "nodes"

    name: Mapped[str] = mapped_column(primary_key=True)
    is_head: Mapped[bool]
    state: Mapped[str]
    problem: Mapped[str | None] = mapped_column(Text)
    versions: Mapped[Json]
    seen_at: Mapped[float]


class Device(Base):
    """A device of a node."""

    __tablename__ = "devices"

    node: Mapped[str] = mapped_column(ForeignKey("nodes.name", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    dtypes: Mapped[list[str]] = mapped_column(JSON)
    driver: Mapped[str | None]


class Tag(Base):
    """One word that a person put on a run."""

    __tablename__ = "tags"

    run_id: Mapped[int] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True, index=True)


class Action(Base):
    """Something that a person did to what is stored. ``run_ids`` is text, "3, 7-12"; empty where no run was meant."""

    __tablename__ = "actions"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    done_at: Mapped[float]
    person: Mapped[str]
    action: Mapped[str]
    run_ids: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
