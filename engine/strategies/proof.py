"""The proof that a strategy's result is stock PEFT's: checks of numbers, and what is needed to produce those numbers.

The checks are pure functions, so that each can be shown to fail on a wrong result. A magnitude is judged in units in
the last place (ulp) of the base weight's dtype, logits by their distance relative to the adapter's own effect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from engine.result import Check
from engine.strategies.patching import replaced
from engine.strategies.row_norms import reference_row_norms, unrounded_row_norms

# Of the adapter's own effect. Two orders above float32 rounding, and a fifth of what a result wrong by 1 % would show.
LOGIT_TOLERANCE = 0.002
_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Magnitude:
    """One DoRA layer and what its magnitude is computed from; A and B are copies from when it was looked at."""

    layer: DoraLinearLayer
    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    scaling: float
    transposed: bool

    @property
    def values(self) -> Tensor:
        """The magnitude (out,), deferred or not, in the base weight's dtype: PEFT rounds to that before it casts."""
        return self.layer.weight.detach().to(self.weight.dtype)

    def reference(self) -> Tensor:
        """The magnitude in float64, in blocks of rows."""
        with torch.no_grad():
            return reference_row_norms(self.weight, self.lora_a, self.lora_b, self.scaling, self.transposed)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_no_meta(names: Sequence[str]) -> Check:
    """Nothing may be left without memory; ``names`` are the parameters and buffers that are."""
    if not names:
        return Check("no_meta_parameters", True, "every parameter and buffer has memory")
    return Check("no_meta_parameters", False, f"{len(names)} left on meta: {_some(names)}")


def check_no_zero_norm(magnitudes: Mapping[str, Tensor]) -> Check:
    """A row of zero norm makes DoRA divide by zero in its first forward pass."""
    found = {name: count for name, values in magnitudes.items() if (count := int((values == 0).sum()))}
    if not found:
        return Check("no_zero_norm_rows", True, f"none in {_modules(len(magnitudes))}")
    names = _some([f"{name} ({count})" for name, count in found.items()])
    detail = f"{sum(found.values())} rows of zero norm, where DoRA divides by zero, in {_modules(len(found))}: {names}"
    return Check("no_zero_norm_rows", False, detail)


def check_magnitudes(
    ours: Mapping[str, Tensor],
    stock: Mapping[str, Tensor] | None,
    reference: Callable[[], Mapping[str, Tensor]] | None,
    name: str = "magnitude_equal",
) -> Check:
    """Our magnitudes against stock's, and where they are not bit-equal both against float64.

    Passes where they are bit-equal, or where our largest error is at most one ulp or 1.1 times stock's. ``ours`` gives
    the dtype whose ulp counts; ``reference`` is called only if it is needed.

    Raises:
        ValueError: if neither stock's nor a reference is given.
    """
    if stock is not None and ours and ours.keys() == stock.keys():
        if all(torch.equal(ours[module], stock[module]) for module in ours):
            return Check(name, True, f"bit-equal to stock in all {_modules(len(ours))}")
        if reference is None:
            return Check(name, False, "differs from stock, and there is no float64 reference to judge by")
    references = reference() if reference is not None else None
    expected = stock if stock is not None else references
    if expected is None:
        raise ValueError("stock or reference: give at least one to compare with")
    differing = sorted(ours.keys() ^ expected.keys())
    if differing or not ours or references is None:
        detail = f"not the same modules: {_some(differing)}" if differing else "no magnitudes to compare"
        return Check(name, False, detail)
    our_error = max(ulp_error(ours[module], references[module], ours[module].dtype) for module in ours)
    stock_error = None
    if stock is not None:
        stock_error = max(ulp_error(stock[module], references[module], ours[module].dtype) for module in ours)
    passed = our_error <= max(1.0, 1.1 * (stock_error or 0.0))
    by_stock = "stock not computed" if stock_error is None else f"stock's {stock_error:.3g}"
    dtype = str(next(iter(ours.values())).dtype).removeprefix("torch.")
    detail = f"largest error {our_error:.3g} ulp of {dtype} against float64 ({by_stock}), {_modules(len(ours))}"
    return Check(name, passed, detail)


def check_logits(ours: Tensor, stock: Tensor, base: Tensor, reference: Callable[[], Tensor] | None = None) -> Check:
    """Our logits against stock's, relative to what the adapter changes: ``|ours - stock| / |stock - base|``.

    Passes where that is at most ``LOGIT_TOLERANCE``. Where it is more, ``reference`` gives the logits with magnitudes
    from float64, and our distance from those may be 1.1 times stock's: stock is not always the more exact of the two.
    """
    name = "logits_equal"
    if not bool(stock.isfinite().all()):
        return Check(name, False, "not comparable: stock PEFT's own logits are not all finite")
    effect = _distance(stock, base)
    if not effect > 0:
        return Check(name, False, "the adapter has no effect on the logits, so nothing could be compared")
    words = f"the adapter changes the logits by {effect / _distance(base, torch.zeros_like(base)):.3g} of their size"
    if torch.equal(ours, stock):
        return Check(name, True, f"{words}; bit-equal to stock")
    difference = _distance(ours, stock) / effect
    words += f"; they differ from stock's by {difference:.2g} of that"
    if difference <= LOGIT_TOLERANCE or reference is None:
        return Check(name, difference <= LOGIT_TOLERANCE, words)
    exact = reference()
    our_error, stock_error = _distance(ours, exact) / effect, _distance(stock, exact) / effect
    passed = our_error <= 1.1 * stock_error
    return Check(
        name, passed, f"{words}, from those with float64 magnitudes by {our_error:.2g} (stock {stock_error:.2g})"
    )


def ulp_error(values: Tensor, reference: Tensor, dtype: torch.dtype) -> float:
    """Largest distance of values from a float64 reference, in units in the last place of ``dtype`` at the reference."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(reference.abs().clamp(min=info.tiny)).exponent.double() - 1
    ulp = torch.exp2(exponent) * info.eps
    error = float(((values.double() - reference).abs() / ulp).max()) if values.numel() else 0.0
    return math.inf if math.isnan(error) else error


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one.double() - other.double()))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


# --- what the checks compare ------------------------------------------------------------------------------------------


def dora_magnitudes(model: nn.Module, adapter_name: str = "default") -> dict[str, Magnitude]:
    """The DoRA layers of an attached adapter by module name; empty for other adapters."""
    found = {}
    for name, candidate in model.named_modules():
        layers = getattr(candidate, "lora_magnitude_vector", None)
        if not isinstance(candidate, BaseTunerLayer) or not layers or adapter_name not in layers:
            continue
        module: Any = candidate
        layer = layers[adapter_name]
        weight = module.get_base_layer().weight
        if not isinstance(layer, DoraLinearLayer) or weight.ndim != 2:
            continue
        if adapter_name in module.lora_embedding_A:
            a, b = module.lora_embedding_A[adapter_name], module.lora_embedding_B[adapter_name]
        else:
            a, b = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        found[name.replace("base_model.model.", "", 1)] = Magnitude(
            layer=layer,
            weight=weight.detach(),
            lora_a=a.detach().clone(),
            lora_b=b.detach().clone(),
            scaling=module.scaling[adapter_name],
            transposed=layer.fan_in_fan_out,
        )
    return found


def perturb(model: nn.Module, base: set[int], seed: int) -> None:
    """Fill an adapter's parameters with noise that depends on their names and the seed alone; magnitudes stay.

    Fresh adapters change nothing (B = 0), so every comparison of outputs would pass. ``base`` holds the ids of the
    parameters that are not the adapter's.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in base or "lora_magnitude_vector" in name:
                continue
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            noise = torch.randn(parameter.shape, generator=generator)
            # With matrices of this size an adapter moves the logits by about as much as they are themselves.
            parameter.copy_(noise / math.sqrt(max(parameter.shape)) if parameter.ndim > 1 else noise)


def set_magnitudes(layers: Mapping[str, Magnitude], values: Mapping[str, Tensor]) -> None:
    """Write magnitudes, rounded as PEFT rounds them, into DoRA layers."""
    with torch.no_grad():
        for name, layer in layers.items():
            layer.layer.weight.copy_(values[name].to(layer.weight.dtype))


def logits(model: nn.Module, input_ids: Tensor, base: set[int], in_float32: bool) -> Tensor:
    """A forward pass's logits as float32 on the CPU, computed ``in_float32`` throughout or in the model's own dtype.

    In half precision one weight rounded differently changes every later rounding, which would hide small differences.
    DoRA's norm is summed in blocks, many times faster than PEFT's own way and the same for whatever is compared.
    Only LoRA can be computed in another dtype than the base weights'. ``base`` holds the ids of the parameters that are
    not the adapter's.
    """
    widened = _in_float32(model, base) if in_float32 else contextlib.nullcontext()
    with torch.inference_mode(), replaced(DoraLinearLayer, "forward", _dora_forward), widened:
        result: Tensor = model(input_ids=input_ids, use_cache=False).logits
    # Virtual tokens, which some adapters put in front, have no counterpart in the base model.
    return result[:, -input_ids.shape[1] :].float().cpu()


def _dora_forward(
    self: DoraLinearLayer,
    x: Tensor,
    *,
    lora_A: nn.Module,
    lora_B: nn.Module,
    scaling: float,
    base_layer: nn.Module,
    base_result: Tensor,
    adapter_name: str = "default",
) -> Tensor:
    """What ``DoraLinearLayer.forward`` computes in eval mode, without temporaries of the weight's size."""
    weight, a, b = base_layer.weight, lora_A.weight, lora_B.weight
    norms = unrounded_row_norms(weight, a, b, scaling, self.fan_in_fan_out)  # type: ignore[arg-type]
    ratio = self.weight / norms.to(base_result.dtype)
    bias = getattr(base_layer, "bias", None)
    plain = base_result if bias is None else base_result - bias
    change: Tensor = (ratio - 1) * plain + ratio * lora_B(lora_A(x)) * scaling
    return change


@contextlib.contextmanager
def _in_float32(model: nn.Module, base: set[int]) -> Iterator[None]:
    """Cast the adapter's parameters to float32, and each base module's own just for its call: never all weights."""
    low = (torch.bfloat16, torch.float16)
    kept: dict[nn.Parameter, Tensor] = {}

    def widen(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.dtype in low:
                kept[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def put_back(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    handles = []
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) in base]
        if any(parameter.dtype in low for parameter in own):
            handles.append(module.register_forward_pre_hook(lambda module, _, own=own: widen(own)))
            handles.append(module.register_forward_hook(lambda module, _, __, own=own: put_back(own)))
    try:
        widen(parameter for parameter in model.parameters() if id(parameter) not in base)
        yield
    finally:
        for handle in handles:
            handle.remove()
        # The adapter's own are cast back rather than put back: a deferred magnitude was written in the meantime.
        for parameter, data in kept.items():
            parameter.data = data if id(parameter) in base else parameter.data.to(data.dtype)
