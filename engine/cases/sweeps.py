"""How sweeps of specs are written down: short forms for the specs of each kind. Data only; runs nothing.

Imports no torch.
"""

from __future__ import annotations

from typing import Any, cast

from engine.spec import Measured, parse_spec

DORA: dict[str, Any] = {"options": {"use_dora": True}}


def spec(kind: str, model: str, **fields: Any) -> Measured:
    """A spec of a measured kind; what is left out has the spec's own defaults."""
    return cast(Measured, parse_spec({"kind": kind, "model": model, **fields}))
