"""The history of memory while an adapter is attached, recorded from PEFT's own code under fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig

from engine import adapters
from engine.catalog.requirements import leaves_b_at_zero
from engine.models import build_meta
from engine.prediction.fake import Numbers, OneMode, counted, decided, fake_, moved_in_place
from engine.prediction.recorder import Recorder, no_chance_collection
from engine.prediction.stream import Part, Stream
from engine.spec import FreshAdapter, InitSpec, SpecError
from engine.strategies import init as strategies
from engine.strategies.patching import replaced

ADAPTER = "adapter parameters"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def record(spec: InitSpec, config: PretrainedConfig) -> tuple[tuple[Part, Stream], ...]:
    """What is alive before attaching, and the attaching itself.

    Raises:
        SpecError: one sentence, when the model cannot be built, or PEFT refuses the adapter.
    """
    adapter = spec.adapter
    base = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config).eval()
    mode = OneMode()
    fake_(base, mode, torch.device(spec.device))
    groups = adapters.list_groups(base)
    if isinstance(adapter, FreshAdapter):
        peft_config, b_is_zero = adapters.peft_config(adapter, groups), leaves_b_at_zero(adapter.options)
    else:
        peft_config, b_is_zero = adapters.saved_config(adapter, groups), True
    with no_chance_collection(), decided(), moved_in_place(), mode, Numbers(counted(spec)):
        recorder = Recorder(base)
        # A measured run puts the weights back, so those that the initialisation replaces outlive it.
        weights = [parameter.data for parameter in base.parameters()]
        with (
            recorder,
            replaced(strategies, "_is_zero", _as_initialised(b_is_zero)),
            replaced(peft_model, "load_peft_weights", _saved_tensors),
            strategies.apply(spec.strategy),
        ):
            recorder.begin("attach")
            model = adapters.attach(base, adapter, config=peft_config)
        recorder.claim(model, ADAPTER)
        before, *parts = recorder.parts()
        del weights
    return ((before, tuple(parts)),)


def _as_initialised(zero: bool) -> Callable[[Tensor], bool]:
    """Whether a factor is zero, as the adapter's initialisation leaves B; the factor is read as ever."""

    def is_zero(factor: Tensor) -> bool:
        torch.aminmax(factor)
        return zero

    return is_zero


def _saved_tensors(folder: str, *_: Any, **__: Any) -> dict[str, Tensor]:
    """A saved adapter's tensors by name, of which only the sizes are read.

    Raises:
        SpecError: if one of them is of a type that no adapter is saved in.
    """
    with safe_open(Path(folder) / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    for name, part in found.items():
        if part.get_dtype() not in _DTYPES:
            raise SpecError(
                "adapter.path", f"{folder} holds numbers in {part.get_dtype()} ({name}); use {', '.join(_DTYPES)}"
            )
    return {name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()]) for name, part in found.items()}
