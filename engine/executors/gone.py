"""A run on another machine whose supervisor ended: nothing of it is left, whichever place its next supervisor knows."""

from __future__ import annotations

import json
from typing import Any

from engine.executors import Ending, Work
from engine.executors.endings import document_without_result
from engine.result import Progress

#: What a run that was given to a node leaves in its folder here, so that the next supervisor knows.
NODE_FILE = "node.json"


class GoneWorker:
    """A run that ended with its supervisor. ``executors.Worker``."""

    pid: int | None = None
    process_start_s: float | None = None
    sentinel: int | None = None
    age_s = 0.0

    def __init__(self, work: Work, ending: Ending) -> None:
        self.work = work
        self.ending: Ending | None = ending

    def is_alive(self) -> bool:
        """It is not."""
        return False

    def progress(self) -> Progress | None:
        """Nobody knows."""
        return None

    def cancel(self, ending: Ending, grace_s: float = 1.0) -> None:
        """Nothing is left to end."""

    def collect(self) -> dict[str, Any]:
        """The document that says how it ended."""
        assert self.ending is not None
        return document_without_result(self.work, self.ending)


def gone_with_its_supervisor(work: Work) -> GoneWorker | None:
    """The worker of a run that was given to a node; None if this one was not."""
    try:
        node = json.loads((work.folder / NODE_FILE).read_text())["node"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return GoneWorker(work, ("lost", f"The supervisor ended, and with it the run on {node}"))
