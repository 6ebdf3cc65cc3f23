"""What is known of a measured spec when its requirements are checked. Data only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from engine.catalog.adapter_types import AdapterType
from engine.catalog.modules import ModuleGroup
from engine.result import Device


@dataclasses.dataclass(frozen=True)
class Subject:
    """A spec's surroundings.

    ``model_config`` is the model's ``config.json`` (None where the model is unknown), ``groups`` its adaptable modules
    (None where not known yet), ``adapter_type`` the catalog's entry (None for the bare model or an unknown type),
    ``options`` the adapter's options by PEFT's names (a saved adapter's whole config), ``devices`` this machine's.
    """

    model_config: Mapping[str, Any] | None
    groups: Sequence[ModuleGroup] | None
    adapter_type: AdapterType | None
    options: Mapping[str, Any]
    devices: Sequence[Device]

    @property
    def is_dora(self) -> bool:
        """Whether the adapter is DoRA."""
        return self.options.get("use_dora") is True
