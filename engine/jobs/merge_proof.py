"""The proof, run inside a merge job, that the merged model is what it should be: checks of numbers against float64.

The checks are pure functions, so that each can be shown to fail on a wrong result. What they compare with comes from
``engine.jobs.merge_reference``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.jobs.merge_reference import WeightError
from engine.result import Check
from engine.strategies.proof import LOGIT_TOLERANCE

EQUAL_RATIO = 1.1
# Rounding has no direction, so it hardly moves how much of the adapter's effect has arrived; a wrong scale does.
_GAIN_TOLERANCE = 0.002
_GAIN_NOISES = 5.0
# Logits are one draw of all the roundings before them: by chance alone two equally good merges differ by this share.
_LOGIT_CHANCE = 0.25
_LARGEST_LOSS = 0.1


def check_weights(ours: WeightError, stock: WeightError | None) -> Check:
    """The error on sampled weights: at most 1.1 times stock's, and neither more nor less than the adapter's effect.

    ``stock`` is None where stock is what was measured and the model's weights are not tied.
    """
    name = "weights_equal"
    tolerance = max(_GAIN_TOLERANCE, _GAIN_NOISES * ours.gain_noise)
    whole = abs(ours.gain - 1) <= tolerance
    words = f"error {ours.relative:.3g} of the adapter's effect against float64"
    words += f", of which {ours.gain:.6g} arrived"
    if stock is None:
        return Check(name, whole, words)
    words += f"; stock's error {stock.relative:.3g}"
    # Below this a float32 sum in another order is as good.
    limit = max(EQUAL_RATIO * stock.relative, 4 * torch.finfo(torch.float32).eps)
    return Check(name, whole and ours.relative <= limit, words)


def logit_error(merged: Tensor, reference: Tensor, base: Tensor) -> float:
    """Distance of logits from the reference, over the adapter's own effect on them."""
    effect = float(torch.linalg.vector_norm(reference - base))
    distance = float(torch.linalg.vector_norm(merged - reference))
    return distance / effect if effect > 0 else float("inf")


def check_logits(ours: float, stock: float | None) -> Check:
    """The merged model's logits: near stock's error where there is one to compare with (None for stock itself)."""
    words = f"the merged model's logits miss the adapter's by {ours:.3g} of its effect"
    if stock is None:
        return Check("logits_equal", ours <= _LARGEST_LOSS, f"{words} (at most {_LARGEST_LOSS:g})")
    limit = EQUAL_RATIO * stock + max(LOGIT_TOLERANCE, _LOGIT_CHANCE * stock)
    return Check("logits_equal", ours <= limit, f"{words}, stock's by {stock:.3g}")


def check_dtype(before: Mapping[str, int], after: Mapping[str, int]) -> Check:
    """The adapted weights' dtypes before and after the merge, with how many weights have each."""

    def words(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items()))

    same = before.keys() == after.keys()
    return Check("weight_dtype_kept", same, f"{words(before)} before, {words(after)} after")


def check_saved(logits: Tensor, reloaded: Tensor) -> Check:
    """The merged model's logits before saving and after loading it again, both in float64."""
    name = "saved_and_reloaded"
    if torch.equal(logits, reloaded):
        return Check(name, True, "saved as safetensors and loaded again, it gives the same logits bit for bit")
    distance = float(torch.linalg.vector_norm(logits - reloaded) / torch.linalg.vector_norm(logits))
    return Check(name, False, f"saved and loaded again, its logits differ by {distance:.3g} of their size")
