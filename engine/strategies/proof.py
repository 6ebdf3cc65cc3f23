"""The proof that a strategy's result is stock PEFT's: checks of numbers, and what is needed to produce those numbers.

The checks are pure functions, so that each can be shown to fail on a wrong result. A magnitude is judged in units in the
last place (ulp) of the base weight's dtype, logits by their distance relative to the adapter's own effect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from engine.result import Check
from engine.strategies.row_norms import reference_row_norms

# Of the adapter's own effect. Two orders above float32 rounding, and a fifth of what a result wrong by 1 % would show.
LOGIT_TOLERANCE = 0.002
_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Magnitude:
    """One DoRA layer: its magnitude (out,) in the base weight's dtype, and what it was computed from."""

    values: Tensor
    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    scaling: float
    transposed: bool

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
    ours: Mapping[str, Tensor], stock: Mapping[str, Tensor] | None, reference: Mapping[str, Tensor] | None
) -> Check:
    """Our magnitudes against stock's, else both against float64.

    Passes where they are bit-equal, or where our largest error is at most one ulp or 1.1 times stock's. ``reference`` is
    needed only where they are not bit-equal. ``ours`` gives the dtype whose ulp counts.

    Raises:
        ValueError: if neither stock's nor a reference is given.
    """
    expected = stock if stock is not None else reference
    if expected is None:
        raise ValueError("stock or reference: give at least one to compare with")
    differing = [name for name in expected if name not in ours or ours[name].shape != expected[name].shape]
    differing += [name for name in ours if name not in expected]
    if differing or not ours:
        detail = f"not the same modules: {_some(differing)}" if differing else "no magnitudes to compare"
        return Check("magnitude_equal", False, detail)
    if stock is not None and all(torch.equal(ours[name], stock[name]) for name in ours):
        return Check("magnitude_equal", True, f"bit-equal to stock in all {_modules(len(ours))}")
    if reference is None:
        return Check("magnitude_equal", False, "differs from stock, and there is no float64 reference to judge by")
    our_error = max(ulp_error(ours[name], reference[name], ours[name].dtype) for name in ours)
    stock_error = None
    if stock is not None:
        stock_error = max(ulp_error(stock[name], reference[name], ours[name].dtype) for name in ours)
    passed = our_error <= max(1.0, 1.1 * (stock_error or 0.0))
    by_stock = "stock not computed" if stock_error is None else f"stock's {stock_error:.3g}"
    dtype = str(next(iter(ours.values())).dtype).removeprefix("torch.")
    detail = f"largest error {our_error:.3g} ulp of {dtype} against float64 ({by_stock}), {_modules(len(ours))}"
    return Check("magnitude_equal", passed, detail)


def check_logits(ours: Tensor, stock: Tensor, base: Tensor) -> Check:
    """Our logits against stock's, relative to what the adapter changes: ``|ours − stock| / |stock − base|``."""
    if torch.equal(ours.isfinite(), stock.isfinite()) and not bool(stock.isfinite().all()):
        places = int((~stock.isfinite()).sum())
        return Check("logits_equal", False, f"not comparable: {places} logits are not finite, with stock PEFT too")
    effect = _distance(stock, base)
    relative_effect = effect / _distance(base, torch.zeros_like(base))
    if not effect > 0:
        return Check("logits_equal", False, "the adapter has no effect on the logits, so nothing could be compared")
    difference = _distance(ours, stock) / effect
    # Written so that NaN fails.
    passed = difference <= LOGIT_TOLERANCE
    words = "bit-equal to stock" if torch.equal(ours, stock) else f"differ from stock by {difference:.2g} of that"
    return Check("logits_equal", passed, f"the adapter changes the logits by {relative_effect:.3g} of their size; {words}")


def ulp_error(values: Tensor, reference: Tensor, dtype: torch.dtype) -> float:
    """Largest distance of values from a float64 reference, in units in the last place of ``dtype`` at the reference."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(reference.abs().clamp(min=info.tiny)).exponent.double() - 1
    ulp = torch.exp2(exponent) * info.eps
    error = float(((values.double() - reference).abs() / ulp).max()) if values.numel() else 0.0
    return math.inf if math.isnan(error) else error


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm((one.double() - other.double())))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


# --- what the checks compare ------------------------------------------------------------------------------------------


def dora_magnitudes(model: nn.Module, adapter_name: str = "default") -> dict[str, Magnitude]:
    """The DoRA layers of an attached adapter by module name; computes deferred ones. Empty for other adapters.

    PEFT rounds a magnitude to the base weight's dtype before it casts it to float32; here it is in the former again.
    """
    found = {}
    for name, module in model.named_modules():
        layers = getattr(module, "lora_magnitude_vector", None)
        if not isinstance(module, BaseTunerLayer) or not layers or adapter_name not in layers:
            continue
        layer = layers[adapter_name]
        weight: Any = module.get_base_layer().weight
        if not isinstance(layer, DoraLinearLayer) or weight.ndim != 2:
            continue
        if adapter_name in module.lora_embedding_A:  # type: ignore[operator]
            a, b = module.lora_embedding_A[adapter_name], module.lora_embedding_B[adapter_name]  # type: ignore[index]
        else:
            a, b = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight  # type: ignore[index]
        found[name.replace("base_model.model.", "", 1)] = Magnitude(
            values=layer.weight.detach().to(weight.dtype),
            weight=weight.detach(),
            lora_a=a.detach(),
            lora_b=b.detach(),
            scaling=module.scaling[adapter_name],  # type: ignore[index]
            transposed=layer.fan_in_fan_out,
        )
    return found


def perturb(model: nn.Module, base: set[int], seed: int) -> None:
    """Fill an adapter's matrices with noise that depends on their names and the seed alone; magnitudes stay.

    Fresh adapters change nothing (B = 0), so every comparison of outputs would pass. ``base`` holds the ids of the
    parameters that are not the adapter's.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in base or "lora_magnitude_vector" in name or parameter.ndim < 2:
                continue
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            # The product of two such matrices moves its output by about as much as the base layer's own.
            noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(max(parameter.shape))
            parameter.copy_(noise)


def logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """A forward pass's logits in float32 arithmetic throughout, on the CPU.

    In half precision, one weight that is rounded differently changes every later rounding, which hides small differences.
    """
    with torch.inference_mode(), _in_float32(model):
        result: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return result.float().cpu()


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Cast each module's own low-precision parameters to float32 just for its call: never all weights at once."""
    low = (torch.bfloat16, torch.float16)
    kept: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def before(module: nn.Module, arguments: Any) -> None:
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.dtype in low]
        kept[module] = [(parameter, parameter.data) for parameter in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def after(module: nn.Module, arguments: Any, result: Any) -> None:
        for parameter, data in kept.pop(module, []):
            parameter.data = data

    handles = []
    for module in model.modules():
        if any(parameter.dtype in low for parameter in module.parameters(recurse=False)):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for entries in kept.values():
            for parameter, data in entries:
                parameter.data = data
