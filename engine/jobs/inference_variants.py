"""The forms of the model that an inference run compares, all in memory at once over one set of base weights.

A true base, which no adapter ever touched; the adapter switched off; the adapter as PEFT runs it, by the spec's own
strategy, and several of them in one batch; and merged, which alone needs weights of its own. Times nothing but
compiling.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import peft.helpers
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from engine import adapters
from engine.jobs.inference_loop import PROOF_TOKENS, Side, timed_request
from engine.jobs.module_trees import own_adapted_weights, sharing_copy
from engine.measure.tensors import TensorTracker
from engine.peft_versions import needs_newer
from engine.spec import FreshAdapter, InferenceSpec, SpecError
from engine.strategies import init as init_strategies
from engine.strategies import proof
from engine.strategies.inference import fused

_FIRST = "default"


@dataclasses.dataclass(frozen=True, slots=True)
class Trees:
    """The bare model, and the same with its adapter on; None where there is none."""

    base: PreTrainedModel
    adapted: PeftModel | None


@dataclasses.dataclass(frozen=True, slots=True)
class Several:
    """A model with several adapters on it, under these names."""

    model: PeftModel
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """What compiling the decoding step took: seconds of its first two calls, and what it consists of."""

    seconds: float
    graphs: int
    graph_breaks: int


def attached(base: PreTrainedModel, spec: InferenceSpec, count: int = 1) -> Several:
    """A copy of the model, sharing its weights, with ``count`` adapters on, each filled with other noise.

    Raises:
        SpecError: if PEFT refuses the adapter.
    """
    adapter = spec.adapter
    if adapter is None:
        raise ValueError("there is no adapter to attach")
    groups = adapters.list_groups(base)
    fresh = isinstance(adapter, FreshAdapter)
    config = adapters.peft_config(adapter, groups) if fresh else adapters.saved_config(adapter, groups)  # type: ignore[arg-type]
    # OLoRA writes its start into float32 weights, which are everybody's.
    writes = base.dtype == torch.float32 and getattr(config, "init_lora_weights", None) in ("olora", "orthogonal")
    tree = sharing_copy(base, Tensor.clone if writes else None)
    own = {id(parameter) for parameter in tree.parameters()}
    # The magnitude does not depend on how it is computed, and stock DoRA may take minutes.
    way = "factored_norm" if getattr(config, "use_dora", False) else "stock"
    names = (_FIRST, *(f"adapter_{number}" for number in range(2, count + 1)))
    upcast = adapter.adapter_dtype == "float32"
    torch.manual_seed(spec.seed)
    with init_strategies.apply(way):
        model = adapters.attach(tree, adapter, config=copy.deepcopy(config))
        try:
            for name in names[1:]:
                if isinstance(adapter, FreshAdapter):
                    model.add_adapter(name, copy.deepcopy(config), autocast_adapter_dtype=upcast)
                else:
                    model.load_adapter(adapter.path, name, autocast_adapter_dtype=upcast, torch_device=spec.device)
        except (ValueError, TypeError, NotImplementedError) as error:
            text = " ".join(str(error).split())[:240].rstrip(".")
            raise SpecError("inference.adapters", f"PEFT cannot hold {count} of these adapters: {text}") from error
    model.eval()
    proof.perturb(model, own, spec.seed)
    return Several(model, names)


# --- forms ------------------------------------------------------------------------------------------------------------


def base_side(trees: Trees) -> Side:
    """The model that no adapter touched."""
    return _side("base", trees.base, trees.base, trees.base)


def adapter_side(trees: Trees, name: str = "adapter") -> Side:
    """The adapter as PEFT runs it."""
    return _peft_side(name, _adapted(trees))


def disabled_side(trees: Trees) -> Side:
    """The adapter in place and switched off."""
    side = _peft_side("adapter_disabled", _adapted(trees))
    return dataclasses.replace(side, around=_adapted(trees).disable_adapter)


def merged_side(trees: Trees, copied: Callable[[Tensor], Tensor] | None) -> Side:
    """The adapter merged, into weights that ``copied`` copies; without it into the weights that all forms share.

    Raises:
        SpecError: if PEFT cannot merge this adapter.
    """
    tree = sharing_copy(_adapted(trees))
    if copied is not None:
        own_adapted_weights(tree, copied)
    try:
        merged: Any = tree.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:240].rstrip(".")
        raise SpecError("inference.variants", f"leave out merged, PEFT cannot merge this adapter: {text}") from error
    return _side("merged", merged, merged, merged)


@contextlib.contextmanager
def strategy_side(trees: Trees, spec: InferenceSpec) -> Iterator[Side]:
    """The adapter by the spec's own strategy, for the time of the block."""
    tree = sharing_copy(_adapted(trees))
    side = _peft_side(spec.strategy, tree)
    # What a strategy keeps beside the parameters counts as its memory.
    kept = TensorTracker()
    kept.watch((*tree.parameters(), *tree.buffers()), "there before")
    before = kept.live_bytes
    if spec.strategy == "fused":
        with contextlib.ExitStack() as stack:
            with kept:
                stack.enter_context(fused(tree))
            yield dataclasses.replace(side, extra_bytes=kept.live_bytes - before)
    elif spec.strategy == "dora_cached":
        tokens = torch.zeros(1, 1, dtype=torch.long, device=tree.device)
        DoraCaching: Any = getattr(peft.helpers, "DoraCaching", None)
        if DoraCaching is None:
            raise SpecError("strategy", needs_newer("dora_cached"))
        with kept, torch.inference_mode(), DoraCaching():
            side.decode(input_ids=tokens, use_cache=False)
        yield dataclasses.replace(side, around=DoraCaching, extra_bytes=kept.live_bytes - before)
    else:
        yield _compiled_side(side, tree.get_base_model(), spec)


def mixed_side(several: Several, batch_size: int) -> Side:
    """Several adapters in one batch, row by row in turn, as ``generate(adapter_names=...)`` runs them."""
    rows = [several.names[row % len(several.names)] for row in range(batch_size)]
    hooks = functools.partial(several.model._enable_peft_forward_hooks, adapter_names=rows)
    return dataclasses.replace(_peft_side("mixed_batch", several.model), around=hooks)


def single_side(several: Several, name: str) -> Side:
    """One of several adapters for the whole batch."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        several.model.set_adapter(name)
        yield

    return dataclasses.replace(_peft_side(name, several.model), around=around)


def _adapted(trees: Trees) -> PeftModel:
    if trees.adapted is None:
        raise ValueError("there is no adapter")
    return trees.adapted


def _peft_side(name: str, model: PeftModel) -> Side:
    """As ``generate`` calls it: virtual tokens come in with the prompt, all else is in the base model's layers."""
    inner = model.get_base_model()
    return _side(name, model, model if model.active_peft_config.is_prompt_learning else inner, inner)


def _side(name: str, model: nn.Module, prefill: Any, decode: Any) -> Side:
    inner = decode
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        # As generate does: of a prompt's logits only the last are wanted.
        prefill = functools.partial(prefill, logits_to_keep=1)
    return Side(name, model, prefill, decode)


# --- compiling --------------------------------------------------------------------------------------------------------


def _compiled_side(side: Side, inner: Any, spec: InferenceSpec) -> Side:
    """The decoding step compiled, over a cache that does not grow; the prompt is read as it is, as generate does."""
    on_gpu = spec.device.startswith("cuda")
    compiled = torch.compile(inner, mode="reduce-overhead" if on_gpu else None)

    def decode(**named: Any) -> Any:
        if on_gpu:
            # CUDA graphs write each result over the last one's; this says that the last is no longer needed.
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(**named)

    section = spec.inference
    # One size for whatever is asked of it, or every other length would be compiled anew.
    length = max(section.prompt_tokens + section.new_tokens, PROOF_TOKENS)

    def new_cache() -> Any:
        return StaticCache(config=inner.config, max_cache_len=length)

    return dataclasses.replace(side, decode=decode, new_cache=new_cache)


def compile_now(side: Side, prompt: Tensor, device: torch.device) -> Compiled:
    """Have a compiled side's decoding step compiled, from nothing that earlier runs left on disk."""
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    counters.clear()
    # Two requests: PyTorch may compile again when it first sees that a number changes from step to step.
    with fresh_cache():
        seconds = sum(timed_request(side, prompt, 2, device).decode_s for _ in range(2))
    return Compiled(seconds, compiled_graphs(), sum(counters["graph_break"].values()))


def compiled_graphs() -> int:
    """How many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
