"""How long a run will probably take: from runs stored here, else a stated rough estimate from the model's size.

Only for planning; nothing here is a measurement. Draws nothing.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.runs import Duration
from engine.catalog.modules import ModuleGroup

ESTIMATE_NOTE = "estimated from the model's size, as nothing like it was measured here yet"

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Rough rates, as first seen on a two-core CPU: seconds per 10^9 adapted weights (init and merge on Mistral-7B and
# TinyLlama in bfloat16), floating-point operations and bytes read per second.
_ATTACH_S_PER_BILLION = {"stock": 1.4, "staged": 1.4, "zero_b_norm": 0.14, "batched_norm": 0.3, "factored_norm": 0.5}
_PLAIN_ATTACH_S_PER_BILLION = 0.06
_MERGE_S_PER_BILLION = {"stock": 2.4, "safe": 3.0, "out_of_place": 3.0, "addmm": 0.1, "row_blocks": 0.4}
_DORA_MERGE = 3.0
_FLOPS_PER_S = {"cpu": 8e10, "cuda": 5e13}
_READ_BYTES_PER_S = {"cpu": 2e10, "cuda": 1e12}
_ADAPTER_SLOWS = 1.3
_FILL_BYTES_PER_S = 1.2e9
_START_S = 1.0
# Beside repeats and warm-up: the first attach, the memory pass and the proof.
_EXTRA_ATTACHES = 3
# Beside repeats and warm-up, each a merge and an unmerge: ten rounds of drift, the memory pass and the proof.
_EXTRA_MERGES = 14
# Beside repeats and warm-up: the tracked steps, which take longer.
_EXTRA_STEPS = 4


@dataclass(frozen=True, slots=True)
class Expectation:
    """Expected seconds of a whole run, and whether that comes from runs measured here."""

    seconds: float
    is_measured: bool


class Estimator:
    """Expected durations for specs, from the durations of earlier runs."""

    def __init__(self, durations: Iterable[Duration]) -> None:
        by_key: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for item in durations:
            key = (item.kind, item.model, item.adapter, item.strategy, item.dtype, item.device, _work(item.spec))
            by_key[key].append(item.seconds)
        self._medians = {key: statistics.median(values) for key, values in by_key.items()}

    def expect(
        self,
        *,
        kind: str,
        model: str,
        adapter: str | None,
        strategy: str | None,
        dtype: str | None,
        device: str,
        spec: Mapping[str, Any],
        parameters: int | None,
        groups: Sequence[ModuleGroup] = (),
    ) -> Expectation | None:
        """Expected duration of a spec; None where neither runs nor the model's size say anything."""
        measured = self._medians.get((kind, model, adapter, strategy, dtype, device, _work(spec)))
        if measured is not None:
            return Expectation(measured, True)
        rough = _ROUGH.get(kind)
        if parameters is None or rough is None:
            return None
        elements = sum(group.weight_elements for group in groups) or parameters
        fill_s = parameters * _BYTES.get(dtype or "float32", 4) / _FILL_BYTES_PER_S
        return Expectation(_START_S + fill_s + rough(spec, parameters, elements), False)


def _work(spec: Mapping[str, Any]) -> str:
    """What makes runs of one model, adapter and strategy take as long as each other: the kind's own section."""
    section = spec.get("train") or spec.get("inference")
    return json.dumps(section, sort_keys=True) if section else ""


def _repeats(spec: Mapping[str, Any]) -> int:
    return int(spec.get("repeats", 5)) + int(spec.get("warmup", 1))


def _is_dora(spec: Mapping[str, Any]) -> bool:
    return bool(((spec.get("adapter") or {}).get("options") or {}).get("use_dora"))


def _device_kind(spec: Mapping[str, Any]) -> str:
    return "cuda" if str(spec.get("device", "cpu")).startswith("cuda") else "cpu"


def _init_s(spec: Mapping[str, Any], parameters: int, elements: int) -> float:
    rate = _PLAIN_ATTACH_S_PER_BILLION
    if _is_dora(spec):
        rate = _ATTACH_S_PER_BILLION.get(spec.get("strategy") or "stock", _PLAIN_ATTACH_S_PER_BILLION)
    return (_repeats(spec) + _EXTRA_ATTACHES) * elements / 1e9 * rate


def _merge_s(spec: Mapping[str, Any], parameters: int, elements: int) -> float:
    rate = _MERGE_S_PER_BILLION.get(spec.get("strategy") or "stock", _MERGE_S_PER_BILLION["stock"])
    rate *= _DORA_MERGE if _is_dora(spec) else 1.0
    return 2 * (_repeats(spec) + _EXTRA_MERGES) * elements / 1e9 * rate


def _train_s(spec: Mapping[str, Any], parameters: int, elements: int) -> float:
    section = spec["train"]
    tokens = section["context_length"] * section["batch_size"] * section["accumulation"]
    # Two operations per parameter and token forward, two for the inputs' gradients, two for the weights' own.
    passes = 4 if spec.get("adapter") else 6
    passes += 2 if section["gradient_checkpointing"] else 0
    step_s = passes * parameters * tokens / _FLOPS_PER_S[_device_kind(spec)]
    step_s *= _ADAPTER_SLOWS if spec.get("adapter") else 1.0
    plain = ("stock", False, 1, 1, "float32")
    ways = (
        spec["strategy"],
        section["gradient_checkpointing"],
        section["loss_chunks"],
        section["sequence_tiles"],
        (spec.get("adapter") or {}).get("adapter_dtype", "float32"),
    )
    # Plain stock is measured beside anything else.
    return float((_repeats(spec) + _EXTRA_STEPS) * step_s * (1 if ways == plain else 2))


def _inference_s(spec: Mapping[str, Any], parameters: int, elements: int) -> float:
    section = spec["inference"]
    device = _device_kind(spec)
    prefill_s = 2 * parameters * section["prompt_tokens"] * section["batch_size"] / _FLOPS_PER_S[device]
    token_s = parameters * _BYTES.get(spec["dtype"], 4) / _READ_BYTES_PER_S[device]
    request_s = (prefill_s + section["new_tokens"] * token_s) * _ADAPTER_SLOWS
    variants = len(section["variants"]) + (spec["strategy"] != "stock") + (section["adapters"] > 1)
    return float((_repeats(spec) + 1) * variants * request_s)


_ROUGH = {"init": _init_s, "merge": _merge_s, "train": _train_s, "inference": _inference_s}
