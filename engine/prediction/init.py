"""The history of memory while an adapter is attached, recorded from PEFT's own code under fake tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
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


def record(spec: InitSpec, config: PretrainedConfig) -> tuple[tuple[Part, Stream], ...]:
    """What is alive before attaching, and the attaching itself.

    Raises:
        SpecError: one sentence, when the model cannot be built, or PEFT refuses the adapter.
    """
    adapter = spec.adapter
    if not isinstance(adapter, FreshAdapter):
        raise SpecError("adapter.path", "attaching a saved adapter is not predicted; give its type and fields")
    base = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config).eval()
    mode = OneMode()
    fake_(base, mode, torch.device(spec.device))
    peft_config = adapters.peft_config(adapter, adapters.list_groups(base))
    with no_chance_collection(), decided(), moved_in_place(), mode, Numbers(counted(spec)):
        recorder = Recorder(base)
        # A measured run puts the weights back, so those that the initialisation replaces outlive it.
        weights = [parameter.data for parameter in base.parameters()]
        with recorder, replaced(strategies, "_is_zero", _as_initialised(adapter)), strategies.apply(spec.strategy):
            recorder.begin("attach")
            model = adapters.attach(base, adapter, config=peft_config)
        recorder.claim(model, ADAPTER)
        before, *parts = recorder.parts()
        del weights
    return ((before, tuple(parts)),)


def _as_initialised(adapter: FreshAdapter) -> Callable[[Tensor], bool]:
    """Whether a factor is zero, as the adapter's initialisation leaves B; the factor is read as ever."""
    zero = leaves_b_at_zero(adapter.options)

    def is_zero(factor: Tensor) -> bool:
        torch.aminmax(factor)
        return zero

    return is_zero
