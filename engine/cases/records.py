"""What a published claim is made of: sources and numbers, the sweeps that test it, what was observed, the verdict.

Plain records. Does not decide anything (each case's own module does), run anything or read a database. Imports no
torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from engine.result import State
from engine.spec import Measured

Size = Literal["here", "published", "test"]
"""``here`` finishes in minutes on two cores, ``published`` has the model and device of the claim, ``test`` is for
automatic tests: its tiny model says nothing about the claim."""

Word = Literal[
    "holds here",
    "holds in direction",
    "does not hold here",
    "not enough data yet",
    "not testable on this machine: no GPU",
]
WORDS: tuple[Word, ...] = (
    "holds here",
    "holds in direction",
    "does not hold here",
    "not enough data yet",
    "not testable on this machine: no GPU",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a claim, or what is true about it, was written."""

    label: str
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """One published number, in the unit it was published in; ``note`` says what is not known or not comparable."""

    label: str
    value: float
    unit: str
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """The runs that test a claim at one size.

    ``specs`` are in the order in which they run; the whole list runs ``replicas`` times, one round after the other, so
    that what changes slowly on a machine meets every spec. ``minutes`` is what all of it takes on two cores (for
    ``published``: None, nobody has measured it). ``needs_bytes`` is the memory of the device that it takes.
    """

    size: Size
    model: str
    specs: tuple[Measured, ...]
    replicas: int
    minutes: float | None
    device_kind: Literal["cpu", "cuda"]
    needs_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do about it; ``spec`` is what ``engine.catalog.snippet`` turns into code, where there is any."""

    text: str
    spec: Measured | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A published claim: what was said, what is true, how it is tested and by which rule.

    ``claim`` is two sentences at most. ``rule`` is one sentence: what the verdict's code does. ``key_label`` names the
    verdict's key value. ``predicted`` are sweeps of larger models that are only predicted: no machine is needed.
    """

    id: str
    number: int
    title: str
    question: str
    claim: str
    sources: tuple[Source, ...]
    published: tuple[Published, ...]
    truth: str
    rule: str
    advice: tuple[Advice, ...]
    key_label: str
    sweeps: tuple[Sweep, ...]
    predicted: tuple[Sweep, ...] = ()

    def sweep(self, size: Size) -> Sweep:
        """The runs that test this claim at a size."""
        return next(sweep for sweep in self.sweeps if sweep.size == size)


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """A run that ended, as a rule sees it.

    ``failed_checks`` are the names of the checks that failed. ``disturbed``: others used so much of the CPU that its
    times do not count. ``metrics`` has the values of each metric by name and variant, in the order of their repeats.
    """

    run_id: int
    spec: Measured
    spec_hash: str
    state: State
    failed_checks: tuple[str, ...]
    disturbed: bool
    metrics: Mapping[tuple[str, str | None], tuple[float, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """A measured ratio beside the published one.

    ``measured`` is the median; ``low`` and ``high`` are the smallest and largest between runs, or the quartiles of
    repeats inside runs; all None where nothing was measured. ``published`` is None where no number was published. ``x``
    is the position along the case's axis (a context length, a number of modules) where it has one.
    """

    label: str
    measured: float | None
    low: float | None
    high: float | None
    published: float | None
    x: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule says of the runs so far: ``have`` runs of the ``need`` that it takes.

    ``sentence`` has the numbers and their spread. ``key_value`` is a ratio, None until there is one.
    """

    word: Word
    sentence: str
    key_value: float | None
    ratios: tuple[Ratio, ...]
    have: int
    need: int
