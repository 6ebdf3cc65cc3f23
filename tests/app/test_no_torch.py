"""The Streamlit process loads no torch, whatever page is open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from db.session import Database
from tests.app import stored

ROOT = Path(__file__).resolve().parents[2]
PAGES = """
import json, sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("app/main.py", default_timeout=60).run()
for page in ("launch", "queue", "runs", "run", "merge_files", "predict"):
    app.query_params["id"] = "1"
    app.switch_page(f"views/{page}.py").run()
    assert not app.exception, app.exception
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def test_no_page_loads_torch_transformers_or_peft(database: Database) -> None:
    stored.lora_and_dora(database)
    done = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "streamlit" in loaded
    assert not loaded & {"torch", "transformers", "peft", "accelerate", "safetensors"}
