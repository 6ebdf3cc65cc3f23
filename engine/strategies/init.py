"""Faster or smaller ways to attach an adapter: context managers to put around ``get_peft_model`` in anyone's code.

``with zero_b_norm(): model = get_peft_model(model, config)``, likewise around ``PeftModel.from_pretrained``. Each
changes PEFT for the time of the block only. What a strategy does not know how to do faster (quantised, sharded,
convolution layers) is left to PEFT. The proof that the result is the same is in ``proof``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.dora import DoraEmbeddingLayer, DoraLinearLayer
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils.integrations import check_deepspeed_zero3_enabled
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from engine.strategies.deferred import defer
from engine.strategies.overlap import OverlappedNorms
from engine.strategies.patching import Inject, injection, replaced
from engine.strategies.row_norms import row_norms, shifted_row_norms

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Stacking copies, so only what fits a core's cache together is stacked; anything larger is normed where it lies.
_STACK_BYTES = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One group of modules that has become ready; ``elapsed_s`` counts from the start of the injection."""

    number: int
    name: str
    module_count: int
    elapsed_s: float


@contextlib.contextmanager
def stock() -> Iterator[None]:
    """PEFT as it comes."""
    yield


@contextlib.contextmanager
def zero_b_norm() -> Iterator[None]:
    """DoRA whose B (or A) is zero, as PEFT's default initialisation leaves it: the magnitude is the row norm of W.

    Raises:
        ValueError: one sentence, if an adapter is not DoRA or a module's B and A are both not zero.
    """
    overlapped = OverlappedNorms()

    def set_magnitude(layer: DoraLinearLayer, base_layer: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        if not _is_zero(b) and not _is_zero(a):
            raise ValueError(
                "zero_b_norm needs an adapter whose B is zero, which init_lora_weights=True gives; "
                "use factored_norm for this one"
            )
        layer.weight = nn.Parameter(overlapped.norms(_weight(base_layer), layer.fan_in_fan_out), requires_grad=True)

    def around(inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
        with overlapped:
            inject()

    with _dora_only("zero_b_norm"), injection(around), _magnitudes_by(set_magnitude):
        yield


@contextlib.contextmanager
def factored_norm() -> Iterator[None]:
    """DoRA with any B: the magnitude from rank-sized products, without a temporary of the weight's size.

    Raises:
        ValueError: one sentence, if an adapter is not DoRA.
    """

    def set_magnitude(layer: DoraLinearLayer, base_layer: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        norms = shifted_row_norms(_weight(base_layer), a.detach(), b.detach(), scaling, layer.fan_in_fan_out)
        layer.weight = nn.Parameter(norms, requires_grad=True)

    with _dora_only("factored_norm"), _magnitudes_by(set_magnitude):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """DoRA whose magnitude is computed when it is first read: by a forward pass, by merging or by saving.

    Raises:
        ValueError: one sentence, if an adapter is not DoRA.
    """

    def set_magnitude(layer: DoraLinearLayer, base_layer: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        defer(layer, _norms, base_layer, a, b, scaling)

    with _dora_only("deferred"), _magnitudes_by(set_magnitude):
        yield


@contextlib.contextmanager
def batched_norm() -> Iterator[None]:
    """DoRA whose magnitudes are computed after all modules are in place, small ones of one shape in one call.

    Raises:
        ValueError: one sentence, if an adapter is not DoRA.
    """
    waiting: list[_Waiting] = []

    def remember(layer: DoraLinearLayer, base_layer: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        weight = _weight(base_layer)
        if not _is_zero(b) and not _is_zero(a):
            norms = shifted_row_norms(weight, a.detach(), b.detach(), scaling, layer.fan_in_fan_out)
            layer.weight = nn.Parameter(norms, requires_grad=True)
            return
        outputs = weight.shape[1] if layer.fan_in_fan_out else weight.shape[0]
        layer.weight = nn.Parameter(weight.new_empty(outputs), requires_grad=True)
        waiting.append(_Waiting(layer, weight))

    def around(inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
        inject()
        _norm_together(waiting)
        waiting.clear()

    with _dora_only("batched_norm"), injection(around), _magnitudes_by(remember):
        yield


@contextlib.contextmanager
def staged(on_stage: Callable[[Stage], None] | None = None) -> Iterator[None]:
    """Add the adapter group by group (all ``q_proj``, then all ``k_proj``, ...), each ready before the next."""

    def around(inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
        start = time.perf_counter()
        for number, (name, module_count) in enumerate(_inject_in_stages(inject, tuner, model, adapter_name), start=1):
            if on_stage is not None:
                on_stage(Stage(number, name, module_count, time.perf_counter() - start))

    with injection(around):
        yield


@contextlib.contextmanager
def gpu_offload() -> Iterator[None]:
    """PEFT's own ``ephemeral_gpu_offload``: each weight visits the GPU for DoRA's norm.

    Raises:
        ValueError: one sentence, if an adapter is not DoRA.
    """

    def around(inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
        tuner.peft_config[adapter_name].runtime_config.ephemeral_gpu_offload = True  # type: ignore[attr-defined]
        inject()

    with _dora_only("gpu_offload"), injection(around):
        yield


@contextlib.contextmanager
def gpu_then_cpu(device: str = "cuda") -> Iterator[None]:
    """Attach the adapter with the whole model on the GPU, then bring the adapter back to the CPU.

    Base weights are uploaded but not downloaded: their CPU memory is still there. The model has to fit on the GPU.
    """

    def around(inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
        homes = {parameter: parameter.data for parameter in model.parameters()}
        uploaded = {}
        try:
            for parameter, home in homes.items():
                parameter.data = uploaded[parameter] = home.to(device)
            inject()
        finally:
            for parameter in list(model.parameters()):
                sent = uploaded.get(parameter)
                unchanged = sent is not None and parameter.data_ptr() == sent.data_ptr()
                parameter.data = homes[parameter] if unchanged else parameter.data.to("cpu")

    with injection(around):
        yield


_STRATEGIES: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "stock": stock,
    "zero_b_norm": zero_b_norm,
    "factored_norm": factored_norm,
    "batched_norm": batched_norm,
    "staged": staged,
    "deferred": deferred,
    "gpu_offload": gpu_offload,
    "gpu_then_cpu": gpu_then_cpu,
}
DORA_ONLY = frozenset({"zero_b_norm", "factored_norm", "batched_norm", "deferred", "gpu_offload"})


def apply(name: str, on_stage: Callable[[Stage], None] | None = None) -> contextlib.AbstractContextManager[None]:
    """The context manager of the strategy called ``name``; ``on_stage`` is called by ``staged`` alone.

    Raises:
        KeyError: if there is no such strategy.
    """
    return staged(on_stage) if name == "staged" else _STRATEGIES[name]()


# --- shared by the strategies -----------------------------------------------------------------------------------------


_SetMagnitude = Callable[[DoraLinearLayer, nn.Module, Tensor, Tensor, float], None]


@contextlib.contextmanager
def _dora_only(strategy: str) -> Iterator[None]:
    """Refuse to attach an adapter that has no magnitudes."""

    def around(inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
        if not getattr(tuner.peft_config[adapter_name], "use_dora", False):
            raise ValueError(f"{strategy} works on DoRA only; set use_dora=True in the LoraConfig or use stock")
        inject()

    with injection(around):
        yield


@contextlib.contextmanager
def _magnitudes_by(set_magnitude: _SetMagnitude) -> Iterator[None]:
    """Have ordinary DoRA layers get their magnitude from ``set_magnitude``; the others get it from PEFT."""
    sharded = check_deepspeed_zero3_enabled()
    original = DoraLinearLayer.update_layer

    def update_layer(
        self: DoraLinearLayer,
        *,
        base_layer: nn.Module,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        place_on_cpu: bool = False,
    ) -> None:
        if not sharded and not place_on_cpu and _is_ordinary(self, base_layer, lora_A, lora_B):
            with torch.no_grad():
                set_magnitude(self, base_layer, lora_A, lora_B, scaling)
        else:
            original(
                self, base_layer=base_layer, lora_A=lora_A, lora_B=lora_B, scaling=scaling, place_on_cpu=place_on_cpu
            )

    with replaced(DoraLinearLayer, "update_layer", update_layer):
        yield


def _is_ordinary(layer: DoraLinearLayer, base_layer: nn.Module, a: Tensor, b: Tensor) -> bool:
    """A plain two-dimensional weight, and factors of its dtype on its device (on ``meta`` PEFT is fast already)."""
    weight: Any = getattr(base_layer, "weight", None)
    return (
        type(layer) in (DoraLinearLayer, DoraEmbeddingLayer)
        # Parameters of other libraries may hold something else than numbers; a prediction's hold nothing.
        and type(weight) in (nn.Parameter, FakeTensor)
        and not hasattr(base_layer, "W_q")
        and weight.ndim == 2
        and weight.dtype in _DTYPES
        and a.dtype == b.dtype == weight.dtype
        and a.device == b.device == weight.device
        and weight.device.type != "meta"
    )


def _weight(base_layer: nn.Module) -> Tensor:
    weight: Tensor = base_layer.weight  # type: ignore[assignment]
    return weight.detach()


def _is_zero(factor: Tensor) -> bool:
    """Whether all elements are zero; NaN is not. One pass, four times as fast as ``any()``."""
    low, high = torch.aminmax(factor)
    return low.item() == 0 and high.item() == 0


def _norms(weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float, transposed: bool) -> Tensor:
    if a is None or b is None:
        return row_norms(weight, transposed)
    return shifted_row_norms(weight, a, b, scaling, transposed)


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A layer whose magnitude is still to be computed from this weight."""

    layer: DoraLinearLayer
    weight: Tensor

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.layer.fan_in_fan_out, self.weight.shape, self.weight.dtype, self.weight.device


def _norm_together(waiting: Sequence[_Waiting]) -> None:
    """Write the magnitudes of all waiting layers, stacking small weights of one shape into chunks of a bounded size."""
    by_kind: dict[tuple[Any, ...], list[_Waiting]] = {}
    for entry in waiting:
        by_kind.setdefault(entry.kind, []).append(entry)
    for alike in by_kind.values():
        size = max(1, _STACK_BYTES // alike[0].weight.nbytes)
        for start in range(0, len(alike), size):
            chunk = alike[start : start + size]
            transposed = chunk[0].layer.fan_in_fan_out
            if len(chunk) == 1:
                norms = [row_norms(chunk[0].weight, transposed)]
            else:
                # Side by side along the axis of the outputs, so that one call norms them all.
                stacked = torch.cat([entry.weight for entry in chunk], dim=1 if transposed else 0)
                norms = list(row_norms(stacked, transposed).chunk(len(chunk)))
            for entry, norm in zip(chunk, norms, strict=True):
                entry.layer.weight.data.copy_(norm)


def _inject_in_stages(
    inject: Inject, tuner: BaseTuner, model: nn.Module, adapter_name: str
) -> Iterator[tuple[str, int]]:
    """Inject one group of target modules after another; yields each group's name and module count when it is in."""
    config: Any = tuner.peft_config[adapter_name]
    if not hasattr(config, "target_modules"):
        inject()
        yield "all", 0
        return
    config = tuner._prepare_adapter_config(config, tuner.get_model_config(model))
    config = _maybe_include_all_linear_layers(config, model)
    groups: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        if name and tuner._check_target_module_exists(config, name):
            groups.setdefault(name.rpartition(".")[2], []).append(name)
    if len(groups) < 2:
        inject()
        yield next(iter(groups), "all"), sum(map(len, groups.values()))
        return
    everything, parameters = config.target_modules, getattr(config, "target_parameters", None)
    try:
        for position, (group, names) in enumerate(groups.items()):
            config.target_modules = set(names)
            if parameters:
                # PEFT adds fused parameters after the modules; here too, so they come with the last group.
                config.target_parameters = parameters if position == len(groups) - 1 else None
            inject()
            yield group, len(names)
    finally:
        config.target_modules = everything
        if parameters:
            config.target_parameters = parameters
