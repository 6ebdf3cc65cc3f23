"""Other ways to merge a LoRA adapter into its base weights: context managers to put around PEFT's own calls.

``with row_blocks(): model = model.merge_and_unload()``, likewise around ``merge_adapter`` and ``unmerge_adapter``. Each
changes PEFT for the time of the block only. A tied weight is untied before it is merged (the adapted module gets its
own copy, and the config says so). What a strategy does not know (quantised and convolution layers) is left to PEFT.
The arithmetic is in ``merge_blocks``; this module finds the matrices that belong to a PEFT layer.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftType
from peft.tuners.lora import variants
from peft.tuners.lora.layer import Embedding, Linear, ParamWrapper
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from engine.peft_versions import present
from engine.strategies.merge_blocks import (
    Piece,
    add_and_scale,
    add_in_weight_dtype,
    add_rounded_once,
    scale_back_and_subtract,
)
from engine.strategies.patching import replaced

_LAYERS: tuple[Any, ...] = (Linear, Embedding, ParamWrapper)
_DORA = (DoraLinearVariant, DoraEmbeddingVariant)
# Variants whose merged weight is W + s·B·A, as without them.
_PLAIN = present(
    variants, "MiCALinearVariant", "MiCAEmbeddingVariant", "VeloraLinearVariant", "MontecloraLinearVariant"
)
NO_DORA = {
    "out_of_place": "stock PEFT already merges DoRA out of place; use stock or row_blocks",
    "addmm": "addmm cannot scale DoRA's outputs without rounding the weights twice; use row_blocks",
}
"""The strategies that have no meaning for DoRA, with the reason and what to use."""


@contextlib.contextmanager
def stock() -> Iterator[None]:
    """PEFT as it comes."""
    yield


@contextlib.contextmanager
def untied() -> Iterator[None]:
    """PEFT's own arithmetic, on any adapter type, after tied weights that are adapted have been untied."""
    with _before_merging(lambda tuner: untie(tuner.model)):
        yield


@contextlib.contextmanager
def out_of_place() -> Iterator[None]:
    """``W = W + delta``, as PEFT once merged: where the adapter is float32, a bfloat16 weight becomes float32.

    Raises:
        ValueError: one sentence, if the adapter is not LoRA, or is DoRA or another form that is not ``W + s·B·A``.
    """

    def merge(layer: Any, adapter: str) -> None:
        _refuse_dora(layer, adapter, "out_of_place")
        weight = _weight(layer)
        weight.data = weight.data + layer.get_delta_weight(adapter).detach()

    with _merging("out_of_place", merge, None):
        yield


@contextlib.contextmanager
def addmm() -> Iterator[None]:
    """``W.addmm_(B, A, alpha=s)`` with B and A cast to W's dtype: no temporary of the weight's size.

    Raises:
        ValueError: one sentence, if the adapter is not LoRA, or is DoRA or another form that is not ``W + s·B·A``.
    """

    def merge(layer: Any, adapter: str) -> None:
        _refuse_dora(layer, adapter, "addmm")
        for piece in pieces(layer, adapter):
            add_in_weight_dtype(piece)

    def unmerge(layer: Any, adapter: str) -> None:
        for piece in pieces(layer, adapter):
            add_in_weight_dtype(piece, -1.0)

    with _merging("addmm", merge, unmerge):
        yield


@contextlib.contextmanager
def row_blocks() -> Iterator[None]:
    """A block of rows at a time, summed in float32 and rounded once into W's dtype; DoRA is scaled in the same pass.

    Raises:
        ValueError: one sentence, if the adapter is not LoRA or DoRA.
    """

    def merge(layer: Any, adapter: str) -> None:
        for piece in pieces(layer, adapter):
            if piece.magnitude is None:
                add_rounded_once(piece)
            else:
                # The key under which PEFT keeps them, so that its own unmerge works as well.
                layer._cache_store(f"{adapter}-weight_norm", add_and_scale(piece))

    def unmerge(layer: Any, adapter: str) -> None:
        for piece in pieces(layer, adapter):
            if piece.magnitude is None:
                add_rounded_once(piece, -1.0)
            else:
                scale_back_and_subtract(piece, layer._cache_pop(f"{adapter}-weight_norm"))

    with _merging("row_blocks", merge, unmerge):
        yield


# Safe merging is an argument of PEFT's, not another way to merge.
_STRATEGIES = {
    "stock": stock,
    "safe": stock,
    "untied": untied,
    "out_of_place": out_of_place,
    "addmm": addmm,
    "row_blocks": row_blocks,
}


def apply(name: str) -> contextlib.AbstractContextManager[None]:
    """The context manager of the strategy called ``name``; ``safe`` also needs ``safe_merge=True`` in PEFT's call.

    Raises:
        KeyError: if there is no such strategy.
    """
    return _STRATEGIES[name]()


def pieces(layer: Any, adapter: str) -> list[Piece]:
    """The matrices that a LoRA layer adapts and what is added to each; fused experts have one for each expert."""
    weight = _weight(layer).data
    scaling = float(layer.scaling[adapter])
    if isinstance(layer, ParamWrapper):
        return _expert_pieces(layer, adapter, weight, scaling)
    if adapter in layer.lora_embedding_A:
        a, b, transposed = layer.lora_embedding_A[adapter].data, layer.lora_embedding_B[adapter].data, True
    else:
        a, b = layer.lora_A[adapter].weight.data, layer.lora_B[adapter].weight.data
        transposed = bool(getattr(layer, "fan_in_fan_out", False))
    magnitude = None
    if is_dora(layer, adapter):
        magnitude = layer.lora_magnitude_vector[adapter].weight.data.flatten()
    left, right = (a.T, b.T) if transposed else (b, a)
    return [Piece(weight, left, right, scaling, transposed, magnitude)]


def _expert_pieces(layer: Any, adapter: str, weight: Tensor, scaling: float) -> list[Piece]:
    a, b = layer.lora_A[adapter].weight.data, layer.lora_B[adapter].weight.data
    if weight.ndim == 2:
        return [Piece(weight, b, a, scaling)]
    experts = weight.shape[0]
    # As PEFT lays them out: A is (experts * rank, in), B (out, rank * experts).
    a = a.reshape(experts, -1, a.shape[-1])
    b = b.reshape(b.shape[0], -1, experts)
    if layer._did_swap_in_out_features:
        return [Piece(weight[index], b[:, :, index], a[index], scaling) for index in range(experts)]
    return [Piece(weight[index], a[index].T, b[:, :, index].T, scaling) for index in range(experts)]


def parameter_name(layer: Any) -> str:
    """The name that the adapted parameter has in the base layer."""
    return str(layer.parameter_name) if isinstance(layer, ParamWrapper) else "weight"


def is_product(layer: Any) -> bool:
    """Whether a layer is LoRA's and merges to ``W + s·B·A``, scaled if it is DoRA: what :func:`pieces` knows."""
    if not isinstance(layer, _LAYERS):
        return False
    variants = (_variant(layer, adapter) for adapter in layer.active_adapters)
    return all(variant is None or issubclass(variant, _DORA + _PLAIN) for variant in variants)


def is_dora(layer: Any, adapter: str) -> bool:
    """Whether an adapter on a LoRA layer is DoRA."""
    variant = _variant(layer, adapter)
    return variant is not None and issubclass(variant, _DORA)


def _weight(layer: Any) -> nn.Parameter:
    """The parameter that a LoRA layer adapts."""
    found: nn.Parameter = getattr(layer.get_base_layer(), parameter_name(layer))
    return found


def _variant(layer: Any, adapter: str) -> Any:
    variant = layer.lora_variant.get(adapter)
    return variant if variant is None or isinstance(variant, type) else type(variant)


# --- tied weights -----------------------------------------------------------------------------------------------------


def tied_layers(model: nn.Module) -> list[nn.Module]:
    """The adapted modules whose weight another module of the model holds as well."""
    uses = _uses(model)
    bases = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    unique = {id(base): base for base in bases}
    return [base for base in unique.values() if any(uses[id(weight)] > 1 for weight in _own(base).values())]


def untie(model: nn.Module) -> int:
    """Give adapted modules that share their weight a copy of their own, and say so in the model's config.

    Returns how many were untied. The last holder of a weight keeps it, so that nothing is copied needlessly.
    """
    uses = _uses(model)
    count = 0
    for base in tied_layers(model):
        for name, weight in _own(base).items():
            if uses[id(weight)] > 1:
                uses[id(weight)] -= 1
                count += 1
                base._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    config: Any = getattr(model, "config", None)
    if count and config is not None:
        for part in (config, config.get_text_config() if hasattr(config, "get_text_config") else config):
            part.tie_word_embeddings = False
    return count


def _uses(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    return Counter(id(weight) for module in model.modules() for weight in _own(module).values())


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in module._parameters.items() if weight is not None}


# --- changing PEFT ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _before_merging(prepare: Callable[[BaseTuner], Any]) -> Iterator[None]:
    """Have ``prepare(tuner)`` run before an adapter is merged into a model, whichever way PEFT is asked to."""
    unload, merge = BaseTuner._unload_and_optionally_merge, BaseTuner.merge_adapter

    def unload_and_merge(self: BaseTuner, merge: bool = True, *arguments: Any, **named: Any) -> Any:
        if merge:
            prepare(self)
        return unload(self, merge, *arguments, **named)

    def merge_adapter(self: BaseTuner, *arguments: Any, **named: Any) -> None:
        prepare(self)
        merge(self, *arguments, **named)

    with (
        replaced(BaseTuner, "_unload_and_optionally_merge", unload_and_merge),
        replaced(BaseTuner, "merge_adapter", merge_adapter),
    ):
        yield


@contextlib.contextmanager
def _merging(
    strategy: str, merge: Callable[[Any, str], None], unmerge: Callable[[Any, str], None] | None
) -> Iterator[None]:
    """Merge and unmerge the layers that are known by these; unmerging is PEFT's own where ``unmerge`` is None."""

    def prepare(tuner: BaseTuner) -> None:
        kinds = {PeftType(config.peft_type) for config in tuner.peft_config.values()}
        for kind in kinds - {PeftType.LORA}:
            raise ValueError(f"{strategy} works on LoRA and its forms, not on {kind.value}; use stock")
        untie(tuner.model)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_before_merging(prepare))
        for kind in _LAYERS:
            stack.enter_context(replaced(kind, "merge", _merge_method(strategy, merge, kind.merge)))
            if unmerge is not None:
                stack.enter_context(replaced(kind, "unmerge", _unmerge_method(unmerge, kind.unmerge)))
        yield


def _merge_method(strategy: str, merge: Callable[[Any, str], None], original: Any) -> Any:
    def merge_adapters(self: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        if safe_merge:
            raise ValueError(f"safe_merge keeps a copy of each weight, which {strategy} does without; leave it out")
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.scaling:
                continue
            _refuse_unknown(self, adapter, strategy)
            if self.merged_adapters and is_dora(self, adapter):
                # Its norm is that of the weight without the adapters merged before, which only PEFT's way recovers.
                original(self, adapter_names=[adapter])
                continue
            with torch.no_grad():
                merge(self, adapter)
                _add_bias(self, adapter, 1.0)
            self.merged_adapters.append(adapter)

    return merge_adapters


def _unmerge_method(unmerge: Callable[[Any, str], None], original: Any) -> Any:
    def unmerge_adapters(self: Any) -> None:
        if len(self.merged_adapters) != 1:
            original(self)
            return
        adapter = self.merged_adapters.pop()
        with torch.no_grad():
            unmerge(self, adapter)
            _add_bias(self, adapter, -1.0)

    return unmerge_adapters


def _add_bias(layer: Any, adapter: str, sign: float) -> None:
    if not layer.lora_bias.get(adapter, False):
        return
    bias = getattr(layer.get_base_layer(), "bias", None)
    if bias is None:
        raise ValueError("an adapter with lora_bias cannot be merged into a layer without a bias")
    bias.data += layer.lora_B[adapter].bias.data * (sign * layer.scaling[adapter])


def _refuse_dora(layer: Any, adapter: str, strategy: str) -> None:
    if is_dora(layer, adapter):
        raise ValueError(NO_DORA[strategy])


def _refuse_unknown(layer: Any, adapter: str, strategy: str) -> None:
    variant = _variant(layer, adapter)
    if variant is not None and not issubclass(variant, _DORA + _PLAIN):
        name = variant.__name__.removesuffix("LinearVariant").removesuffix("EmbeddingVariant")
        raise ValueError(f"{strategy} knows LoRA and DoRA, not the form {name}; use stock")
