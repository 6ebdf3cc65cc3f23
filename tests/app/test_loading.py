"""What the Streamlit process loads: never torch, and what pages are made of before the first of them is opened."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from db.session import open_database
from tests.app import stored

ROOT = Path(__file__).resolve().parents[2]
PAGES = """
import json, sys
from streamlit.testing.v1 import AppTest
from app import server
server.preload()
before = set(sys.modules)
app = AppTest.from_file("app/main.py", default_timeout=60).run()
for page in ("launch", "queue", "runs", "run", "compare", "cases", "merge_files", "system", "predict"):
    app.query_params["ids"] = "1,2"
    app.query_params["id"] = "1"
    app.switch_page(f"views/{page}.py").run()
    assert not app.exception, app.exception
print(json.dumps([sorted(before), sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Modules of a process that did what the server does at its start, and then after it ran pages."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_LAB_HOME", str(home))
        patch.delenv("PEFT_LAB_DATABASE_URL", raising=False)
        # Its lock is held, so that no page starts a supervisor that nobody needs.
        lock = os.open(home / "supervisor.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        opened = open_database()
        stored.devices(opened)
        stored.lora_and_dora(opened)
        opened.close()
        done = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, capture_output=True, text=True, timeout=120)
        os.close(lock)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    return set(before), set(after)


def test_no_page_loads_torch_transformers_or_peft(loaded: tuple[set[str], set[str]]) -> None:
    assert "streamlit" in loaded[1]
    assert not loaded[1] & {"torch", "transformers", "peft", "accelerate", "safetensors"}


def test_a_first_visit_imports_none_of_our_modules_and_no_large_library(loaded: tuple[set[str], set[str]]) -> None:
    before, after = loaded
    assert not {name for name in after - before if name.startswith(("app.", "db."))}
    assert {"sqlalchemy", "pandas", "plotly.graph_objects", "lark"} <= before
