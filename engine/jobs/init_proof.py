"""The proof, run inside an init job, that the strategy it measured leaves the same adapter as stock PEFT.

Brings both sides about and hands them to the checks in ``engine.strategies.proof``, which decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import psutil
import torch
from torch import Tensor, nn

from engine.jobs.attaching import Bench
from engine.result import Check
from engine.spec import FreshAdapter
from engine.strategies import proof
from engine.strategies.proof import Magnitude
from engine.strategies.row_norms import shifted_row_norms

ATTACHES = 2
# DoRA's forward pass holds B·A, s·B·A, W and W + s·B·A in float32, and a square identity of the module's input.
_FULL_SIZE_COPIES = 5
_SAMPLE_ABOVE_BYTES = 2 * 2**30


def prove(bench: Bench) -> list[Check]:
    """Attach once with stock and once with the spec's strategy, and compare magnitudes and perturbed logits.

    Where stock's temporaries would not fit into free memory, magnitudes are compared with a float64 norm alone.
    """
    need, free = _need_bytes(bench), _free_bytes(bench)
    stock = _stock(bench) if need <= free else None
    checks = []
    with bench.attached(f"proof: {bench.spec.strategy}") as model:
        layers = proof.dora_magnitudes(model)
        # Nothing reads the magnitudes yet: deferred ones must not depend on what becomes of B before a forward pass.
        proof.perturb(model, bench.base, bench.spec.seed)
        own_draw = bench.spec.strategy == "staged" and any(bool(layer.lora_b.any()) for layer in layers.values())
        ours = {name: layer.values for name, layer in layers.items()} if own_draw else {}
        if own_draw and stock is not None:
            # Modules in another order draw other random numbers: these magnitudes belong to another B than stock's.
            proof.set_magnitudes(layers, stock.values)
        our_logits = _logits(bench, model) if stock is not None else None
        ours = ours or {name: layer.values for name, layer in layers.items()}

        def references() -> dict[str, Tensor]:
            return {name: layer.reference() for name, layer in layers.items()}

        def reference_logits() -> Tensor:
            proof.set_magnitudes(layers, references())
            return _logits(bench, model)

        # A saved adapter's magnitudes come from its file, so they have no other reference than stock's.
        fresh = isinstance(bench.spec.adapter, FreshAdapter)
        if layers:
            stock_values = stock.values if stock is not None and not own_draw else None
            checks.append(proof.check_magnitudes(ours, stock_values, references if fresh else None))
        if bench.spec.strategy == "factored_norm":
            checks.append(_equal_with_noise(proof.dora_magnitudes(model)))
        if stock is None or our_logits is None:
            detail = (
                f"not run: a forward pass with this adapter needs {need} bytes beside the model, and {free} are free"
            )
            checks.append(Check("logits_equal", False, detail))
        else:
            exact = reference_logits if fresh and layers else None
            checks.append(proof.check_logits(our_logits, stock.logits, stock.base_logits, exact))
    return checks


@dataclasses.dataclass(frozen=True, slots=True)
class _Stock:
    """What stock PEFT leaves: magnitudes by module, logits with noise in the adapter, and the bare model's logits."""

    values: Mapping[str, Tensor]
    logits: Tensor
    base_logits: Tensor


def _stock(bench: Bench) -> _Stock:
    base_logits = _logits(bench, bench.model)
    with bench.attached("proof: stock", "stock") as model:
        values = {name: layer.values for name, layer in proof.dora_magnitudes(model).items()}
        proof.perturb(model, bench.base, bench.spec.seed)
        return _Stock(values, _logits(bench, model), base_logits)


def _logits(bench: Bench, model: nn.Module) -> Tensor:
    return proof.logits(model, bench.input_ids, bench.base, in_float32=bench.is_lora)


def _equal_with_noise(layers: Mapping[str, Magnitude]) -> Check:
    """The factored norm where its terms matter, with noise in B: a fresh adapter's are all zero."""
    chosen = dict(layers)
    if sum(layer.weight.nbytes for layer in layers.values()) > _SAMPLE_ABOVE_BYTES:
        chosen = {}
        for name, layer in layers.items():
            if not any(layer.weight.shape == other.weight.shape for other in chosen.values()):
                chosen[name] = layer
    with torch.no_grad():
        ours = {
            name: shifted_row_norms(layer.weight, layer.lora_a, layer.lora_b, layer.scaling, layer.transposed)
            for name, layer in chosen.items()
        }
    check = proof.check_magnitudes(
        ours, None, lambda: {name: layer.reference() for name, layer in chosen.items()}, "magnitude_equal_with_noise"
    )
    if len(chosen) == len(layers):
        return check
    return Check(check.name, check.passed, f"{check.detail}: one of each shape of {len(layers)} modules")


def _need_bytes(bench: Bench) -> int:
    """What a forward pass of DoRA takes beside the model for the largest adapted module; 0 without such modules."""
    largest = 0
    for name in bench.module_names:
        weight = dict(bench.model.named_modules()).get(name)
        weight = getattr(weight, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            largest = max(largest, (_FULL_SIZE_COPIES * weight.numel() + max(weight.shape) ** 2) * 4)
    return largest


def _free_bytes(bench: Bench) -> int:
    if bench.device.type == "cuda":
        return int(torch.cuda.mem_get_info(bench.device)[0])
    return int(psutil.virtual_memory().available)
