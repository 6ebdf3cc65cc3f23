"""Predictions as the supervisor would have stored them, for tests of the pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from db import predictions
from db.session import Database
from engine.spec import Measured, parse_spec, prediction_key, spec_hash

Peaks = Mapping[str | tuple[str, str], float]


def entry(document: Mapping[str, Any], peaks: Peaks, card: str | None = None, **fields: Any) -> dict[str, Any]:
    """A request's entry for one spec (on a card): these metrics in bytes, by name or by name and variant."""
    spec = cast(Measured, parse_spec(dict(document)))
    pairs = [(name, value) if isinstance(name, tuple) else ((name, None), value) for name, value in peaks.items()]
    highest = max((pair for pair in pairs if pair[0][0] == "peak_bytes"), key=lambda pair: pair[1], default=None)
    return {
        "key": prediction_key(spec, card),
        "spec_hash": spec_hash(spec),
        "error": None,
        "metrics": [
            {"name": name, "unit": "bytes", "variant": variant, "x": None, "repeat": 0, "value": value}
            for (name, variant), value in pairs
        ],
        "course": [],
        "peak_variant": highest[0][1] if highest else None,
        "peak_part": "forward",
        "top_tensors": [],
        "notes": [],
        **fields,
    }


def store(
    database: Database, document: Mapping[str, Any], peaks: Peaks, card: str | None = None, **fields: Any
) -> None:
    """Keep a prediction of a spec (on a card)."""
    with database.writing() as session:
        predictions.store(session, [entry(document, peaks, card, **fields)], card)


def refuse(database: Database, document: Mapping[str, Any], sentence: str) -> None:
    """Keep the sentence that says why a spec cannot be predicted."""
    store(database, document, {}, error={"field": "spec", "text": sentence})
