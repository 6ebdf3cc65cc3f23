"""The leash of a run that is measured on another machine: when whoever holds it is gone, the kernel ends the worker.

Both ends: ``hold_run``, in a process that starts anew for every run and so must import nothing but Python's own, and
``Leash``, in the worker. A worker of this machine has none: it outlives its supervisor on purpose. Linux only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Client
from typing import Any

_GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


def hold_run(address: str, key: bytes, request: Mapping[str, Any]) -> str | None:
    """Have this node's agent start the worker of ``request``, and return when that has ended.

    Returns:
        Why the worker was not started, or None if it was.
    """
    with Client(address, "AF_UNIX", authkey=key) as connection:
        # Ray names the GPU of a task to it in this way, and only to it.
        gpu = os.environ.get(_GPU_VARIABLE) if request["device"].startswith("cuda") else None
        connection.send_bytes(json.dumps({**request, "gpu": gpu}).encode())
        problem: str | None = json.loads(connection.recv_bytes())
        if problem is None:
            # Nothing more is ever sent: this lasts as long as the worker has the other end.
            with contextlib.suppress(EOFError, ConnectionError):
                connection.recv_bytes()
    return problem


@dataclass(frozen=True, slots=True)
class Leash:
    """The worker's end: a stream whose other end ``hold_run`` has, and the GPU that the run was given, if any."""

    requester: socket.socket
    gpu: str | None = None

    def put_on(self) -> None:
        """SIGKILL this process's whole group once the other end is closed; see no GPU but the one that was given.

        The kernel sends the signal: no thread disturbs what is measured, and code that never lets go of the interpreter
        is ended, too. Nothing may be sent to this end any more, since that would count as well.
        """
        fcntl.fcntl(self.requester, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(self.requester, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self.requester, fcntl.F_SETFL, fcntl.fcntl(self.requester, fcntl.F_GETFL) | os.O_ASYNC)
        # It may have been closed before anybody listened.
        if select.select([self.requester], [], [], 0)[0]:
            os.killpg(0, signal.SIGKILL)
        if self.gpu is not None:
            os.environ[_GPU_VARIABLE] = self.gpu
