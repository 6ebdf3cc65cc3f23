"""A value inside a JSON column as text or as a number, in SQLite's words and in PostgreSQL's.

The one place where reading JSON differs between databases. Both forms are NULL where there is no such value; a number
is never taken from text, nor an error made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Double, String, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class _JsonText(FunctionElement[str]):
    name = "json_text"
    type = String()
    inherit_cache = True


class _JsonNumber(FunctionElement[float]):
    name = "json_number"
    type = Double()
    inherit_cache = True


def json_text(column: Any, path: Sequence[str]) -> FunctionElement[str]:
    """The value at ``path`` as text: ``true`` and ``false`` as words, lists and objects as JSON."""
    return _JsonText(column, *(literal(part) for part in path))


def json_number(column: Any, path: Sequence[str]) -> FunctionElement[float]:
    """The value at ``path`` where it is a number."""
    return _JsonNumber(column, *(literal(part) for part in path))


@compiles(_JsonText)
def _postgresql_text(element: _JsonText, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_extract_path_text({compiler.process(element.clauses, **options)})"


@compiles(_JsonNumber)
def _postgresql_number(element: _JsonNumber, compiler: SQLCompiler, **options: Any) -> str:
    arguments = compiler.process(element.clauses, **options)
    return (
        f"CASE WHEN json_typeof(json_extract_path({arguments})) = 'number' "
        f"THEN CAST(json_extract_path_text({arguments}) AS DOUBLE PRECISION) END"
    )


@compiles(_JsonText, "sqlite")
def _sqlite_text(element: _JsonText, compiler: SQLCompiler, **options: Any) -> str:
    arguments = _sqlite_arguments(element, compiler, options)
    # SQLite has no booleans: it would give 1 and 0.
    return (
        f"CASE json_type({arguments}) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' "
        f"ELSE CAST(json_extract({arguments}) AS TEXT) END"
    )


@compiles(_JsonNumber, "sqlite")
def _sqlite_number(element: _JsonNumber, compiler: SQLCompiler, **options: Any) -> str:
    arguments = _sqlite_arguments(element, compiler, options)
    return f"CASE WHEN json_type({arguments}) IN ('integer', 'real') THEN json_extract({arguments}) END"


def _sqlite_arguments(element: FunctionElement[Any], compiler: SQLCompiler, options: dict[str, Any]) -> str:
    """The column and its path as SQLite writes it, ``$."train"."rank"``, put together from bound values."""
    column, *path = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column}, '$' || " + " || ".join(f"""'."' || {part} || '"'""" for part in path)
