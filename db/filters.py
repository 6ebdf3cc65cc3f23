"""Conditions and orders (``db.conditions``) as SQL. Values are always bound, never written into a statement.

The statement that takes the result selects from runs, outer-joined with their sweeps. Runs no query itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from sqlalchemy import CTE, ColumnElement, Double, Select, and_, false, func, literal, not_, or_, select, true

from db.conditions import (
    TEXT_COLUMNS,
    And,
    Column,
    Compare,
    Condition,
    EnvironmentField,
    Field,
    MetricField,
    Not,
    Operator,
    Or,
    Order,
    SpecField,
)
from db.json_fields import json_number, json_text
from db.medians import median_of
from db.models import Run, Sweep, Tag

_COLUMNS: dict[str, Any] = {
    **{name: getattr(Run, name) for name in ("state", "kind", "model", "adapter", "adapter_type", "strategy", "dtype")},
    **{name: getattr(Run, name) for name in ("device", "name", "note", "origin", "uid", "spec_hash")},
    **{name: getattr(Run, name) for name in ("id", "replica", "failed_checks", "background_cpu_share")},
    **{name: getattr(Run, f"{name}_at") for name in ("created", "started", "finished")},
    "sweep": Sweep.name,
    "error": Run.error_text,
}
# A sum, so that SQLite goes through the runs once: it would look up the ids of each side of an OR apart, and compute
# the medians of both for either.
_RUN_ID: ColumnElement[int] = Run.id + 0
_COMPARED: dict[Operator, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def arranged(query: Select[Any], where: Condition | None, order: Order) -> Select[Any]:
    """The statement with only the runs for which the condition holds, in this order."""
    medians: dict[MetricField, CTE] = {}
    if where is not None:
        query = query.where(_clause(where, medians))
    values: list[ColumnElement[Any]]
    match order.field:
        case MetricField() as field:
            found = _medians(field, medians)
            query = query.outerjoin(found, found.c.run_id == Run.id)
            values = [found.c.value]
        case Column("tag"):
            values = [select(func.min(Tag.name)).where(Tag.run_id == Run.id).scalar_subquery()]
        case Column(name):
            values = [func.lower(_COLUMNS[name]) if name in TEXT_COLUMNS else _COLUMNS[name]]
        case SpecField(path):
            values = [json_number(Run.spec, path), json_text(Run.spec, path)]
        case EnvironmentField(path):
            values = [json_number(Run.environment, path), json_text(Run.environment, path)]
    ways = [(value.desc() if order.is_descending else value.asc()).nulls_last() for value in values]
    return query.order_by(*ways, Run.id.desc())


def _medians(field: MetricField, medians: dict[MetricField, CTE]) -> CTE:
    """A metric's medians; one that is named twice is computed once."""
    return medians.setdefault(field, select(median_of(field)).cte(f"median_{len(medians)}"))


def _clause(condition: Condition, medians: dict[MetricField, CTE]) -> ColumnElement[bool]:
    """The condition as SQL that is true or false for every run, never NULL."""
    match condition:
        case And(parts):
            return and_(true(), *(_clause(part, medians) for part in parts))
        case Or(parts):
            return or_(false(), *(_clause(part, medians) for part in parts))
        case Not(part):
            return not_(_clause(part, medians))
        case Compare(field, "!=", value):
            return not_(_comparison(field, "=", value, medians))
        case Compare(field, wanted, value):
            return _comparison(field, wanted, value, medians)


def _comparison(
    field: Field, wanted: Operator, value: str | float | None, medians: dict[MetricField, CTE]
) -> ColumnElement[bool]:
    match field:
        case MetricField():
            found = _medians(field, medians)
            measured = select(found.c.run_id)
            if value is None:
                return _RUN_ID.not_in(measured)
            return _RUN_ID.in_(measured.where(_holds(found.c.value, wanted, value)))
        case Column("tag"):
            tagged = select(Tag.run_id)
            return (
                _RUN_ID.not_in(tagged) if value is None else _RUN_ID.in_(tagged.where(_holds(Tag.name, wanted, value)))
            )
        case Column(name):
            return _holds(_COLUMNS[name], wanted, value)
        case SpecField(path):
            return _holds(_json(Run.spec, path, value), wanted, value)
        case EnvironmentField(path):
            return _holds(_json(Run.environment, path, value), wanted, value)


def _json(column: Any, path: tuple[str, ...], value: str | float | None) -> ColumnElement[Any]:
    return json_number(column, path) if isinstance(value, float) else json_text(column, path)


def _holds(column: Any, wanted: Operator, value: str | float | None) -> ColumnElement[bool]:
    """Whether the column is there and stands to the value as wanted; of no value, whether the column is missing."""
    if value is None:
        missing: ColumnElement[bool] = column.is_(None)
        return missing
    # As what it is: bound as the column's type, 1.5 would be rounded for a column of whole numbers.
    compared = value if isinstance(value, str) else literal(value, Double())
    if wanted == "~":
        holds = column.icontains(value, autoescape=True)
    elif wanted == "=":
        # The database folds the case of both sides, so that what it cannot fold still equals itself.
        holds = func.lower(column) == func.lower(value) if isinstance(value, str) else column == compared
    else:
        holds = _COMPARED[wanted](column, compared)
    return and_(column.is_not(None), holds)
