"""The proof, run inside an inference job, that its forms of the model compute what they are said to.

Stock PEFT is what the others are compared with, through the very path that is measured: a prompt, then one token at a
time over the cache. In half precision both are judged by their distance from the same model in float32, and compared
once more in float32, where rounding hides nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import psutil
import torch
from torch import Tensor

from engine.jobs import inference_variants as variants
from engine.jobs.inference_loop import Side, forced_logits
from engine.jobs.inference_variants import Several, Trees
from engine.jobs.module_trees import adapted_parameters, block_lists, tensor_bytes, truncated, widened
from engine.result import Check
from engine.spec import InferenceSpec
from engine.strategies.proof import LOGIT_TOLERANCE

_LARGEST_SHARE_OF_STOCKS_ERROR = 1.1
# Merging in half precision rounds each weight once more. That is independent of the rounding of activations, which
# stock PEFT has too, and as large, so the two add up in squares.
_LARGEST_SHARE_MERGED = _LARGEST_SHARE_OF_STOCKS_ERROR * math.sqrt(2)
# Of what is free, so that the activations and the system have room.
_USABLE_SHARE = 0.8


# --- checks -----------------------------------------------------------------------------------------------------------


def check_logits(
    name: str,
    ours: Tensor,
    stock: Tensor,
    base: Tensor,
    exact: Tensor | None = None,
    largest_share: float = _LARGEST_SHARE_OF_STOCKS_ERROR,
) -> Check:
    """Our logits against stock PEFT's, relative to what the adapter changes: ``|ours - stock| / |stock - base|``.

    Passes where that is at most ``LOGIT_TOLERANCE``, or where ``exact`` is given and our distance from it is at most
    ``largest_share`` times stock's.
    """
    if not bool(stock.isfinite().all()):
        return Check(name, False, "not comparable: stock PEFT's own logits are not all finite")
    effect = _distance(stock, base)
    if not effect > 0:
        return Check(name, False, "the adapter has no effect on the logits, so nothing could be compared")
    if torch.equal(ours, stock):
        return Check(name, True, "bit-equal to stock PEFT")
    difference = _distance(ours, stock) / effect
    words = f"they differ from stock PEFT's by {difference:.2g} of the adapter's effect"
    if exact is None or difference <= LOGIT_TOLERANCE:
        return Check(name, difference <= LOGIT_TOLERANCE, words)
    our_error, stock_error = _distance(ours, exact) / effect, _distance(stock, exact) / effect
    passed = our_error <= largest_share * stock_error
    return Check(name, passed, f"{words}, from float32's by {our_error:.3g} (stock PEFT by {stock_error:.3g})")


def check_same(name: str, ours: Tensor, expected: Tensor, of_what: str) -> Check:
    """Logits that have to be the same to the bit, because the same kernels ran on the same numbers."""
    if torch.equal(ours, expected):
        return Check(name, True, f"bit-equal to {of_what}")
    size = _distance(expected, torch.zeros_like(expected))
    return Check(name, False, f"differ from {of_what} by {_distance(ours, expected) / size:.2g} of their size")


def check_rows(name: str, mixed: Tensor, single: Mapping[int, Tensor], base: Tensor) -> Check:
    """Each row of a mixed batch against the batch with that row's adapter alone; ``single`` is by row."""
    worst, row = 0.0, 0
    for number, expected in single.items():
        effect = _distance(expected[number], base[number])
        difference = _distance(mixed[number], expected[number])
        share = difference / effect if effect > 0 else float("inf")
        if not share <= worst:
            worst, row = share, number
    words = f"row {row} differs most from its own adapter alone, by {worst:.2g} of the adapter's effect"
    return Check(name, worst <= LOGIT_TOLERANCE, f"{words}; {len(single)} rows compared")


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one.double() - other.double()))


# --- bringing both sides about ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """What is proven: the trees, the measured forms by name, the tokens, and why a disabled adapter is not the base."""

    spec: InferenceSpec
    trees: Trees
    sides: Mapping[str, Side]
    tokens: Tensor
    copied: Callable[[Tensor], Tensor]
    disabled_is_not_base: str | None = None


def prove(subject: Subject, names: tuple[str, ...]) -> list[Check]:
    """Checks for the named forms, ``merged`` and the spec's strategy among them where they are measured.

    Where the model in float32 does not fit into free memory beside the model, its first blocks stand for it.
    """
    trees, sides, words = subject.trees, dict(subject.sides), ""
    half = subject.spec.dtype != "float32"
    cut = _blocks_that_fit(subject, names)
    if cut is not None:
        trees, sides = _truncated(trees, cut), {}
        words = f"; on the first {cut} blocks, since float32 copies of all do not fit into memory"
    compared = [name for name in names if name not in ("base", "adapter", "mixed_batch")]
    wanted = ["base", "adapter", *compared]
    narrow = {name: logits for name in wanted if (logits := _logits(subject, trees, sides, name)) is not None}
    wide: dict[str, Tensor] = {}
    if half and trees.adapted is not None:
        broad = Trees(trees.base, widened(trees.adapted))
        # Merged comes last: it writes into the float32 weights that all share. Compiling once more would take minutes.
        exact = [name for name in ("adapter", *compared) if name not in ("adapter_disabled", "compiled")]
        for name in sorted(exact, key=lambda name: name == "merged"):
            found = _logits(subject, broad, {}, name, in_place=True)
            if found is not None:
                wide[name] = found
    checks = []
    for name in compared:
        if name == "adapter_disabled":
            checks.append(_check_disabled(subject, narrow))
        elif name not in narrow:
            checks.append(Check(f"{name}_logits_equal", False, f"not run{words}"))
        else:
            stock, base = narrow["adapter"], narrow["base"]
            share = _LARGEST_SHARE_MERGED if name == "merged" else _LARGEST_SHARE_OF_STOCKS_ERROR
            title = f"{name}_logits_equal"
            checks.append(check_logits(title, narrow[name], stock, base, wide.get("adapter"), share))
        if name in wide:
            title = f"{name}_logits_equal_in_float32"
            checks.append(check_logits(title, wide[name], wide["adapter"], narrow["base"]))
    return [dataclasses.replace(check, detail=check.detail + words) for check in checks]


def prove_mixed(subject: Subject, several: Several) -> Check:
    """Each row of the mixed batch has the outputs of its own adapter alone; compared in float32."""
    model, base = several.model, subject.trees.base
    if subject.spec.dtype != "float32":
        need = 2 * _float32_bytes(base)
        if free_bytes(subject.spec) * _USABLE_SHARE < need:
            return Check("mixed_batch_logits_equal", False, f"not run: float32 copies need {need} bytes of free memory")
        model, base = widened(model), widened(base)
    wide = Several(model, several.names)
    tokens = subject.tokens
    mixed = forced_logits(variants.mixed_side(wide, tokens.shape[0]), tokens)
    single = {}
    for row in range(mixed.shape[0]):
        name = several.names[row % len(several.names)]
        single[row] = forced_logits(variants.single_side(wide, name), tokens)
    plain = forced_logits(variants.base_side(Trees(base, None)), tokens)
    return check_rows("mixed_batch_logits_equal", mixed, single, plain)


def _logits(
    subject: Subject, trees: Trees, sides: Mapping[str, Side], name: str, in_place: bool = False
) -> Tensor | None:
    """Logits of a form, from the measured side where it is among ``sides``; None where it would have to be compiled."""
    if name in sides:
        return forced_logits(sides[name], subject.tokens)
    if name == "base":
        return forced_logits(variants.base_side(trees), subject.tokens)
    if name == "adapter":
        return forced_logits(variants.adapter_side(trees), subject.tokens)
    if name == "adapter_disabled":
        return forced_logits(variants.disabled_side(trees), subject.tokens)
    if name == "merged":
        return forced_logits(variants.merged_side(trees, None if in_place else subject.copied), subject.tokens)
    if name == "compiled":
        return None
    with variants.strategy_side(trees, subject.spec) as side:
        return forced_logits(side, subject.tokens)


def _check_disabled(subject: Subject, narrow: Mapping[str, Tensor]) -> Check:
    name = "adapter_disabled_logits_equal"
    check = check_same(name, narrow["adapter_disabled"], narrow["base"], "the base model")
    if check.passed or subject.disabled_is_not_base is None:
        return check
    return Check(name, False, f"{check.detail}, as PEFT has it: {subject.disabled_is_not_base}")


def _blocks_that_fit(subject: Subject, names: tuple[str, ...]) -> int | None:
    """How many blocks the proof can afford; None where it is all of them."""
    base, adapted = subject.trees.base, subject.trees.adapted
    need = _float32_bytes(base) if subject.spec.dtype != "float32" else 0
    if "merged" in names and "merged" not in subject.sides and adapted is not None:
        need += tensor_bytes(adapted_parameters(adapted))
    usable = int(free_bytes(subject.spec) * _USABLE_SHARE)
    rows = block_lists(base, base.config)
    if need <= usable or not rows:
        return None
    return max(1, int(len(rows[0]) * usable / need / 2))


def _truncated(trees: Trees, blocks: int) -> Trees:
    config = trees.base.config
    adapted = None if trees.adapted is None else truncated(trees.adapted, config, blocks)
    return Trees(truncated(trees.base, config, blocks), adapted)


def _float32_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * 4 for parameter in model.parameters())


def free_bytes(spec: InferenceSpec) -> int:
    """Memory of the spec's device that this run may still take, under the spec's own limit where it has one."""
    if spec.device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(spec.device))[0])
    free = int(psutil.virtual_memory().available)
    if spec.memory_limit_bytes is not None:
        free = min(free, spec.memory_limit_bytes - int(psutil.Process().memory_info().rss))
    return max(0, free)
