"""The proof, run inside an init job, that the strategy it measured leaves the same adapter as stock PEFT.

Brings both sides about and hands them to the checks in ``engine.strategies.proof``, which decide.
"""

from __future__ import annotations

from collections.abc import Mapping

import psutil
import torch
from torch import Tensor

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
    strategy = bench.spec.strategy
    need, free = _need_bytes(bench), _free_bytes(bench)
    stock_values: dict[str, Tensor] | None = None
    stock_logits = our_logits = None
    if need <= free:
        with bench.attached("proof: stock", "stock") as model:
            layers = proof.dora_magnitudes(model)
            stock_values = {name: layer.values for name, layer in layers.items()}
            proof.perturb(model, bench.base, bench.spec.seed)
            stock_logits = proof.logits(model, bench.input_ids, bench.base)
    checks = []
    with bench.attached(f"proof: {strategy}") as model:
        layers = proof.dora_magnitudes(model)
        # Nothing reads the magnitudes yet: deferred ones must not depend on what becomes of B before a forward pass.
        proof.perturb(model, bench.base, bench.spec.seed)
        if need <= free:
            our_logits = proof.logits(model, bench.input_ids, bench.base)
        if layers:
            checks.append(_magnitudes_equal(bench, layers, stock_values))
        if strategy == "factored_norm":
            checks.append(_equal_with_noise(proof.dora_magnitudes(model)))
    if stock_logits is not None and our_logits is not None:
        checks.append(
            proof.check_logits(our_logits, stock_logits, proof.logits(bench.model, bench.input_ids, bench.base))
        )
    else:
        detail = f"not run: a forward pass with this adapter needs {need} bytes beside the model, and {free} are free"
        checks.append(Check("logits_equal", False, detail))
    return checks


def _magnitudes_equal(
    bench: Bench, layers: Mapping[str, Magnitude], stock_values: Mapping[str, Tensor] | None
) -> Check:
    """All modules' magnitudes; a saved adapter's come from its file, so they have no other reference than stock's."""
    ours = {name: layer.values for name, layer in layers.items()}
    if not isinstance(bench.spec.adapter, FreshAdapter):
        return proof.check_magnitudes(ours, stock_values, None)
    if bench.spec.strategy == "staged" and any(bool(layer.lora_b.any()) for layer in layers.values()):
        # Another order of modules draws other random numbers, so stock's B is not this one.
        stock_values = None
    return proof.check_magnitudes(
        ours, stock_values, lambda: {name: layer.reference() for name, layer in layers.items()}
    )


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
