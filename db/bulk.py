"""Inserts rows by the thousand, past the object mapping. Gives back no ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, Connection, Table, func, insert, literal, select
from sqlalchemy.dialects.postgresql import ARRAY


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert these rows, which all have the same columns, in their order."""
    if not rows:
        return
    names = list(rows[0])
    has_json = any(isinstance(table.c[name].type, JSON) for name in names)
    if connection.dialect.name != "postgresql" or has_json:
        connection.execute(insert(table), rows)
        return
    # A list for each column in place of a message for each row: about five times as fast.
    lists = [literal([row[name] for row in rows], ARRAY(table.c[name].type)) for name in names]
    together = func.unnest(*lists).table_valued(*names).render_derived()
    connection.execute(insert(table).from_select(names, select(*(together.c[name] for name in names))))
