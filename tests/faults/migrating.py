"""Processes that are killed while they bring a database of an older version up to date, and what is left of it.

Two start at once on each copy of an old database, as two dashboards may; one is ended in a line of its migration or of
the backup before it. A third comes later, as whoever starts the dashboard again.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData, Table, create_engine

from db import backups
from db.session import MIGRATIONS, DatabaseError, schema_revisions
from tests.faults.campaign import Fault, Moment, Report
from tests.faults.lab import ALEMBIC, Lab

MIGRATION = Moment(
    "migration",
    (
        *(f"db/session.py:{function}" for function in ("upgrade", "_is_current", "_back_up_first", "_migrate")),
        *(f"db/backups.py:{function}" for function in ("_", "back_up", "check")),
        "db/migrations/",
    ),
    160,
)
_RUNS = 200


def old_database(path: Path) -> None:
    """A database as the first version of the project left it, with runs and their metrics."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{path}")
    with ALEMBIC, engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema_revisions()[0])
        tables = MetaData()
        rows = [_old_run(number) for number in range(1, _RUNS + 1)]
        connection.execute(Table("runs", tables, autoload_with=connection).insert(), rows)
        values = [
            {"run_id": run["id"], "name": "init_time_s", "unit": "s", "repeat": repeat, "value": repeat / 8}
            for run in rows
            for repeat in range(5)
        ]
        connection.execute(Table("metrics", tables, autoload_with=connection).insert(), values)
    engine.dispose()


def run(home: Path, count: int, seed: int) -> Report:
    """Kill so many migrations, each on a copy of its own of the old database, and look for losses after each."""
    chance = random.Random(seed)
    home.mkdir(parents=True)
    old = home / "old.sqlite3"
    old_database(old)
    report = Report(planned=count)
    for number in range(count):
        fault = Fault(number, MIGRATION, chance.randint(1, MIGRATION.lines), ("self",))
        lab = Lab(home / str(number))
        try:
            _migrate(lab, old, fault, report)
        finally:
            lab.close()
    return report


def _migrate(lab: Lab, old: Path, fault: Fault, report: Report) -> None:
    database = lab.home / "peft-lab.sqlite3"
    shutil.copy(old, database)
    lab.arm(fault.number, fault.moment.places, fault.line, fault.victims)
    for process in [lab.start("-m", "db", "upgrade") for _ in range(2)]:
        process.wait(timeout=120)
    lab.disarm()
    report.fired += [(fault, fired) for fired in lab.fired()]
    again = lab.start("-m", "db", "upgrade")
    if again.wait(timeout=120) != 0:
        report.losses.append(f"migration {fault.number}: the database cannot be opened again")
    report.losses += [f"migration {fault.number}: {sentence}" for sentence in _losses(lab, database, old)]
    shutil.rmtree(lab.home)


def _losses(lab: Lab, database: Path, old: Path) -> list[str]:
    found = [f"process {pid} is left over" for pid in lab.processes()]
    made = sorted(backups.folder_of(database).glob("*.sqlite3"))
    try:
        if backups.check(database) != schema_revisions()[-1]:
            found.append("the schema is not the newest")
        if not any(backups.check(backup) == schema_revisions()[0] for backup in made):
            found.append("there is no backup from before")
    except DatabaseError as error:
        found.append(str(error))
    found += [f"{file.name} has other rows than before" for file in (database, *made) if _rows(file) != _rows(old)]
    return found


def _rows(path: Path) -> list[Any]:
    """What the tables of the first version hold, in its columns."""
    with closing(sqlite3.connect(path)) as connection:
        found: list[Any] = connection.execute("SELECT id, uid, state, spec, spec_hash FROM runs ORDER BY id").fetchall()
        found += connection.execute("SELECT run_id, name, repeat, value FROM metrics ORDER BY id").fetchall()
    return found


def _old_run(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "uid": f"{number:032x}",
        "kind": "init",
        "state": "succeeded",
        "priority": 0,
        "origin": "local",
        "spec": {"kind": "init", "model": "tiny-test", "seed": number},
        "spec_hash": f"{number:064x}",
        "model": "tiny-test",
        "device": "cpu",
        "replica": 0,
        "created_at": float(number),
        "finished_at": float(number),
        "cancel_requested": False,
    }
