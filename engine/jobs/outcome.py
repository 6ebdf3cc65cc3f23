"""What a job hands back: the same shape for every kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.result import Check, Metric, Sample


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured and verified in one run; a request that measures nothing fills ``inspection`` instead."""

    metrics: tuple[Metric, ...] = ()
    checks: tuple[Check, ...] = ()
    samples: tuple[Sample, ...] = ()
    inspection: Mapping[str, Any] | None = None
