"""How long a training step may take on a card, estimated from what it computes and moves. Measures nothing.

The step's own code runs under fake tensors, over two shallow models as for memory. Each operation takes as long as its
arithmetic or its memory traffic, whichever is longer, at stated shares of what the card's data sheet promises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PretrainedConfig

from engine import predict as predictor
from engine.adapters import trainable_parameters
from engine.jobs.train_steps import Trainer, attached, sides_of
from engine.models import build_meta, model_config
from engine.planning.places import Place
from engine.prediction.attaching import attaching
from engine.prediction.fake import Numbers, counted, decided, fake_, with_depth
from engine.prediction.fake_cuda import FakeCuda
from engine.prediction.recorder import no_chance_collection
from engine.spec import TrainSpec

_FLOPS_SHARE = 0.5
_BANDWIDTH_SHARE = 0.7
_FLOAT32_SHARE = 1 / 16
_LAUNCH_S = 5e-6
METHOD = (
    "Estimated, not measured: each operation at 50 % of the data sheet's half-precision FLOP/s (float32 products at a "
    "sixteenth of that) or 70 % of its memory bandwidth, whichever takes longer, and 5 µs at least"
)
# Give tensors without writing to them.
_ALLOCATE_ONLY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "lift_fresh")


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """One operation: its arithmetic, counted as if all of it were half-precision products, and bytes that it moves."""

    half_flops: float
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A training step's operations over two shallow models, and how many more periods the full one has."""

    shallow: Sequence[Work]
    deeper: Sequence[Work]
    further_periods: int
    trainable_parameters: int

    def seconds(self, place: Place) -> float | None:
        """How long the step may take there; None where no data sheet says how fast the place is."""
        if place.half_flops_per_s is None or place.bandwidth_bytes_per_s is None:
            return None
        flops_per_s = _FLOPS_SHARE * place.half_flops_per_s
        bytes_per_s = _BANDWIDTH_SHARE * place.bandwidth_bytes_per_s

        def time_s(operations: Iterable[Work]) -> float:
            return math.fsum(
                max(work.half_flops / flops_per_s, work.bytes / bytes_per_s, _LAUNCH_S) for work in operations
            )

        return _at_full_depth(time_s(self.shallow), time_s(self.deeper), self.further_periods)


def step(spec: TrainSpec, place: Place) -> Step:
    """What a training step does at a place that has CUDA.

    Raises:
        SpecError: one sentence, when the model cannot be built or PEFT refuses the adapter.
    """
    assert place.capability is not None
    config, depths = model_config(spec.model), predictor.depths_for(spec)
    if depths is None:
        operations, trained = _counted(spec, config, place.capability)
        return Step(operations, operations, 0, trained)
    (few, few_trained), (more, more_trained) = (
        _counted(spec, with_depth(config, depth), place.capability) for depth in (depths.shallow, depths.deeper)
    )
    times = depths.further_periods
    return Step(few, more, times, round(_at_full_depth(few_trained, more_trained, times)))


def trained_parameters(spec: TrainSpec) -> int:
    """How many numbers the spec trains.

    Raises:
        SpecError: as :func:`step`.
    """
    config, depths = model_config(spec.model), predictor.depths_for(spec)
    if depths is None:
        return trainable_parameters(_attached(spec, config))
    few, more = (
        trainable_parameters(_attached(spec, with_depth(config, depth))) for depth in (depths.shallow, depths.deeper)
    )
    return round(_at_full_depth(few, more, depths.further_periods))


def _at_full_depth(few: float, more: float, further_periods: int) -> float:
    return few + further_periods * (more - few)


def _attached(spec: TrainSpec, config: PretrainedConfig) -> torch.nn.Module:
    base = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config, spec.task)
    with attaching():
        return attached(base, spec)


def _counted(spec: TrainSpec, config: PretrainedConfig, capability: tuple[int, int]) -> tuple[list[Work], int]:
    """The operations of one step over a model of this config, and how many parameters it trains."""
    spec = spec.model_copy(update={"device": "cpu"})
    side = sides_of(spec)[0]
    with FakeCuda(capability).running():
        model = _attached(spec, config)
        trained = trainable_parameters(model)
        mode = FakeTensorMode()
        fake_(model, mode, torch.device("cpu"))
        with no_chance_collection(), decided(), mode, Numbers(counted(spec)):
            trainer = Trainer(spec, model)
            with trainer.active(side), _Counter() as counter:
                for _ in range(spec.train.accumulation):
                    trainer.loss(side).backward()
                trainer.optimizer(side).step()
    return counter.operations, trained


class _Counter(TorchDispatchMode):
    """Writes down what each operation computes and moves."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        name = func._schema.name.partition("::")[2]
        if _is_view(func) or name in _ALLOCATE_ONLY:
            return result
        tensors = [leaf for leaf in tree_leaves((args, named, result)) if isinstance(leaf, Tensor)]
        known = {id(tensor): tensor for tensor in tensors}.values()
        count = flop_registry.get(func.overloadpacket)
        flops = float(count(*args, **named, out_val=result)) if count else 0.0
        # Attention's kernels take sums in float32, too, but multiply what comes first.
        is_wide = next(
            (tensor.dtype == torch.float32 for tensor in tree_leaves(args) if isinstance(tensor, Tensor)), False
        )
        moved_bytes = sum(tensor.numel() * tensor.element_size() for tensor in known)
        self.operations.append(Work(flops / _FLOAT32_SHARE if is_wide else flops, moved_bytes))
        return result


def _is_view(func: Any) -> bool:
    """Whether an operation gives a tensor another shape without touching its numbers."""
    return any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns)
