"""A case's ratios as they are predicted: its own rule, given predicted bytes in place of measured ones.

Predicts nothing itself and judges nothing: a verdict needs runs. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.cases.records import Observation, Ratio, Sweep, Verdict
from engine.spec import spec_hash

Peaks = Mapping[tuple[str, str | None], float]
"""Predicted numbers by the name and variant that a measured run has them under."""


def predicted_ratios(
    judge: Callable[[Sweep, Sequence[Observation]], Verdict], sweep: Sweep, predicted: Mapping[str, Peaks]
) -> tuple[Ratio, ...]:
    """The ratios that a rule would see if every run took what is predicted; those that it cannot form have no value.

    Args:
        judge: the case's rule.
        sweep: which runs.
        predicted: what is known of each spec, by its hash.
    """
    observed = [
        Observation(
            run_id=number,
            spec=spec,
            spec_hash=known,
            state="succeeded",
            failed_checks=(),
            disturbed=False,
            metrics={key: (value,) for key, value in predicted[known].items()},
        )
        for number, spec in enumerate(sweep.specs)
        if predicted.get(known := spec_hash(spec))
    ]
    return judge(sweep, observed).ratios
