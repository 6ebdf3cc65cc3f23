"""The history of memory while an adapter is merged, recorded from PEFT's own code under fake tensors."""

from __future__ import annotations

import contextlib

import torch
from transformers import PretrainedConfig

from engine.jobs import merge_bench
from engine.models import build_meta
from engine.prediction.attaching import attaching
from engine.prediction.fake import Numbers, OneMode, counted, decided, fake_, moved_in_place
from engine.prediction.recorder import Recorder, no_chance_collection
from engine.prediction.stream import Part, Stream
from engine.spec import MergeSpec


def record(spec: MergeSpec, config: PretrainedConfig) -> tuple[tuple[Part, Stream], ...]:
    """What is alive before merging, and the merging itself.

    Raises:
        SpecError: one sentence, when the model cannot be built, or PEFT cannot attach or merge the adapter.
    """
    base = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config).eval()
    with attaching():
        peft = merge_bench.attached(base, spec)
    mode = OneMode()
    fake_(peft, mode, torch.device(spec.device))
    with no_chance_collection(), decided(), moved_in_place(), mode, Numbers(counted(spec)):
        recorder = Recorder(peft)
        # A measured run puts the layers back afterwards, so they outlive being taken off the model.
        layers = merge_bench.layers_of(peft)
        with recorder:
            recorder.begin("merge")
            merge_bench.merged(peft, spec.strategy, contextlib.nullcontext())
        before, *parts = recorder.parts()
        del layers
    return ((before, tuple(parts)),)


def largest_weight_bytes(spec: MergeSpec, config: PretrainedConfig) -> int:
    """The size of the largest adapted weight: what the extra memory of merging is counted in."""
    base = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config)
    with attaching():
        peft = merge_bench.attached(base, spec)
    return max(weight.nbytes for weight in merge_bench.adapted_weights(merge_bench.layers_of(peft)))
