"""The database that bench_scale measures on is as large and as mixed as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

from db import runs
from db.models import Metric, Run
from db.session import Database
from engine.spec import MEASURED_KINDS, parse_spec, spec_hash
from tests.benchmarks.seeding import seed

RUNS, VALUES = 200, 22_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seed(tmp_path_factory.mktemp("seeded"), RUNS, VALUES)


def test_it_has_exactly_as_many_runs_and_values_as_asked_for(filled: Path) -> None:
    database = Database(f"sqlite:///{filled}")
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == RUNS
        assert session.scalar(select(func.count()).select_from(Metric)) == VALUES
    database.close()


def test_runs_are_of_every_kind_and_machine_and_of_several_states_and_their_specs_are_valid(
    filled: Path,
) -> None:
    database = Database(f"sqlite:///{filled}")
    with database.reading() as session:
        rows = runs.list_runs(session, include_archived=True)
        environments = runs.environments(session, [row.id for row in rows])
    database.close()
    assert {row.kind for row in rows} == set(MEASURED_KINDS)
    assert {row.state for row in rows} > {"succeeded", "out_of_memory"}
    assert {environment["packages"]["peft"] for environment in environments.values()} == {"0.20.0", "0.21.2"}
    assert all(spec_hash(parse_spec(row.spec)) == row.spec_hash for row in rows)


def test_a_database_that_is_there_is_used_again(filled: Path) -> None:
    made_at = filled.stat().st_mtime_ns
    assert seed(filled.parent, RUNS, VALUES) == filled
    assert filled.stat().st_mtime_ns == made_at


def test_a_number_of_values_that_so_many_runs_never_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"200 runs have about .* values; choose a number near it"):
        seed(tmp_path, RUNS, 5)
