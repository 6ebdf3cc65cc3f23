"""The specs whose predicted peaks `make bench-predict` holds against measured ones. Runs none of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.architectures import ARCHITECTURES, Architecture, Targets

DORA = {"options": {"use_dora": True}}
# What else is asked takes turns, so that every value meets every architecture and every method.
_DTYPES = ("float32", "bfloat16")
_CHECKPOINTING = (False, True)
# A request needs a cache of keys and values, which Mamba has none of.
_REQUESTED = ("llama", "qwen2", "phi3", "gpt2", "mistral", "gemma2", "mixtral", "deepseek_v3")
_ATTACHED = ("llama", "phi3", "gpt2", "mamba")
_FULL_SIZE: tuple[tuple[str, dict[str, Any] | None, dict[str, Any]], ...] = (
    ("minimind-26m", {}, {"context_length": 512, "batch_size": 4}),
    ("minimind-26m", None, {"context_length": 512, "batch_size": 2, "loss_chunks": 4}),
    ("smollm2-135m", DORA, {"context_length": 256}),
    ("smollm2-135m", None, {"context_length": 128, "optimizer": "adafactor"}),
    ("gpt2", {}, {"context_length": 512}),
    ("qwen2.5-0.5b", {}, {"context_length": 512, "gradient_checkpointing": True, "sequence_tiles": 4}),
    ("tinyllama-1.1b", {}, {"context_length": 256}),
)


class Asked(NamedTuple):
    """A spec as JSON, its model's label, and the method's."""

    architecture: str
    method: str
    document: dict[str, Any]


def all_specs(folder: Path) -> list[Asked]:
    """Every spec; the small models' configs are written below ``folder``."""
    folders = {architecture.model_type: str(architecture.write(folder)) for architecture in ARCHITECTURES}
    return [*_trained(folders), *_requested(folders), *_attached_and_merged(folders), *_full_size()]


def _methods(architecture: Architecture) -> Iterator[tuple[str, dict[str, Any] | None]]:
    def on(targets: Targets, **fields: Any) -> dict[str, Any]:
        return {**fields, "target_modules": targets}

    yield "full", None
    yield "LoRA", on(architecture.targets)
    yield "DoRA", on(architecture.plain, **DORA)
    for kind in architecture.others:
        yield kind, on(architecture.plain, type=kind)


def _trained(folders: dict[str, str]) -> Iterator[Asked]:
    for row, architecture in enumerate(ARCHITECTURES):
        for column, (method, adapter) in enumerate(_methods(architecture)):
            turn = row + column
            section = {
                "context_length": architecture.contexts[turn % 3],
                "gradient_checkpointing": _CHECKPOINTING[(turn // 3 + row) % 2],
            }
            attention = architecture.attentions[(turn // 2 + row) % len(architecture.attentions)]
            document = _document("train", folders[architecture.model_type], adapter, _DTYPES[turn % 2], attention)
            yield Asked(architecture.label, method, {**document, "train": section})


def _full_size() -> Iterator[Asked]:
    for model, adapter, section in _FULL_SIZE:
        method = "full" if adapter is None else "DoRA" if adapter == DORA else "LoRA"
        yield Asked(model, method, {**_document("train", model, adapter, "bfloat16", "sdpa"), "train": section})


def _requested(folders: dict[str, str]) -> Iterator[Asked]:
    chosen = [architecture for architecture in ARCHITECTURES if architecture.model_type in _REQUESTED]
    for number, architecture in enumerate(chosen):
        method = ("LoRA", "DoRA")[number % 2]
        adapter = dict(_methods(architecture))[method]
        attention = architecture.attentions[number // 2 % len(architecture.attentions)]
        dtype = _DTYPES[number // 2 % 2]
        document = _document("inference", folders[architecture.model_type], adapter, dtype, attention)
        section = {"prompt_tokens": architecture.contexts[number % 3], "new_tokens": 8, "batch_size": 1 + number % 2}
        yield Asked(architecture.label, method, {**document, "inference": section})


def _attached_and_merged(folders: dict[str, str]) -> Iterator[Asked]:
    chosen = [architecture for architecture in ARCHITECTURES if architecture.model_type in _ATTACHED]
    for number, architecture in enumerate(chosen):
        methods = dict(_methods(architecture))
        for kind, method, strategy in (
            ("init", "LoRA", "stock"),
            ("init", "DoRA", "stock"),
            ("init", "DoRA", "zero_b_norm"),
            ("merge", "LoRA", "stock"),
            ("merge", "LoRA", "row_blocks"),
            ("merge", "DoRA", "stock"),
        ):
            folder, dtype = folders[architecture.model_type], _DTYPES[number % 2]
            document = _document(kind, folder, methods[method], dtype, architecture.attentions[-1])
            yield Asked(architecture.label, method, {**document, "strategy": strategy})


def _document(kind: str, model: str, adapter: dict[str, Any] | None, dtype: str, attention: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": model,
        "adapter": adapter,
        "dtype": dtype,
        "attention": attention,
        "repeats": 1,
        "warmup": 0,
    }
