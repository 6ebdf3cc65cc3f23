"""What the memory of a training step is for, at its peak and over time, exact to the byte.

Builds on ``tensors``, which counts every storage; this module says which of them are activations, gradients and
optimizer state, and when each phase of a step began. What libraries take inside one operation is not seen here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from engine.measure.tensors import TEMPORARY, TensorTracker

PARAMETERS = "parameters"
BUFFERS = "buffers"
GRADIENTS = "gradients"
OPTIMIZER_STATE = "optimizer state"
ACTIVATIONS = "activations"
CATEGORIES = (PARAMETERS, BUFFERS, GRADIENTS, OPTIMIZER_STATE, ACTIVATIONS, TEMPORARY)


@dataclasses.dataclass(frozen=True, slots=True)
class Peak:
    """The moment of most live bytes: how many by category (all of ``CATEGORIES``), and the phase it fell into."""

    bytes: Mapping[str, int]
    phase: str

    @property
    def total_bytes(self) -> int:
        """All categories together."""
        return sum(self.bytes.values())


class StepTracker(TensorTracker):
    """Follows training steps of one model; the job says when a phase begins and ends.

    Activations are what autograd keeps for the backward pass: all that the forward pass made and that is alive when it
    ends, and what checkpointing computes again during the backward pass. Gradients are the ``grad`` of parameters;
    gradients of activations, and whatever else a kernel's result is held for between two others, are temporary.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.watch(model.parameters(), PARAMETERS)
        self.watch(model.buffers(), BUFFERS)
        self._model = model
        self._phases: list[tuple[int, float, str]] = []
        self._from_event = 0

    def begin(self, phase: str) -> None:
        """Say that a phase begins now."""
        self._phases.append((len(self._events), time.perf_counter() - self._start_s, phase))

    def begin_counting(self) -> None:
        """Say that only from now on the peak counts: what comes before is warm-up."""
        self._from_event = len(self._events)
        self._peak_bytes = self._live_bytes

    @property
    def counted_peak_bytes(self) -> int:
        """The most bytes alive at one time since counting began, added up as they came and went."""
        return self._peak_bytes

    def forward_ended(self) -> None:
        """What the forward pass made and is still alive is kept for the backward pass."""
        for storage in self._storages.values():
            if storage.category == TEMPORARY:
                storage.category = ACTIVATIONS

    def backward_ended(self) -> None:
        """The parameters' gradients are what they are called."""
        self.assign((p.grad for p in self._model.parameters() if p.grad is not None), GRADIENTS)

    def optimizer_ended(self, optimizer: torch.optim.Optimizer) -> None:
        """Tensors that the optimizer keeps are its state, each parameter's step counter (4 bytes) included."""
        self.assign(state_tensors(optimizer), OPTIMIZER_STATE)

    @contextlib.contextmanager
    def watching_recomputation(self) -> Iterator[None]:
        """Count as activations what checkpointing computes again, for as long as the backward pass needs it."""
        hooks = checkpoint._recomputation_hook
        tracker = self

        def enter(self: torch.autograd.graph.saved_tensors_hooks) -> None:
            def pack(tensor: Tensor) -> object:
                tracker.assign([tensor], ACTIVATIONS)
                return self.pack_hook(tensor)

            torch._C._autograd._push_saved_tensors_default_hooks(pack, self.unpack_hook)

        hooks.__enter__ = enter  # type: ignore[method-assign]
        try:
            yield
        finally:
            del hooks.__enter__

    def peak(self) -> Peak:
        """The first moment of most bytes since counting began."""
        live = dict.fromkeys(CATEGORIES, 0)
        total, at, best, found = 0, 0, -1, dict(live)
        for number, (_, storage, change) in enumerate(self._events):
            if number >= self._from_event and total > best:
                best, at, found = total, number, dict(live)
            live[storage.category] += change
            total += change
        if total > best:
            at, found = len(self._events), live
        phases = [name for first, _, name in self._phases if first < max(at, 1)]
        return Peak(found, phases[-1] if phases else "")

    def phase_at(self, time_s: float) -> str:
        """The phase that ran at a time of :meth:`timeline`."""
        began = [name for _, start_s, name in self._phases if start_s <= time_s]
        return began[-1] if began else "before"


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Every tensor in an optimizer's state, and the code books that all states of a quantised one share."""
    for state in (*optimizer.state.values(), getattr(optimizer, "name2qmap", {})):
        for value in state.values():
            if isinstance(value, Tensor):
                yield value
