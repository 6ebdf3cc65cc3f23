"""How long a run will probably take: from runs stored here, else a stated rough estimate from the model's size.

Only for planning; nothing here is a measurement. Draws nothing.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.runs import Duration
from engine.catalog.modules import ModuleGroup

ESTIMATE_NOTE = "estimated from the model's size, as nothing like it was measured here yet"

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Seconds to attach per 10^9 adapted weights on a two-core CPU, as first seen on Mistral-7B in bfloat16.
_ATTACH_S_PER_BILLION = {"stock": 1.4, "staged": 1.4, "zero_b_norm": 0.14, "batched_norm": 0.3, "factored_norm": 0.5}
_PLAIN_ATTACH_S_PER_BILLION = 0.06
_FILL_BYTES_PER_S = 1.2e9
_START_S = 1.0
# Beside repeats and warm-up: the first attach, the memory pass and the proof.
_EXTRA_ATTACHES = 3


@dataclass(frozen=True, slots=True)
class Expectation:
    """Expected seconds of a whole run, and whether that comes from runs measured here."""

    seconds: float
    is_measured: bool


class Estimator:
    """Expected durations for specs, from the durations of earlier runs."""

    def __init__(self, durations: Iterable[Duration]) -> None:
        by_key: dict[tuple[str | None, ...], list[float]] = defaultdict(list)
        for duration in durations:
            by_key[tuple(duration[:-1])].append(duration.seconds)
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
        measured = self._medians.get((kind, model, adapter, strategy, dtype, device))
        if measured is not None:
            return Expectation(measured, True)
        if parameters is None:
            return None
        options = (spec.get("adapter") or {}).get("options") or {}
        rate = _PLAIN_ATTACH_S_PER_BILLION
        if options.get("use_dora"):
            rate = _ATTACH_S_PER_BILLION.get(strategy or "stock", _PLAIN_ATTACH_S_PER_BILLION)
        elements = sum(group.weight_elements for group in groups) or parameters
        attaches = spec.get("repeats", 5) + spec.get("warmup", 1) + _EXTRA_ATTACHES
        fill_s = parameters * _BYTES.get(dtype or "float32", 4) / _FILL_BYTES_PER_S
        return Expectation(_START_S + fill_s + attaches * elements / 1e9 * rate, False)
