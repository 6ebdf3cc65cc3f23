"""Graphics cards and Apple machines by the memory that a program can have of them: data and its reader.

Does not look at this machine. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.catalog.lookup import look_up

_GIB = 2**30
_FILE = Path(__file__).with_name("cards.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """A card, or a machine whose memory the GPU shares.

    ``memory_bytes`` is what the driver gives to programs, less than the label says: reported by machines (the lowest
    figure, as it differs by driver) or estimated, as ``source`` says. ``dtypes`` are those that it computes in itself.

    ``half_flops_per_s`` is the most that it reaches in dense products of half-precision matrices with float32 sums (a
    multiplication and an addition are two), ``bandwidth_bytes_per_s`` that of its memory: ``speed_source`` says who
    says so. None where that depends on more than the memory.
    """

    id: str
    label: str
    kind: str
    device: str
    label_bytes: int
    memory_bytes: int
    is_estimated: bool
    compute_capability: tuple[int, int] | None
    dtypes: tuple[str, ...]
    source: str
    half_flops_per_s: float | None
    bandwidth_bytes_per_s: float | None
    speed_source: str


@functools.cache
def cards() -> Mapping[str, Card]:
    """All cards by id: data centre, consumer, Apple; each kind from the oldest or smallest on."""
    return {entry["id"]: _card(entry) for entry in json.loads(_FILE.read_text(encoding="utf-8"))}


def card(name: str) -> Card:
    """The card called ``name``.

    Raises:
        UnknownEntry: naming the nearest card.
    """
    return look_up("card", name, cards())


def _card(entry: dict[str, Any]) -> Card:
    capability, half_tflops = entry.pop("compute_capability"), entry.pop("half_tflops")
    bandwidth_gb_per_s = entry.pop("bandwidth_gb_per_s")
    return Card(
        label_bytes=round(entry.pop("label_gib") * _GIB),
        memory_bytes=round(entry.pop("memory_gib") * _GIB),
        compute_capability=capability and tuple(capability),
        dtypes=tuple(entry.pop("dtypes")),
        half_flops_per_s=half_tflops and half_tflops * 1e12,
        bandwidth_bytes_per_s=bandwidth_gb_per_s and bandwidth_gb_per_s * 1e9,
        **entry,
    )
