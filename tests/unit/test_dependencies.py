"""Dependencies point one way: app -> db and the data half of engine; engine's supervisor -> db; db -> nothing."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA_HALF = ("engine.spec", "engine.catalog", "engine.cases", "engine.result")
#: What a lab on one machine never imports.
ONLY_WITH_A_CLUSTER = (ROOT / "db/postgresql.py", ROOT / "engine/executors/ray.py")
HEAVY = {"torch", "transformers", "peft", "accelerate"}


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, as absolute dotted names (``from a import b`` gives ``a.b``)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def is_under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_database_package_imports_nothing_of_ours() -> None:
    for path in files("db"):
        for name in imports_of(path):
            assert not is_under(name, "app", "engine"), f"{path} imports {name}"


def test_the_engine_imports_neither_the_app_nor_the_database_outside_its_doors() -> None:
    for path in files("engine"):
        may_use_db = path.relative_to(ROOT / "engine").as_posix() in ("supervisor.py", "__main__.py")
        for name in imports_of(path):
            assert not is_under(name, "app"), f"{path} imports {name}"
            assert may_use_db or not is_under(name, "db"), f"{path} imports {name}"


def test_the_app_imports_only_the_data_half_of_the_engine() -> None:
    for path in files("app"):
        for name in imports_of(path):
            if is_under(name, "engine"):
                assert is_under(name, *DATA_HALF), f"{path} imports {name}"


@pytest.mark.parametrize("package", ["app", "engine/catalog", "engine/cases"])
def test_nothing_that_a_page_loads_imports_torch(package: str) -> None:
    for path in [*files(package), ROOT / "engine/spec.py", ROOT / "engine/result.py"]:
        for name in imports_of(path):
            assert name.split(".")[0] not in HEAVY, f"{path} imports {name}"


def test_the_top_level_holds_only_what_the_design_names() -> None:
    allowed = {"app", "engine", "db", "tests", "docs", ".streamlit", ".ci", ".git", ".gitignore", "requirements.txt"}
    allowed |= {"README.md", "Makefile", "pyproject.toml", "LICENSE"}
    ignored = {".venv", "data", ".mypy_cache", ".pytest_cache", ".hypothesis", ".ruff_cache", "__pycache__"}
    assert {path.name for path in ROOT.iterdir()} - ignored <= allowed


def test_every_library_that_is_imported_is_pinned() -> None:
    """One that only another library brings along may be gone with that one's next version."""
    distributions = importlib.metadata.packages_distributions()
    pinned: set[str] = set()
    for requirements, packages, left_out in (
        ("requirements.txt", ("app", "db", "engine"), ONLY_WITH_A_CLUSTER),
        ("engine/executors/requirements-cluster.txt", ("db", "engine"), ()),
        ("tests/requirements.txt", ("tests",), ()),
    ):
        lines = (ROOT / requirements).read_text().splitlines()
        pinned |= {_normal(line.partition("==")[0].partition("[")[0]) for line in lines if "==" in line}
        for path in [path for package in packages for path in files(package) if path not in left_out]:
            for name in imports_of(path):
                found = {_normal(one) for one in distributions.get(name.partition(".")[0], ())}
                assert not found or found & pinned, f"{path} imports {name}"


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_requirement_is_pinned_exactly() -> None:
    for path in (ROOT / "requirements.txt", ROOT / "tests/requirements.txt", *ROOT.glob("engine/**/requirements*.txt")):
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert "==" in line, f"{path.name}: {line}"
