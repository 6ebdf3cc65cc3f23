"""The bundled models: real dimensions of public models, each with its source, as JSON files in ``models/``.

The hand-written part of a file is the label, the source, the published parameter count and the transformers config; the
rest is written by ``python -m engine.generate_catalog``. Builds no model. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.catalog.lookup import look_up
from engine.catalog.modules import ModuleGroup

MODELS_FOLDER = Path(__file__).parent / "models"


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A bundled architecture.

    ``config`` is a transformers config as JSON; ``parameters`` counts tied weights once; ``attention`` lists the
    implementations that the model's code offers.
    """

    id: str
    label: str
    source: str
    config: Mapping[str, Any]
    published_parameters: int
    parameters: int
    layers: int
    hidden_size: int
    max_positions: int
    tied_embeddings: bool
    attention: tuple[str, ...]
    groups: tuple[ModuleGroup, ...]

    @property
    def model_type(self) -> str:
        """The transformers model type, such as "llama"."""
        return str(self.config["model_type"])


@functools.cache
def models() -> Mapping[str, ModelEntry]:
    """All bundled models by id, smallest first."""
    entries = []
    for path in MODELS_FOLDER.glob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        data["groups"] = tuple(ModuleGroup.from_json(group) for group in data["groups"])
        data["attention"] = tuple(data["attention"])
        entries.append(ModelEntry(**data))
    return {entry.id: entry for entry in sorted(entries, key=lambda entry: (entry.parameters, entry.id))}


def model(name: str) -> ModelEntry:
    """The bundled model called ``name``.

    Raises:
        UnknownEntry: naming the nearest id.
    """
    return look_up("model", name, models())
