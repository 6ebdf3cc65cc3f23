"""Row norms computed while PEFT goes on creating modules: one core reads weights, another runs Python.

Creating an adapter keeps one core busy with Python, and on a CPU PyTorch's norm is bound by arithmetic rather than by
memory, so the two fit beside each other. The results are those of ``row_norms`` to the bit.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from engine.strategies.row_norms import row_norms


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    """One weight to be normed into a tensor that is already in use as a parameter's memory."""

    weight: Tensor
    transposed: bool
    norms: Tensor

    def do(self) -> None:
        with torch.no_grad():
            self.norms.copy_(row_norms(self.weight, self.transposed))


class OverlappedNorms:
    """Context manager inside which ``norms`` returns at once and a thread fills in the values.

    Inside, PyTorch works with one thread per Python thread: small operations of PEFT that wait for a second core, which
    reads weights, cost more than they gain. On the way out all cores do together what the thread has not done yet.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._threads = 1
        self._stopping = False
        self._problem: BaseException | None = None

    def norms(self, weight: Tensor, transposed: bool) -> Tensor:
        """The weight's row norms (out,); inside the context complete only when it ends, if there are cores to share."""
        if self._thread is None or weight.device.type != "cpu":
            return row_norms(weight, transposed)
        norms = weight.new_empty(weight.shape[1] if transposed else weight.shape[0])
        self._tasks.put(_Task(weight, transposed, norms))
        return norms

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        # A dispatch mode, such as a memory tracker, watches its own thread only; nothing may be hidden from it.
        if self._threads > 1 and _get_current_dispatch_mode() is None:
            torch.set_num_threads(1)
            self._stopping, self._problem = False, None
            self._thread = threading.Thread(target=self._work, name="row-norms", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stopping = True
        self._tasks.put(None)
        self._thread.join()
        self._thread = None
        torch.set_num_threads(self._threads)
        left = []
        while not self._tasks.empty():
            left.append(self._tasks.get())
        if error is not None:
            return
        if self._problem is not None:
            raise self._problem
        for task in left:
            if task is not None:
                task.do()

    def _work(self) -> None:
        torch.set_num_threads(1)
        try:
            while not self._stopping and (task := self._tasks.get()) is not None:
                task.do()
        except BaseException as problem:  # raised again in the thread that waits for the norms
            self._problem = problem
