"""Whether the stock side of a train job would fit into free memory, told from steps of a few tokens.

Where it would not, the side that was asked for is measured alone: that stock does not fit is often why it was asked.
"""

from __future__ import annotations

import torch

from engine.jobs.train_steps import Side, Trainer, random_batch
from engine.measure.breakdown import StepTracker
from engine.measure.free_memory import free_memory_bytes, reserve_bytes
from engine.result import Check

_LENGTHS = (16, 32, 64)


def check_fits(trainer: Trainer, side: Side) -> Check | None:
    """A failed check where a side's step needs more memory than there is; None where it fits."""
    need, free = needed_bytes(trainer, side), free_memory_bytes() - reserve_bytes()
    if need <= free:
        return None
    detail = f"not run: a step needs about {need} bytes beside the model, and {free} are free above the reserve"
    return Check(f"{side.words}_measured", False, detail)


def needed_bytes(trainer: Trainer, side: Side) -> int:
    """What a step needs above the model, as far as a parabola through the needs of three short sequences tells.

    What grows with the length grows with the batch too; attention that holds its scores grows with the square of it.
    """
    section, tokens = trainer.spec.train, trainer.spec.train.context_length
    if tokens <= _LENGTHS[-1]:
        return 0
    small, middle, large = (_extra_bytes(trainer, side, length) for length in _LENGTHS)
    step = _LENGTHS[0]
    square = (large - small - 3 * (middle - small)) / (6 * step**2)
    slope = (middle - small) / step - 3 * step * square
    constant = small - slope * step - square * step**2
    gradients = sum(parameter.nbytes for parameter in trainer.trained)
    state = 2 * gradients if section.optimizer == "adamw" else 0
    # Activations go while gradients come, so the peak is about the larger of both, and not their sum.
    activations = int(constant + section.batch_size * (slope * tokens + square * tokens**2))
    return max(activations, gradients) + state


def _extra_bytes(trainer: Trainer, side: Side, length: int) -> int:
    batch = random_batch(trainer.model, trainer.spec, 1, length)
    with trainer.active(side):
        tracker = StepTracker(trainer.model)
        with tracker:
            loss = trainer.model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss
            # Through the whole model, but without the gradients that are kept: those do not grow with the length.
            torch.autograd.grad(loss, trainer.trained[0], allow_unused=True)
    return tracker.peak_extra_bytes
