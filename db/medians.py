"""Medians of metrics over their repeats, computed by the database, and which metrics are stored at all.

A metric is that of the run's main variant unless one is named. Statistics are never stored; the index on metrics makes
them quick to derive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Select, Subquery, case, exists, func, or_, select, union_all
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from db.chunks import chunks
from db.conditions import MetricField
from db.models import Metric, Run


class StoredMetric(NamedTuple):
    """A metric that some run has, the variants that it was taken on, and its unit."""

    name: str
    variants: tuple[str, ...]
    unit: str


def medians(
    session: Session, run_ids: Collection[int], fields: Collection[MetricField]
) -> dict[tuple[int, MetricField], float]:
    """The medians that exist among these runs and metrics, in stored units."""
    found: dict[tuple[int, MetricField], float] = {}
    ordered = sorted(set(fields), key=lambda field: field.variant or "")
    for variant, group in groupby(ordered, key=lambda field: field.variant):
        names = sorted(field.name for field in group)
        for chunk in chunks(run_ids):
            # A look-up per variant: the index finds a variant that is a value, not one that is a run's column.
            for own, ids in _by_main_variant(session, chunk) if variant is None else [(variant, chunk)]:
                values = _values(names).where(Metric.variant == own, Metric.run_id.in_(ids))
                rows = session.execute(_halved(values))
                found.update({(run_id, MetricField(name, variant)): value for run_id, name, value in rows})
    return found


def _by_main_variant(session: Session, run_ids: Collection[int]) -> list[tuple[str | None, Collection[int]]]:
    """Of all runs the values taken on no variant, then, as these come before them, those of their main variants."""
    of: dict[str, list[int]] = defaultdict(list)
    for run_id, variant in session.execute(select(Run.id, main_variant()).where(Run.id.in_(run_ids))):
        if variant is not None:
            of[variant].append(run_id)
    return [(None, run_ids), *of.items()]


def median_of(field: MetricField) -> Subquery:
    """One metric's median of every run that has it, as columns ``run_id`` and ``value``."""
    values = _values([field.name])
    if field.variant is not None:
        return _halved(values.where(Metric.variant == field.variant)).subquery()
    # Two plain look-ups: one with OR in it would not be answered by the index.
    of_the_main = _halved(values.join(Run, Run.id == Metric.run_id).where(Metric.variant == main_variant()))
    of_the_whole = _halved(values.where(Metric.variant.is_(None))).subquery()
    has_main = exists().where(
        Metric.name == of_the_whole.c.name, Metric.run_id == of_the_whole.c.run_id, Metric.variant == main_variant()
    )
    others = select(of_the_whole).join(Run, Run.id == of_the_whole.c.run_id).where(~has_main)
    return union_all(of_the_main, others).subquery()


def stored_metrics(session: Session) -> list[StoredMetric]:
    """Every metric that some run has, by name."""
    # Each step jumps to the next name (or variant) in the index: reading a million entries takes far longer.
    first = select(func.min(Metric.name).label("name")).cte("names", recursive=True)
    next_name = select(func.min(Metric.name)).where(Metric.name > first.c.name).scalar_subquery()
    names = first.union_all(select(next_name).where(first.c.name.is_not(None)))
    unit = select(Metric.unit).where(Metric.name == names.c.name).limit(1).scalar_subquery()
    units = {name: unit for name, unit in session.execute(select(names.c.name, unit).where(names.c.name.is_not(None)))}

    lowest = select(func.min(Metric.variant)).where(Metric.name == names.c.name).scalar_subquery()
    start = select(names.c.name, lowest.label("variant")).where(names.c.name.is_not(None))
    pairs = start.cte("pairs", recursive=True)
    next_variant = (
        select(func.min(Metric.variant))
        .where(Metric.name == pairs.c.name, Metric.variant > pairs.c.variant)
        .scalar_subquery()
    )
    pairs = pairs.union_all(select(pairs.c.name, next_variant).where(pairs.c.variant.is_not(None)))
    variants: dict[str, list[str]] = {}
    for name, variant in session.execute(select(pairs.c.name, pairs.c.variant).where(pairs.c.variant.is_not(None))):
        variants.setdefault(name, []).append(variant)
    return [StoredMetric(name, tuple(variants.get(name, ())), units[name]) for name in sorted(units)]


def main_variant() -> ColumnElement[str | None]:
    """The variant that a run is about: of an inference run the base, its strategy or stock PEFT; of others none."""
    own = case((or_(Run.strategy.is_(None), Run.strategy == "stock"), "adapter"), else_=Run.strategy)
    return case((Run.kind != "inference", None), (Run.adapter.is_(None), "base"), else_=own)


def _values(names: Collection[str]) -> Select[int, str, float]:
    return select(Metric.run_id, Metric.name, Metric.value).where(Metric.name.in_(names))


def _halved(values: Select[int, str, float]) -> Select[Any]:
    """The median of each run's values: the last of their lower half, or its mean with the first of the upper one."""
    # One window in the order of the index; a second one, for the count, would sort all values once more.
    half = func.ntile(2).over(partition_by=(Metric.name, Metric.run_id), order_by=Metric.value).label("half")
    halves = values.add_columns(half).subquery()
    value = halves.c.value
    lower = func.max(case((halves.c.half == 1, value)))
    upper = func.min(case((halves.c.half == 2, value)))
    median = case((func.count() % 2 == 1, lower), else_=(lower + upper) / 2)
    return select(halves.c.run_id, halves.c.name, median.label("value")).group_by(halves.c.name, halves.c.run_id)
