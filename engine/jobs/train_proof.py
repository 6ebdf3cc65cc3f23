"""The proof, run inside a train job, that what it measures computes the same gradients as stock PEFT.

Compares on a small part of the model: its first and last trained block with the embeddings and the head around them, an
adapter with noise in it, no dropout (its masks depend on how the work is cut), and as few tokens as the slices need.
The loss and every gradient are compared in float32; in the model's own dtype, where rounding hides small differences,
both are compared with those.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.jobs.train_steps import Batch, Configured, Side, Trainer, base_model, random_batch, wide_adapter
from engine.measure.free_memory import free_memory_bytes, reserve_bytes
from engine.result import Check
from engine.strategies import proof
from engine.strategies.blocks import block_list

GRADIENT_TOLERANCE = 1e-3
"""Of each gradient's own size: a hundred times float32's rounding, a tenth of what a result wrong by 1 % shows."""
SCALE_TOLERANCE = 0.004
"""How far all gradients together may be longer or shorter than stock's in the model's own dtype."""
_LEAST_TOKENS = 32
_BATCH = 2
_BATCHES = 4
"""Batches that the model's own dtype is judged by.

One forward pass rounds for all gradients alike, so many gradients of one batch tell no more of a common length than few
do, and longer batches do not help either. In bfloat16 two sides without fault differ by 0.2 % then (one standard
deviation, LoRA on tiny-test), more than ``SCALE_TOLERANCE`` in one of twenty runs; over four batches by half of that.
"""
# A copy in float32 and one in the model's dtype, gradients of three sides.
_COPIES = 6

Gradients = Mapping[str, Tensor]


def prove(trainer: Trainer, side: Side) -> list[Check]:
    """Gradients of ``side`` beside stock's, for every trained parameter."""
    small = _small_model(trainer)
    need = _COPIES * sum(4 * parameter.numel() for parameter in small.parameters())
    free = free_memory_bytes() - reserve_bytes()
    if need > free:
        detail = f"not run: comparing takes {need} bytes beside the model, and {free} are free"
        return [Check("gradients_equal", False, detail)]
    batches = _small_batches(trainer)
    exact = _in_float32(copy.deepcopy(small))
    reference = Probe(exact, Side("stock"))
    checks = []
    if dataclasses.replace(side, own_adapter_dtype=False) != Side(None):
        found = Probe(exact, side).gradients(batches[0])
        checks.append(check_gradients(found, reference.gradients(batches[0])))
    if trainer.spec.dtype != "float32":
        stock, ours = Probe(small, Side("stock")), Probe(small, side)
        pairs = []
        for batch in batches:
            truth = reference.gradients(batch)
            with wide_adapter(small):
                of_stock = agreement(stock.gradients(batch), truth)
            pairs.append((agreement(ours.gradients(batch), truth), of_stock))
        checks.append(check_rounding(pairs, trainer.spec.dtype, side.own_adapter_dtype))
    return checks


class Probe:
    """A model as one side has it, asked for its gradients on any number of batches; trains nothing."""

    def __init__(self, model: nn.Module, side: Side) -> None:
        self._model, self._configured = model, Configured(model, side)
        self._call: Any = torch.compile(model) if side.strategy == "compiled" else model

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """The loss and each trained parameter's gradient by name."""
        self._model.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # some adapters draw noise in their forward pass
        with self._configured():
            loss = self._call(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss
            loss.backward()
        found = {"loss": loss.detach().float()}
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.float()
        self._model.zero_grad(set_to_none=True)
        return found


# --- checks -----------------------------------------------------------------------------------------------------------


def check_gradients(ours: Gradients, stock: Gradients) -> Check:
    """Ours against stock's in float32, each relative to its own size, the worst of all."""
    name = "gradients_equal"
    differing = sorted(ours.keys() ^ stock.keys())
    if differing:
        return Check(name, False, f"not the same parameters get gradients: {', '.join(differing[:3])}")
    sizes = {key: float(torch.linalg.vector_norm(value)) for key, value in stock.items()}
    if not all(size < float("inf") for size in sizes.values()):
        return Check(name, False, "not comparable: stock's own gradients are not all finite")
    # A gradient that is zero but for rounding has no size to be relative to.
    least = 1e-6 * max(sizes.values())
    errors = {key: _distance(ours[key], stock[key]) / max(sizes[key], least) for key in stock}
    worst = max(errors, key=lambda key: errors[key])
    count = len(stock) - 1
    detail = f"loss and {count} gradients in float32; the largest difference is {errors[worst]:.2g} of stock's, {worst}"
    return Check(name, errors[worst] <= GRADIENT_TOLERANCE, detail)


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """How far the gradients of one batch are from the reference, each relative to its own size, as means over them.

    Attributes:
        error: distance.
        scale: length along the reference, so that noise across it does not count.
    """

    error: float
    scale: float


def agreement(ours: Gradients, reference: Gradients) -> Agreement | None:
    """Ours beside the reference; None where not the same parameters have gradients."""
    if ours.keys() != reference.keys():
        return None
    sizes = {key: size for key, value in reference.items() if (size := _size(value)) > 0}
    along = [float((ours[key].double() * reference[key].double()).sum()) / size**2 for key, size in sizes.items()]
    return Agreement(_mean([_distance(ours[key], reference[key]) / size for key, size in sizes.items()]), _mean(along))


def check_rounding(
    batches: Sequence[tuple[Agreement | None, Agreement | None]], dtype: str, narrow: bool = False
) -> Check:
    """In the model's dtype: our distance from the float32 gradients at most 1.1 times stock's, and the same length.

    Both are means over ``batches``, each of which has ours and stock's. ``narrow`` says that the adapter is in this
    dtype too, where stock's is in float32: twice its precision is allowed.
    """
    name = "gradients_equal_in_model_dtype"
    pairs = [(ours, stock) for ours, stock in batches if ours is not None and stock is not None]
    if len(pairs) < len(batches):
        return Check(name, False, "not the same parameters get gradients")
    our_error, stock_error = _mean([ours.error for ours, _ in pairs]), _mean([stock.error for _, stock in pairs])
    our_scale, stock_scale = _mean([ours.scale for ours, _ in pairs]), _mean([stock.scale for _, stock in pairs])
    eps = torch.finfo(getattr(torch, dtype)).eps
    # Factors and gradients that are themselves kept in this dtype are off by its rounding, whatever stock's are.
    allowed = 1.1 * stock_error + (2 * eps if narrow else 0.0)
    passed = our_error <= allowed and abs(our_scale - stock_scale) <= SCALE_TOLERANCE
    detail = (
        f"mean distance from float32 {our_error:.3g} of a gradient's size (stock {stock_error:.3g}); "
        f"mean length {our_scale:.4f} of float32's (stock {stock_scale:.4f}); {len(pairs)} batches"
    )
    return Check(name, passed, detail)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _size(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.double()))


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one.double() - other.double()))


# --- what is compared -------------------------------------------------------------------------------------------------


def _small_model(trainer: Trainer) -> nn.Module:
    """A copy of the model with two blocks at most, noise in its adapter and no dropout, in the dtypes of the spec."""
    model, base = trainer.model, base_model(trainer.model)
    path, every = block_list(base)
    trained = [number for number, block in enumerate(every) if any(p.requires_grad for p in block.parameters())]
    trained = trained or list(range(len(every)))
    kept = nn.ModuleList(every[number] for number in sorted({trained[0], trained[-1]})) if trained else every
    parent, _, name = path.rpartition(".")
    owner = base.get_submodule(parent)
    if path:
        owner._modules[name] = kept
    try:
        base_names = {name for name, parameter in model.named_parameters() if id(parameter) in trainer.base_ids}
        small = copy.deepcopy(model)
    finally:
        if path:
            owner._modules[name] = every
    for module in small.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if trainer.spec.adapter is not None:
        ids = {id(parameter) for name, parameter in small.named_parameters() if name in base_names}
        proof.perturb(small, ids, trainer.spec.seed)
    return small


def _in_float32(model: nn.Module) -> nn.Module:
    """Every weight of half precision in float32; quantised ones compute in it, but stay as they are."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32  # type: ignore[assignment]
    return model


def _small_batches(trainer: Trainer) -> list[Batch]:
    """Pairs of sequences just long enough that every slice has something in it, and the last less than the others."""
    section = trainer.spec.train
    tokens = max(_LEAST_TOKENS, section.sequence_tiles, -(-section.loss_chunks // _BATCH)) + 1
    every = random_batch(trainer.model, trainer.spec, _BATCH * _BATCHES, min(section.context_length, tokens))
    pairs = zip(every.input_ids.split(_BATCH), every.labels.split(_BATCH), strict=True)
    return [Batch(input_ids, labels) for input_ids, labels in pairs]
