"""What the harness calls a loss: each kind is seen when it is there, and nothing is when all is well."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from db import actions, queue
from db.models import Action, Metric, Run
from tests.db.conftest import metric, new_run
from tests.faults.lab import Lab, Victim
from tests.faults.losses import losses

SWEEP = "sweep 0"
METRICS = [metric("init_time_s", 0.5, repeat=repeat) for repeat in range(3)]


@pytest.fixture
def ids(lab: Lab) -> list[int]:
    """Two runs of one spec that were measured, with the files that their workers left."""
    with lab.database.writing() as session:
        ids = queue.enqueue(session, [new_run(0), new_run(0)], SWEEP)
        actions.record(session, "me", "launch", ids, SWEEP)
        for run_id in ids:
            claimed = queue.claim(session, supervisor="1@1", devices=["cpu"])
            assert claimed is not None
            folder = lab.home / "runs" / claimed.uid
            folder.mkdir(parents=True)
            (folder / "log.txt").write_text("engine: job started at 1.0\n")
            document: dict[str, Any] = {"state": "succeeded", "metrics": METRICS, "environment": {"cores": 2}}
            (folder / "result.json").write_text(json.dumps(document))
            queue.started(session, run_id, 1000 + run_id, 1.0, str(folder))
            assert queue.finish(session, run_id, document)
    return ids


def found(lab: Lab, ids: list[int], **more: Any) -> str:
    return "\n".join(losses(lab, {SWEEP: 2}, ids, **more))


def change(lab: Lab, statement: Any) -> None:
    with lab.database.writing() as session:
        session.execute(statement)


def test_a_lab_in_which_all_went_well_has_no_losses(lab: Lab, ids: list[int]) -> None:
    assert found(lab, ids) == ""


def test_a_run_that_is_gone_is_missed_and_its_sweep_is_torn(lab: Lab, ids: list[int]) -> None:
    change(lab, delete(Run).where(Run.id == ids[0]))
    assert "run 1 was launched and is not there" in found(lab, ids)
    assert "sweep 0 has 1 of its 2 runs" in found(lab, ids)


def test_a_launch_without_its_record_is_seen(lab: Lab, ids: list[int]) -> None:
    change(lab, delete(Action))
    assert "sweep 0 is there 1 times and was recorded 0 times" in found(lab, ids)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_run_that_never_ends_is_a_loss(lab: Lab, ids: list[int], state: str) -> None:
    change(lab, update(Run).where(Run.id == ids[0]).values(state=state))
    assert f"run 1 is {state} for ever" in found(lab, ids)


def test_measurements_that_were_stored_twice_are_seen(lab: Lab, ids: list[int]) -> None:
    change(lab, insert(Metric).values(run_id=ids[0], name="init_time_s", unit="s", repeat=0, value=0.5))
    assert "run 1 has its measurements twice" in found(lab, ids)


def test_a_run_that_was_measured_again_is_seen(lab: Lab, ids: list[int]) -> None:
    log = next(lab.home.glob("runs/*/log.txt"))
    log.write_text("engine: job started at 1.0\nengine: job started at 2.0\n")
    assert "was measured 2 times" in found(lab, ids)


def test_a_part_of_a_result_that_is_shown_as_whole_is_seen(lab: Lab, ids: list[int]) -> None:
    change(lab, delete(Metric).where(Metric.run_id == ids[1], Metric.repeat == 2))
    assert "run 2 (init, succeeded): shows other measurements than its worker left" in found(lab, ids)
    assert "run 2 (init, succeeded): lacks measurements that others of its spec have" in found(lab, ids)


def test_measurements_of_a_run_without_a_result_are_seen(lab: Lab, ids: list[int]) -> None:
    change(lab, update(Run).where(Run.id == ids[0]).values(state="cancelled"))
    assert "run 1 (init, cancelled): shows measurements although it has no result" in found(lab, ids)


def test_a_run_may_be_lost_with_its_worker_and_only_then(lab: Lab, ids: list[int]) -> None:
    change(lab, delete(Metric).where(Metric.run_id == ids[0]))
    change(lab, update(Run).where(Run.id == ids[0]).values(state="lost", error_text="it ended"))
    assert "run 1 (init, lost): ended although its worker was not killed: it ended" in found(lab, ids)
    assert found(lab, ids, ended=[Victim(1001, "worker", "")]) == ""
    assert "run 1" in found(lab, ids, ended=[Victim(1001, "supervisor", "")])


def test_two_runs_with_one_replica_number_are_seen(lab: Lab, ids: list[int]) -> None:
    change(lab, update(Run).where(Run.id == ids[1]).values(replica=0))
    assert "several runs of the spec 00000000 are its replica 0" in found(lab, ids)


def test_a_process_that_is_left_over_is_seen(lab: Lab, ids: list[int]) -> None:
    process = lab.start("-c", "import time; time.sleep(60)")
    assert f"process {process.pid} (of no role) is left over" in found(lab, ids)


def test_a_damaged_database_is_seen(lab: Lab, ids: list[int]) -> None:
    lab.database.close()
    file = lab.home / "peft-lab.sqlite3"
    content = bytearray(file.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    file.write_bytes(content)
    assert "the database does not pass its check" in found(lab, ids)
