"""The memory of a training step by category, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.measure.breakdown import ACTIVATIONS, BUFFERS, GRADIENTS, OPTIMIZER_STATE, PARAMETERS, StepTracker
from engine.measure.tensors import TEMPORARY

ROWS, INPUTS, HIDDEN, OUTPUTS = 32, 24, 40, 8
FLOAT = 4


class TwoLayers(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, bias=False)
        self.second = nn.Linear(HIDDEN, OUTPUTS, bias=False)
        self.register_buffer("scale", torch.ones(3))
        self.checkpointed = checkpointed

    def _both(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = checkpoint(self._both, x, use_reentrant=False) if self.checkpointed else self._both(x)
        return result.sum()


def step(model: nn.Module, tracker: StepTracker, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    tracker.begin("forward")
    loss = model(x)
    tracker.forward_ended()
    tracker.begin("backward")
    loss.backward()
    del loss
    tracker.backward_ended()
    tracker.begin("optimizer")
    optimizer.step()
    tracker.optimizer_ended(optimizer)
    optimizer.zero_grad()


def live(tracker: StepTracker) -> dict[str, dict[str, int]]:
    """The most bytes of each category in each phase."""
    most: dict[str, dict[str, int]] = {}
    for moment in tracker.timeline(most_moments=10**6):
        phase = most.setdefault(tracker.phase_at(moment.time_s), {})
        phase[moment.category] = max(phase.get(moment.category, 0), moment.bytes)
    return most


def followed(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> StepTracker:
    tracker = StepTracker(model)
    x = torch.randn(ROWS, INPUTS)
    tracker.watch([x], TEMPORARY)
    with tracker, tracker.watching_recomputation():
        for number in range(steps):
            if number == steps - 1:
                tracker.begin_counting()
            step(model, tracker, optimizer, x)
    return tracker


WEIGHTS = (INPUTS * HIDDEN + HIDDEN * OUTPUTS) * FLOAT


def test_saved_activations_of_two_layers_are_what_a_hand_counts() -> None:
    model = TwoLayers()
    tracker = followed(model, torch.optim.SGD(model.parameters()))
    # Kept for the backward pass: the input, the output of relu (its own input is freed), and the loss that is returned.
    assert live(tracker)["forward"][ACTIVATIONS] == (ROWS * INPUTS + ROWS * HIDDEN + 1) * FLOAT


def test_gradients_are_as_large_as_the_trained_parameters() -> None:
    model = TwoLayers()
    model.second.requires_grad_(False)
    tracker = followed(model, torch.optim.SGD([model.first.weight]))
    assert max(phase[GRADIENTS] for phase in live(tracker).values()) == INPUTS * HIDDEN * FLOAT


def test_adamw_keeps_twice_the_trained_bytes_and_a_counter_for_each_parameter() -> None:
    model = TwoLayers()
    tracker = followed(model, torch.optim.AdamW(model.parameters()), steps=2)
    assert live(tracker)["optimizer"][OPTIMIZER_STATE] == 2 * WEIGHTS + 2 * FLOAT
    assert tracker.peak().bytes[OPTIMIZER_STATE] == 2 * WEIGHTS + 2 * FLOAT


def test_parameters_and_buffers_are_counted_once_and_stay() -> None:
    model = TwoLayers()
    tracker = followed(model, torch.optim.SGD(model.parameters()))
    for phase in live(tracker).values():
        assert phase[PARAMETERS] == WEIGHTS
        assert phase[BUFFERS] == 3 * FLOAT


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_breakdown_adds_up_to_the_counted_peak(checkpointed: bool) -> None:
    model = TwoLayers(checkpointed)
    tracker = followed(model, torch.optim.AdamW(model.parameters()), steps=2)
    assert tracker.peak().total_bytes == tracker.counted_peak_bytes > WEIGHTS


def test_what_checkpointing_computes_again_is_activations_not_temporary() -> None:
    model = TwoLayers(checkpointed=True)
    tracker = followed(model, torch.optim.SGD(model.parameters()))
    by_phase = live(tracker)
    # Only the input is kept; relu's output comes back in the backward pass.
    assert by_phase["forward"][ACTIVATIONS] == (ROWS * INPUTS + 1) * FLOAT
    assert by_phase["backward"][ACTIVATIONS] == (ROWS * INPUTS + ROWS * HIDDEN + 1) * FLOAT


def test_the_peak_is_that_of_the_steps_that_count() -> None:
    model = TwoLayers()
    optimizer = torch.optim.SGD(model.parameters())
    tracker = StepTracker(model)
    large, small = torch.randn(ROWS * 100, INPUTS), torch.randn(ROWS, INPUTS)
    with tracker:
        step(model, tracker, optimizer, large)
        tracker.begin_counting()
        step(model, tracker, optimizer, small)
    assert tracker.peak().total_bytes < large.nbytes
    assert tracker.peak().phase in ("forward", "backward", "optimizer")
