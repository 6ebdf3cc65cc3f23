"""The command line without a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from engine.__main__ import main

Engine = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Engine]:
    """Run ``python -m engine`` with these arguments in this process: what it printed, and its exit status.

    Importing the libraries takes seconds, and so does the fork server, which all measurements from here share.
    """
    before = dict(os.environ)

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        status = main(arguments)
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, printed.out, printed.err)

    yield run
    os.environ.clear()
    os.environ.update(before)
