"""The history of a request's memory for one form of the model, recorded from the real code under fake tensors.

As in a measured run, two moments count: while the prompt is read, and at the last token, when the cache is largest.
The cache of that moment is made by reading a longer prompt, not by writing every token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from engine.jobs import inference_loop as loop
from engine.jobs import inference_variants as variants
from engine.jobs.inference_loop import Side
from engine.jobs.inference_variants import Trees
from engine.jobs.module_trees import sharing_copy
from engine.models import build_meta
from engine.prediction.attaching import attaching
from engine.prediction.fake import Numbers, counted, decided, fake_
from engine.prediction.recorder import Recorder, no_chance_collection
from engine.prediction.stream import Change, Part, Stream
from engine.spec import InferenceSpec
from engine.strategies import proof
from engine.strategies.patching import replaced

CACHE = "cache"
TOKENS = "tokens"
KEPT = "kept by the strategy"


def forms(spec: InferenceSpec) -> tuple[str, ...]:
    """The forms of the model whose peak a measured run of this spec tracks, in its order.

    What compiled code allocates nobody can follow, so a measured run has no peak of it either.
    """
    section = spec.inference
    found: list[str] = [name for name in section.variants if name != "merged"]
    if spec.strategy not in ("stock", "compiled"):
        found.append(spec.strategy)
    if "merged" in section.variants:
        found.append("merged")
    return (*found, "mixed_batch") if section.adapters > 1 else tuple(found)


def record(spec: InferenceSpec, form: str, config: PretrainedConfig) -> tuple[tuple[Part, Stream], ...]:
    """The history of reading the prompt and, if there is more than one new token, that of writing the last.

    Raises:
        SpecError: one sentence, when the model cannot be built or PEFT refuses the adapter or what is asked of it.
    """
    device, section = torch.device(spec.device), spec.inference
    mode = FakeTensorMode()
    trees = _trees(spec, form, config)
    with no_chance_collection(), contextlib.ExitStack() as stack:
        side = stack.enter_context(_side(spec, form, trees, mode, device))
        for context in (decided(), mode, Numbers(counted(spec)), side.around(), torch.inference_mode()):
            stack.enter_context(context)

        def prompt(length: int) -> torch.Tensor:
            return torch.zeros(section.batch_size, length, dtype=torch.long, device=device)

        given = prompt(section.prompt_tokens)
        reading = Recorder(side.model)
        reading.watch([given], TOKENS)
        with reading, reading.following_modules():
            reading.begin("prompt")
            output = loop.read_prompt(side, given)
        reading.assign(loop.cache_tensors(output.past_key_values), CACHE)
        found = [_history(reading, side)]
        further = section.new_tokens - 2
        if further > 0:
            # The last of these tokens is written, as a cache that only keeps a window is another one after it.
            output = loop.read_prompt(side, prompt(section.prompt_tokens + further - 1))
            output = loop.write_token(side, loop.choose_token(output), output)
        if section.new_tokens > 1:
            token = loop.choose_token(output)
            writing = Recorder(side.model)
            writing.watch([token], TOKENS)
            writing.watch(loop.cache_tensors(output.past_key_values), CACHE)
            with writing, writing.following_modules():
                writing.begin("last token")
                last = loop.write_token(side, token, output)
            writing.assign(loop.cache_tensors(last.past_key_values), CACHE)
            found.append(_history(writing, side))
    return tuple(found)


def _history(recorder: Recorder, side: Side) -> tuple[Part, Stream]:
    before, *parts = recorder.parts()
    kept = (Change(KEPT, "", side.extra_bytes),) if side.extra_bytes else ()
    return Part(before.name, (*before.changes, *kept)), tuple(parts)


def _trees(spec: InferenceSpec, form: str, config: PretrainedConfig) -> Trees:
    """The bare model and the one with an adapter, on ``meta``; noise in the adapter decides no memory."""
    base = sharing_copy(build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config).eval())
    if spec.adapter is None or form == "base":
        return Trees(base, None)
    count = spec.inference.adapters if form == "mixed_batch" else 1
    with attaching(), replaced(proof, "perturb", lambda *_: None):
        return Trees(base, variants.attached(base, spec, count).model)


@contextlib.contextmanager
def _side(spec: InferenceSpec, form: str, trees: Trees, mode: FakeTensorMode, device: torch.device) -> Iterator[Side]:
    """One form, with fake tensors in it."""
    if form == "merged":
        with attaching():
            side = variants.merged_side(trees, None)
        fake_(side.model, mode, device)
        yield side
        return
    if trees.adapted is None:
        side = variants.base_side(trees)
        fake_(side.model, mode, device)
        yield side
        return
    fake_(trees.adapted, mode, device)
    if form == spec.strategy:
        with mode, Numbers():
            stack = contextlib.ExitStack()
            side = stack.enter_context(variants.strategy_side(trees, spec))
        with stack:
            yield side
    elif form == "mixed_batch":
        names = tuple(trees.adapted.peft_config)
        yield variants.mixed_side(variants.Several(trees.adapted, names), spec.inference.batch_size)
    else:
        yield variants.disabled_side(trees) if form == "adapter_disabled" else variants.adapter_side(trees)
