"""A stored run as an observation that rules can judge. Reads no database: what was stored is handed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from engine.cases.evidence import DISTURBED_SHARE
from engine.cases.records import Observation
from engine.result import State
from engine.spec import Measured, parse_spec, spec_hash


def observe(
    run_id: int,
    spec: Mapping[str, Any],
    state: State,
    checks: Iterable[Mapping[str, Any]] | None,
    background_cpu_share: float | None,
    metrics: Iterable[tuple[str, str | None, float]],
) -> Observation:
    """A run that ended, from its stored parts; ``metrics`` are (name, variant, value) in the order of repeats.

    Metrics along an axis of their own (stages, rounds) are not repeats of one number; leave them out.

    Raises:
        SpecError: if the spec is not one of this version's.
    """
    parsed = parse_spec(spec)
    values: dict[tuple[str, str | None], list[float]] = {}
    for name, variant, value in metrics:
        values.setdefault((name, variant), []).append(value)
    return Observation(
        run_id=run_id,
        spec=cast(Measured, parsed),
        spec_hash=spec_hash(parsed),
        state=state,
        failed_checks=tuple(str(check["name"]) for check in checks or () if not check["passed"]),
        disturbed=background_cpu_share is not None and background_cpu_share > DISTURBED_SHARE,
        metrics={key: tuple(found) for key, found in values.items()},
    )
