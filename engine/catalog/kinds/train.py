"""Train: its strategies, and what keeps a train spec from running."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from engine.catalog.kinds.subject import Subject
from engine.catalog.strategies import Strategy
from engine.spec import FreshAdapter, NotHere, SpecError, TrainSpec

STRATEGIES = (
    Strategy("stock", "Stock PEFT", "PEFT's own forward and autograd's backward"),
    Strategy(
        "fused",
        "Fused",
        "Two kernels per adapted module in the forward pass, and a backward pass that saves less",
        frozenset({"lora"}),
        snippet_context="from engine.strategies.train import fused",
    ),
    Strategy(
        "compiled",
        "Compiled",
        "torch.compile of the model; compile time is a number of its own",
        frozenset({"compiler"}),
    ),
)
# LoRA's options that change its forward pass, which fused does not know.
_NOT_FUSED = (
    "use_dora",
    "lora_bias",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)
# Types for which PEFT has layers that know bitsandbytes' weights.
_ON_QUANTISED = frozenset({"lora", "adalora", "hira", "ia3", "pvera", "randlora", "road", "ln_tuning"})
_NO_LOSS_CHUNKS = {
    "cpt": "weighs the loss of each token itself and needs all logits",
    "shadow": "adds a loss of its own that needs all logits",
}
_NO_TILES = {
    "lily": "averages its router over the whole sequence, so slices would give another result",
    "pvera": "draws noise for the whole sequence, so slices would draw another",
}
# Factors on the logits that loss_chunks does not know.
_LOGIT_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale")
_GATED_MLPS = (frozenset({"gate_proj", "up_proj", "down_proj"}), frozenset({"gate_up_proj", "down_proj"}))


def problems(spec: TrainSpec, subject: Subject) -> Iterator[SpecError]:
    """What only a train spec asks for, beyond its strategy's needs."""
    yield from _context_problems(spec, subject)
    yield from _slicing_problems(spec, subject)
    yield from _library_problems(spec)
    yield from _quantization_problems(spec, subject)
    if spec.strategy == "fused":
        yield from _fused_problems(spec, subject)
    if spec.task == "sequence_classification":
        yield from _classifier_problems(spec)


def _context_problems(spec: TrainSpec, subject: Subject) -> Iterator[SpecError]:
    config = _text_config(subject)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    field = subject.adapter_type.field("num_virtual_tokens") if subject.adapter_type else None
    added = subject.options.get("num_virtual_tokens") or (field.default if field else None)
    added = added if isinstance(added, int) else 0
    length = spec.train.context_length
    if isinstance(positions, int) and length + added > positions:
        virtual = f" and {added} virtual tokens" if added else ""
        yield SpecError("train.context_length", f"{length}{virtual} is longer than the model's {positions} positions")


def _slicing_problems(spec: TrainSpec, subject: Subject) -> Iterator[SpecError]:
    section, kind = spec.train, subject.adapter_type.id if subject.adapter_type else ""
    tokens = section.batch_size * section.context_length
    if section.loss_chunks > tokens:
        yield SpecError("train.loss_chunks", f"{section.loss_chunks} is more than the batch's {tokens} tokens")
    if section.loss_chunks > 1:
        factor = next((name for name in _LOGIT_FACTORS if _text_config(subject).get(name) not in (None, 1, 1.0)), None)
        if kind in _NO_LOSS_CHUNKS:
            yield SpecError("train.loss_chunks", f"must be 1: {_label(subject)} {_NO_LOSS_CHUNKS[kind]}")
        elif factor is not None:
            yield SpecError("train.loss_chunks", f"must be 1: this model scales its logits ({factor})")
    if section.sequence_tiles > section.context_length:
        yield SpecError(
            "train.sequence_tiles",
            f"{section.sequence_tiles} is more than the {section.context_length} positions of context_length",
        )
    if section.sequence_tiles > 1:
        names = {group.path.rpartition(".")[2] for group in subject.groups or () if group.kind == "Linear"}
        if kind in _NO_TILES:
            yield SpecError("train.sequence_tiles", f"must be 1: {_label(subject)} {_NO_TILES[kind]}")
        elif subject.groups is not None and not any(known <= names for known in _GATED_MLPS):
            yield SpecError(
                "train.sequence_tiles",
                "must be 1: this model has no gated MLP (gate_proj, up_proj, down_proj), the only one that is sliced",
            )


def _library_problems(spec: TrainSpec) -> Iterator[SpecError]:
    asked = []
    if spec.train.optimizer == "adamw_8bit":
        asked.append(("train.optimizer", "adamw_8bit", "use adamw or adafactor"))
    if spec.quantization is not None:
        asked.append(("quantization", spec.quantization, "use null"))
    for field, name, instead in asked:
        if not has_bitsandbytes():
            yield NotHere(field, f"{name} needs the package bitsandbytes, which is not installed; {instead}")
        elif spec.device == "mps":
            yield SpecError(field, f"{name} needs a CPU or a CUDA device, and the device is mps; {instead}")
    if spec.quantization and spec.device != "cpu" and os.environ.get("PEFT_LAB_START_METHOD") != "spawn":
        yield NotHere(
            "quantization",
            "needs PEFT_LAB_START_METHOD=spawn on a GPU, because bitsandbytes starts CUDA when it is imported",
        )


def has_bitsandbytes() -> bool:
    """Whether the package that quantises weights and optimizer states is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def _quantization_problems(spec: TrainSpec, subject: Subject) -> Iterator[SpecError]:
    if spec.quantization is None:
        return
    kind = subject.adapter_type
    if spec.adapter is None:
        yield SpecError("quantization", "must be null without an adapter: quantised weights cannot be trained")
    elif kind is not None and kind.targets_modules and kind.id not in _ON_QUANTISED:
        yield SpecError("quantization", f"must be null: PEFT has no {kind.label} layers for quantised weights")
    elif subject.groups is not None and not any(
        group.kind == "Linear" and group.role != "lm_head" for group in subject.groups
    ):
        yield SpecError(
            "quantization", "must be null: this model has no linear layers that bitsandbytes could quantise"
        )


def _fused_problems(spec: TrainSpec, subject: Subject) -> Iterator[SpecError]:
    other = next((name for name in _NOT_FUSED if subject.options.get(name)), None)
    if other is not None:
        what = "DoRA" if other == "use_dora" else f"LoRA with {other}"
        yield SpecError("strategy", f"fused knows plain LoRA only, not {what}; use stock or compiled")
    elif spec.quantization is not None:
        yield SpecError("strategy", f"fused knows plain weights only, not {spec.quantization}; use stock")
    elif subject.groups is not None and not any(g.kind == "Linear" and g.role != "lm_head" for g in subject.groups):
        yield SpecError("strategy", "fused knows linear layers only, and this model has none; use stock")


def _classifier_problems(spec: TrainSpec) -> Iterator[SpecError]:
    adapter = spec.adapter
    if spec.train.loss_chunks > 1:
        yield SpecError("train.loss_chunks", "must be 1: a classifier has no logits of the vocabulary to slice")
    if not isinstance(adapter, FreshAdapter) or adapter.target_modules is None:
        return
    wanted = (adapter.target_modules,) if isinstance(adapter.target_modules, str) else adapter.target_modules
    if any(name.rpartition(".")[2] in ("lm_head", "score") for name in wanted):
        yield SpecError(
            "adapter.target_modules",
            "a classifier has no lm_head, and its own head is trained in any case; name modules of the last block",
        )


def _text_config(subject: Subject) -> Mapping[str, Any]:
    config = subject.model_config or {}
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _label(subject: Subject) -> str:
    return subject.adapter_type.label if subject.adapter_type else "the adapter"
