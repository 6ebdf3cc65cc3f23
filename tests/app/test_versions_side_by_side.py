"""Did the upgrade help? Results of two PEFT versions, imported as docs/comparing-versions.md says, lie side by side."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from db import runs
from db.session import Database
from engine.spec import parse_spec
from tests.app import stored
from tests.app.reading import words

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "0.18.1", "0.21.2"
REPLICAS = 4


def measured_under(version: str, seconds: float, replica: int) -> dict[str, Any]:
    """What ``engine measure`` prints in an environment with this PEFT."""
    document = copy.deepcopy(stored.result([seconds * (1 + replica / 100)] * 5))
    document["spec"] = parse_spec(stored.init_document(dora=True)).model_dump(mode="json")
    document["environment"]["packages"]["peft"] = version
    return document


@pytest.fixture
def imported(database: Database, tmp_path: Path) -> list[int]:
    """Four replicas under each version, old and new in turns, through the command line."""
    files = []
    for replica in range(REPLICAS):
        for version, seconds in ((OLD, 1.5), (NEW, 0.5)):
            path = tmp_path / f"init-dora-{version}-{replica}.json"
            path.write_text(json.dumps(measured_under(version, seconds, replica)))
            files.append(str(path))
    command = [sys.executable, "-m", "engine", "import", *files]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line["run_id"] for line in json.loads(done.stdout)]


def test_both_versions_are_runs_of_one_spec(database: Database, imported: list[int]) -> None:
    with database.reading() as session:
        rows = runs.list_runs(session)
    assert len(rows) == 2 * REPLICAS
    assert len({row.spec_hash for row in rows}) == 1


def test_runs_are_found_by_the_version_they_were_measured_under(
    open_page: Callable[..., AppTest], imported: list[int]
) -> None:
    app = open_page("runs", filter=f"environment.packages.peft = {OLD}")
    assert f"{REPLICAS} runs" in words(app)


def test_compare_groups_by_version_warns_of_it_and_gives_the_verdict(
    open_page: Callable[..., AppTest], imported: list[int]
) -> None:
    app = open_page("compare", ids=",".join(map(str, imported)))
    text = words(app).replace("\\", "")
    assert f"These runs differ in versions (peft {OLD} / {NEW})" in text
    labels = [metric.label.replace("\\", "") for metric in app.metric]
    assert [label.rpartition(", ")[2] for label in labels] == [f"peft {OLD}", f"peft {NEW}"]
    assert app.metric[1].delta.endswith("faster")
