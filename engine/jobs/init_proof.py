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
# Stock DoRA holds B·A, s·B·A and W + s·B·A beside the weight, float16 in part as float32.
_STOCK_BYTES_PER_ELEMENT = 12
_SAMPLE_ABOVE_BYTES = 2 * 2**30


def prove(bench: Bench) -> list[Check]:
    """Attach once with stock and once with the spec's strategy, and compare magnitudes and perturbed logits.

    Logits that are not bit-equal in the model's own dtype are compared again in float32, where rounding does not hide
    small differences. Where stock's temporaries would not fit into free memory, there is nothing to compare logits
    with, and magnitudes are compared with a float64 norm alone.
    """
    checks, settled = _compare(bench, in_float32=False)
    # Other adapters than LoRA cannot be computed in another dtype than the base weights'.
    if settled or not bench.is_lora or bench.spec.dtype == "float32":
        return checks
    return _compare(bench, in_float32=True)[0]


def _compare(bench: Bench, in_float32: bool) -> tuple[list[Check], bool]:
    """The checks, and whether another comparison could not say more: logits were bit-equal, or there were none."""
    need, free = _need_bytes(bench), _free_bytes(bench)
    stock = _stock(bench, in_float32) if need <= free else None
    checks = []
    with bench.attached(f"proof: {bench.spec.strategy}") as model:
        ours = _Ours(bench, model, in_float32)
        if ours.layers:
            checks.append(ours.check_magnitudes(stock))
        if bench.spec.strategy == "factored_norm":
            checks.append(_equal_with_noise(proof.dora_magnitudes(model)))
        if stock is None:
            detail = f"not run: stock PEFT needs {need} bytes beside the model, and {free} are free"
            return [*checks, Check("logits_equal", False, detail)], True
        logits = ours.logits(stock)
        exact = ours.reference_logits if ours.layers and ours.is_fresh else None
        # The reference costs another pass, so it waits for the comparison that decides.
        decides = in_float32 or not bench.is_lora or bench.spec.dtype == "float32"
        checks.append(proof.check_logits(logits, stock.logits, stock.base_logits, exact if decides else None))
        return checks, torch.equal(logits, stock.logits)


@dataclasses.dataclass(frozen=True, slots=True)
class _Stock:
    """What stock PEFT leaves: magnitudes by module, logits with noise in the adapter, and the bare model's logits."""

    values: Mapping[str, Tensor]
    logits: Tensor
    base_logits: Tensor


def _stock(bench: Bench, in_float32: bool) -> _Stock:
    base_logits = proof.logits(bench.model, bench.input_ids, bench.base, in_float32)
    with bench.attached("proof: stock", "stock") as model:
        values = {name: layer.values for name, layer in proof.dora_magnitudes(model).items()}
        proof.perturb(model, bench.base, bench.spec.seed)
        return _Stock(values, proof.logits(model, bench.input_ids, bench.base, in_float32), base_logits)


class _Ours:
    """The adapter that the strategy left, with noise in A and B from the start."""

    def __init__(self, bench: Bench, model: nn.Module, in_float32: bool) -> None:
        self._bench, self._model, self._in_float32 = bench, model, in_float32
        self.layers = proof.dora_magnitudes(model)
        # A saved adapter's magnitudes come from its file, so they have no other reference than stock's.
        self.is_fresh = isinstance(bench.spec.adapter, FreshAdapter)
        # Modules in another order draw other random numbers: then A and B, and what follows from them, are not stock's.
        self._own_draw = bench.spec.strategy == "staged" and any(
            bool(layer.lora_b.any()) and bool(layer.lora_a.any()) for layer in self.layers.values()
        )
        # Before anything reads a magnitude: deferred ones must not depend on what becomes of B until then.
        proof.perturb(model, bench.base, bench.spec.seed)

    def check_magnitudes(self, stock: _Stock | None) -> Check:
        values = {name: layer.values for name, layer in self.layers.items()}
        comparable = stock.values if stock is not None and not self._own_draw else None
        return proof.check_magnitudes(values, comparable, self._references if self.is_fresh else None)

    def logits(self, stock: _Stock) -> Tensor:
        if self._own_draw:
            proof.set_magnitudes(self.layers, stock.values)
        return proof.logits(self._model, self._bench.input_ids, self._bench.base, self._in_float32)

    def reference_logits(self) -> Tensor:
        """Logits with magnitudes from float64 in place of the strategy's."""
        proof.set_magnitudes(self.layers, self._references())
        return proof.logits(self._model, self._bench.input_ids, self._bench.base, self._in_float32)

    def _references(self) -> dict[str, Tensor]:
        return {name: layer.reference() for name, layer in self.layers.items()}


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
    """What stock DoRA takes beside the model for the largest adapted module."""
    modules = dict(bench.model.named_modules())
    weights = (getattr(modules.get(name), "weight", None) for name in bench.module_names)
    return max((weight.numel() * _STOCK_BYTES_PER_ELEMENT for weight in weights if weight is not None), default=0)


def _free_bytes(bench: Bench) -> int:
    if bench.device.type == "cuda":
        return int(torch.cuda.mem_get_info(bench.device)[0])
    return int(psutil.virtual_memory().available)
