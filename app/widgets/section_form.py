"""The fields of a kind's own section of the spec (``train``, ``inference``), and what only that kind has beside it.

The few that matter most are drawn at once, the rest under *More*. Bounds are checked by the spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.widgets import fields
from engine.spec import VARIANTS


@dataclass(frozen=True, slots=True)
class Number:
    """A field of one or more whole numbers."""

    name: str
    label: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class Chips:
    """A field of one or more of a few values, of which ``default`` is the usual one."""

    name: str
    label: str
    options: tuple[Any, ...]
    default: Any
    help: str
    shown: tuple[str, ...] = ()


Field = Number | Chips
_ON_OFF = ("off", "on")

SHOWN: dict[str, tuple[Field, ...]] = {
    "train": (
        Number("context_length", "Context length", "512", "Tokens in each sequence."),
        Number("batch_size", "Batch size", "1", "Sequences in each forward pass."),
        Chips(
            "gradient_checkpointing",
            "Gradient checkpointing",
            (False, True),
            False,
            "Activations are computed again in the backward pass instead of being kept.",
            _ON_OFF,
        ),
    ),
    "inference": (
        Number("prompt_tokens", "Prompt tokens", "512", "Tokens that are read before the first is written."),
        Number("new_tokens", "New tokens", "64", "Tokens that are written."),
        Number("batch_size", "Batch size", "1", "Requests at the same time."),
    ),
}
MORE: dict[str, tuple[Field, ...]] = {
    "train": (
        Number("accumulation", "Accumulation", "1", "Forward and backward passes before each optimizer step."),
        Number("loss_chunks", "Loss chunks", "1", "Slices of the logits for the loss; more need less memory."),
        Number("sequence_tiles", "Sequence tiles", "1", "Slices of the sequence in each MLP; more need less memory."),
        Chips(
            "optimizer",
            "Optimizer",
            ("adamw", "sgd", "adafactor", "adamw_8bit"),
            "adamw",
            "8-bit AdamW needs bitsandbytes on this device.",
        ),
    ),
    "inference": (
        Number("adapters", "Adapters in one batch", "1", "Requests of one batch are spread over so many adapters."),
    ),
}
# Beside the section: fields of the spec that only this kind has.
SPEC: dict[str, tuple[Field, ...]] = {
    "train": (
        Chips(
            "task",
            "Task",
            ("causal_lm", "sequence_classification"),
            "causal_lm",
            "Classification puts a small head on the model's last layer.",
            ("language modelling", "classification"),
        ),
        Chips(
            "quantization",
            "Quantised base",
            (None, "int8", "nf4"),
            None,
            "Needs bitsandbytes on this device.",
            ("none", "int8", "nf4"),
        ),
    ),
}


def values(kind: str, wanted: tuple[Field, ...], errors: list[str]) -> dict[str, list[Any]]:
    """Draw fields inside a grid that the caller opened, and return the values of each; what cannot be read is added to
    ``errors`` as one sentence."""
    found: dict[str, list[Any]] = {}
    for item in wanted:
        key = f"launch_{kind}_{item.name}"
        if isinstance(item, Chips):
            names = dict(zip(item.options, item.shown or item.options, strict=True))
            found[item.name] = fields.chips(
                item.label,
                list(item.options),
                [item.default],
                key=key,
                help=item.help,
                format_func=lambda value, names=names: str(names[value]),
            ) or [item.default]
            continue
        try:
            numbers = fields.numbers(item.label, item.default, whole=True, key=key, help=item.help, placeholder="1")
        except fields.FieldError as error:
            errors.append(str(error))
            continue
        if numbers:
            found[item.name] = list(numbers)
    return found


def variants() -> list[tuple[str, ...]]:
    """Which forms of the model an inference run measures, as one value of the section."""
    names = {
        "base": "Base",
        "adapter_disabled": "Adapter disabled",
        "adapter": "Adapter",
        "merged": "Merged",
    }
    chosen = fields.chips(
        "Variants",
        list(VARIANTS),
        list(VARIANTS),
        key="launch_inference_variants",
        format_func=lambda name: names[name],
        help="All of them are measured in turn inside one run.",
    )
    return [tuple(chosen) or VARIANTS]
