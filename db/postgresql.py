"""Everything particular to PostgreSQL: how it is connected to and locked, its size, and its errors in a person's words.

Knows no table. SQLite's particulars are in ``db.session``, which calls this module where an address is PostgreSQL's.
The driver (psycopg) is imported only then; ``make cluster`` installs it.
"""

from __future__ import annotations

import zlib
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError, SQLAlchemyError

CONNECT_TIMEOUT_S = 10
#: One state for all statements of a transaction, and nothing written: what SQLite's readers have, too.
READING: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def is_postgresql(url: URL) -> bool:
    """Whether an address is of a PostgreSQL server."""
    return url.get_backend_name() == "postgresql"


def create(url: URL, **options: Any) -> Engine:
    """The engine for an address. Connects to nothing yet.

    Raises:
        ImportError: when the driver is not installed.
    """
    settings = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "PEFT Lab", "client_encoding": "utf8"}
    chosen = {name: value for name, value in settings.items() if name not in url.query}
    # A connection that the server closed meanwhile (it was restarted) is noticed before it is used.
    engine = create_engine(url, pool_pre_ping=True, connect_args=chosen, **options)
    if engine.dialect.driver == "psycopg":
        event.listen(engine, "connect", _replace_nul)
    return engine


def encoding(connection: Connection) -> str:
    """How the database stores text: ``UTF8`` unless somebody chose otherwise."""
    return str(connection.exec_driver_sql("SHOW server_encoding").scalar_one())


def size_bytes(connection: Connection) -> int:
    """What the database takes on its server's disk, indexes and rows that are gone included."""
    return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())


def wait_for_turn(connection: Connection, what: str) -> None:
    """Hold the lock of this name until the transaction ends; whoever asks for the same one waits for that."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({zlib.crc32(f'PEFT Lab: {what}'.encode())})")


def forbid_sorting(connection: Connection) -> None:
    """Have the queries of this transaction read an index in its order where there is one.

    For the first of many thousand rows. Without this a server that has not counted them yet, as after a large launch,
    may collect and sort them all.
    """
    connection.exec_driver_sql("SET LOCAL enable_sort = off")


def limit_waiting(connection: Connection, seconds: float) -> None:
    """Have statements of this transaction fail that wait for a lock for longer; see ``has_waited_in_vain``."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seconds * 1000:.0f}ms'")


def has_waited_in_vain(error: SQLAlchemyError) -> bool:
    """Whether a statement gave up waiting for a lock."""
    return _sqlstate(error) == "55P03"


def may_pass(error: SQLAlchemyError) -> bool:
    """Whether the same may do when it is tried again: the server is away or full, or two transactions met."""
    return isinstance(error, OperationalError)


def reason(error: SQLAlchemyError) -> str:
    """One clause that a person can act on, from the server's own words."""
    words = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    said = words.rpartition("FATAL:")[2].strip()
    if said.startswith("database ") and said.endswith(" does not exist"):
        return f"cannot be opened: {said} on this server; create it first, with createdb"
    if _sqlstate(error) is None and "FATAL:" not in words:
        return f"cannot be reached: {said.rpartition(' failed: ')[2]}; check the address and that the server runs"
    if _sqlstate(error) in ("40001", "40P01"):
        return f"was kept by another transaction ({said}); try again"
    return f"cannot be used: {said}"


def _sqlstate(error: SQLAlchemyError) -> str | None:
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state


def _replace_nul(connection: Any, _record: Any) -> None:
    """Have the NUL character, which PostgreSQL cannot keep, sent as the replacement character.

    In what somebody types into a search it would be an error otherwise.
    """
    from psycopg.types.string import StrDumperUnknown

    class Dumper(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd"))

    connection.adapters.register_dumper(str, Dumper)
