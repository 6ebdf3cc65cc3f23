"""What can be changed in a train spec to make it need less memory: one field at a time, each with its sentence.

Predicts nothing: how much each saves is for the predictor to say. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from engine.spec import FreshAdapter, SpecError, TrainSpec, parse_spec

_SLICES = 4
_FEWER_TARGETS = {"all-linear": "attention", "attention": "qv", "mlp": None, "qk": None, "qv": None}


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change by its name, what to do in one line, what it costs besides, and the spec's fields that it sets.

    ``is_same_training`` says that gradients stay what they are, but for the order in which numbers are added.
    """

    id: str
    label: str
    cost: str
    fields: dict[str, Any]
    is_same_training: bool = False

    def applied(self, spec: TrainSpec) -> TrainSpec:
        """The spec with this change.

        Raises:
            SpecError: one sentence, where the two do not go together.
        """
        document = spec.model_dump(mode="json")
        for path, value in self.fields.items():
            section, _, name = path.rpartition(".")
            (document[section] if section else document)[name] = value
        found = parse_spec(document)
        assert isinstance(found, TrainSpec)
        return found


def changes(spec: TrainSpec) -> Iterator[Change]:
    """Every change that would mean something for this spec, those that leave the training as it is first."""
    section, adapter = spec.train, spec.adapter
    if not section.gradient_checkpointing:
        yield Change(
            "checkpointing",
            "Gradient checkpointing",
            "one more forward pass in each step",
            {"train.gradient_checkpointing": True},
            is_same_training=True,
        )
    if section.loss_chunks == 1:
        yield Change(
            "loss_chunks", f"Loss in {_SLICES} slices", "next to nothing", {"train.loss_chunks": _SLICES}, True
        )
    if section.sequence_tiles == 1:
        yield Change(
            "sequence_tiles",
            f"MLP in {_SLICES} slices of the sequence",
            "the MLP's forward pass once more",
            {"train.sequence_tiles": _SLICES},
            is_same_training=True,
        )
    if adapter is not None and spec.strategy == "stock":
        yield Change("fused", "Fused LoRA layers", "nothing; a step is faster", {"strategy": "fused"}, True)
    if isinstance(adapter, FreshAdapter) and adapter.adapter_dtype != spec.dtype:
        yield Change(
            "adapter_dtype",
            f"Adapter in {spec.dtype}",
            "small updates may be lost in rounding",
            {"adapter.adapter_dtype": spec.dtype},
        )
    if section.optimizer == "adamw" and adapter is None:
        # An adapter's state is too small to be worth it.
        yield Change(
            "optimizer", "8-bit AdamW", "optimizer states in 8 bits (bitsandbytes)", {"train.optimizer": "adamw_8bit"}
        )
    fewer = _FEWER_TARGETS.get(str(adapter.target_modules)) if isinstance(adapter, FreshAdapter) else None
    if fewer is not None:
        yield Change("targets", f"Adapt {fewer} only", "another adapter", {"adapter.target_modules": fewer})
    if adapter is not None and spec.quantization is None:
        yield Change("nf4", "Base in nf4 (QLoRA)", "rounded base weights (bitsandbytes)", {"quantization": "nf4"})
    if section.batch_size > 1:
        half = section.batch_size // 2
        yield Change("batch", f"Batch of {half}", "fewer tokens in a step", {"train.batch_size": half})
    if section.context_length >= 4:
        half = section.context_length // 2
        yield Change("context", f"Context of {half} tokens", "shorter texts", {"train.context_length": half})


def together(spec: TrainSpec, chosen: list[Change]) -> TrainSpec | None:
    """The spec with all of these changes, None where they do not go together."""
    try:
        for change in chosen:
            spec = change.applied(spec)
    except SpecError:
        return None
    return spec
