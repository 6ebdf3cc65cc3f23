"""A Ray address that cannot work is one sentence within seconds, and the queue stays as it is."""

from __future__ import annotations

import http.server
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import queue
from db.session import open_database
from engine.executors import ExecutorError

pytest.importorskip("ray", reason="Ray is not installed; `make cluster` installs it")

import ray
from ray._private.utils import check_version_info

from engine.executors.ray import _connect_problem, connect


@pytest.fixture
def web_server() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "cluster", ":6379", "10.0.0.1:port"])
def test_what_is_no_address_of_a_head_is_named(address: str) -> None:
    with pytest.raises(ExecutorError, match=r"^PEFT_LAB_EXECUTOR: must be local or a Ray head's address"):
        connect(address)


def test_an_address_that_does_not_answer_is_named_with_the_reason() -> None:
    with pytest.raises(ExecutorError, match=r"no Ray cluster answers at 127\.0\.0\.1:.*: connection refused"):
        connect(f"127.0.0.1:{free_port()}")


def test_another_server_at_the_address_is_not_taken_for_a_cluster(web_server: str) -> None:
    with pytest.raises(ExecutorError, match="is not the head of a Ray cluster"):
        connect(web_server)


def test_another_version_of_ray_is_named_with_both_versions() -> None:
    # In Ray's own words, which may be others in the next version.
    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": "2.58.0", "python_version": "3.11.2"}, "process")
    here = f"Ray {ray.__version__} and Python {platform.python_version()}"
    assert _connect_problem(raised.value, "10.0.0.1:6379") == (
        f"the cluster at 10.0.0.1:6379 has Ray 2.58.0 and Python 3.11.2, this machine {here}; install the same on both"
    )


def test_a_supervisor_that_finds_no_cluster_says_so_last_and_leaves_the_queue_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database()
    new = queue.NewRun(kind="init", spec={"kind": "init"}, spec_hash="0", model="tiny-test", device="cpu")
    with database.writing() as db:
        queue.enqueue(db, [new])
    monkeypatch.setenv("PEFT_LAB_EXECUTOR", f"127.0.0.1:{free_port()}")
    done = subprocess.run([sys.executable, "-m", "engine", "supervise"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("PEFT_LAB_EXECUTOR: no Ray cluster answers at 127.0.0.1:")
    with database.reading() as db:
        assert queue.queue_depth(db) == 1
    database.close()
