"""Where a job could run: a card of the catalog, or this machine's CPU with the memory that a run may take of it."""

from __future__ import annotations

import dataclasses

from engine import catalog
from engine.measure.environment import devices
from engine.measure.free_memory import reserve_bytes
from engine.result import Device
from engine.spec import THIS_MACHINE


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A device, how much memory a job may take of it, and where that figure is from.

    ``device`` is what a spec for it says. Speeds are those of the data sheet, None where there is none.
    """

    id: str
    label: str
    device: str
    memory_bytes: int
    memory_source: str
    dtypes: tuple[str, ...]
    capability: tuple[int, int] | None = None
    half_flops_per_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    speed_source: str = ""

    @property
    def as_device(self) -> Device:
        """The place as a machine would report it."""
        kind = self.device.partition(":")[0]
        return Device(self.device, kind, self.label, self.memory_bytes, self.dtypes)  # type: ignore[arg-type]


def place(name: str) -> Place:
    """The place of that name: ``this-machine``, or the id of a card.

    Raises:
        UnknownEntry: naming the nearest card.
    """
    if name == THIS_MACHINE:
        cpu = devices()[0]
        return Place(
            name,
            "This machine",
            cpu.id,
            max(0, cpu.memory_bytes - reserve_bytes()),
            "this machine's memory, less what no run may take; what other programs hold is not looked at",
            cpu.dtypes,
        )
    card = catalog.card(name)
    return Place(
        card.id,
        card.label,
        "cuda:0" if card.device == "cuda" else card.device,
        card.memory_bytes,
        card.source,
        card.dtypes,
        card.compute_capability,
        card.half_flops_per_s,
        card.bandwidth_bytes_per_s,
        card.speed_source,
    )
