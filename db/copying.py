"""A whole lab from one database into another, of another kind if need be: SQLite to PostgreSQL and back.

Every row of every table, each read back and compared, in one transaction: the target gets all of it or nothing. The
source is only read. Folders of runs on disk are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, select, text, tuple_
from sqlalchemy.exc import SQLAlchemyError

from db.bulk import insert_rows
from db.models import Base, Run
from db.session import Database, DatabaseError, open_database

_ROWS_AT_ONCE = 1000


def copy(source: str, target: str) -> dict[str, int]:
    """Copy everything that is stored, and go on numbering where the source does.

    Args:
        source: the address of a database of this version, or the path of a SQLite file. None of its runs may be
            running: nobody would end them in the copy.
        target: the address of an empty database, or the path of a SQLite file that need not exist.

    Returns:
        How many rows each table has.

    Raises:
        DatabaseError: in one sentence, when either cannot be used or a row did not arrive as it was. The target has
            no rows then.
    """
    giver = open_database(_address(source), migrate=False, named="SOURCE")
    try:
        giver.require_current()
        taker = open_database(_address(target), named="TARGET")
        try:
            return _copy(giver, taker)
        finally:
            taker.close()
    finally:
        giver.close()


def _copy(source: Database, target: Database) -> dict[str, int]:
    tables = Base.metadata.sorted_tables
    with source.reading() as reader, target.writing() as writer:
        running = reader.scalar(select(func.count()).select_from(Run).where(Run.state == "running"))
        if running:
            raise DatabaseError(
                f"{source}: {running} of its runs are running; let them end or cancel them, stop the dashboard and its "
                "supervisor, and copy again"
            )
        filled = [table.name for table in tables if writer.execute(select(table).limit(1)).first() is not None]
        if filled:
            raise DatabaseError(f"{target}: is not empty ({', '.join(filled)}); copy into a new database")
        try:
            return {table.name: _copy_table(reader.connection(), writer.connection(), table) for table in tables}
        except _Changed as change:
            raise DatabaseError(f"{target}: {change}; nothing was copied") from None
        except (SQLAlchemyError, ValueError) as error:
            what = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise DatabaseError(f"{target}: cannot take the copy: {what}; nothing was copied") from None


def _copy_table(reader: Connection, writer: Connection, table: Table) -> int:
    key = list(table.primary_key.columns)
    rows = reader.execution_options(yield_per=_ROWS_AT_ONCE).execute(select(table).order_by(*key)).mappings()
    count = 0
    for batch in rows.partitions():
        insert_rows(writer, table, [{column.name: row[column] for column in table.columns} for row in batch])
        keys = [tuple(row[column] for column in key) for row in batch]
        stored = writer.execute(select(table).where(tuple_(*key).in_(keys))).mappings().all()
        _compare(table, batch, stored)
        count += len(batch)
    if writer.scalar(select(func.count()).select_from(table)) != count:
        raise _Changed(f"another number of {table.name} arrived")
    if table.autoincrement_column is not None:
        _go_on_after(writer, table, _last_number(reader, table))
    return count


class _Changed(Exception):
    """A row that is not the same in the target. The text is a clause that names it."""


def _compare(table: Table, sent: Sequence[Mapping[Any, Any]], stored: Sequence[Mapping[Any, Any]]) -> None:
    key = list(table.primary_key.columns)
    found = {tuple(row[column] for column in key): row for row in stored}
    for row in sent:
        identity = tuple(row[column] for column in key)
        arrived = found.get(identity)
        for column in table.columns:
            if arrived is None or _spelled(arrived[column]) != _spelled(row[column]):
                which = " ".join(map(str, identity))
                raise _Changed(f"the column {column.name} of {table.name} {which} did not arrive as it was")


def _spelled(value: object) -> str:
    """A value's spelling, because 1, 1.0 and true are equal otherwise. SQLite keeps no sign of zero."""
    return repr(value + 0.0 if isinstance(value, float) else value)


def _last_number(connection: Connection, table: Table) -> int:
    """The highest number that a row of this table ever had, if it is known, or has."""
    number = table.autoincrement_column
    highest = connection.scalar(select(func.max(number))) or 0
    if connection.dialect.name == "postgresql":
        given = connection.scalar(
            text("SELECT pg_sequence_last_value(pg_get_serial_sequence(:table, 'id')::regclass)"), {"table": table.name}
        )
    elif table.dialect_options["sqlite"]["autoincrement"]:
        given = connection.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = :table"), {"table": table.name})
    else:
        given = None
    return max(highest, given or 0)


def _go_on_after(connection: Connection, table: Table, number: int) -> None:
    """Have the next row get a higher number than this one, so that no deleted run's is given to another."""
    values = {"table": table.name, "number": number}
    if number == 0:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :number)"), values)
    elif table.dialect_options["sqlite"]["autoincrement"]:
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :table"), values)
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :number)"), values)


def _address(given: str) -> str:
    """The address of a database; that of a file where a path was given."""
    return given if "://" in given else f"sqlite:///{Path(given).expanduser().absolute()}"
