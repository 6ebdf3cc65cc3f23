"""Whether runs go into the memory that is free, from their predicted peaks: as a word, a table's columns and sentences.

Pure functions on predictions and sizes; ``engine.catalog.fitting`` has the rule. Draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from app import formatting
from app.widgets.predictions import Predicted
from engine.catalog import fitting
from engine.catalog.fitting import Fit
from engine.result import Device
from engine.spec import Measured, spec_hash

WORDS: tuple[Fit, ...] = ("fits", "tight", "will not fit")
#: Colour names of chips, by word.
COLOURS = ("green", "orange", "red")
PEAK, FITS = "Predicted peak", "Fits"
WAITING = "…"
HELP = (
    "The predicted peak of the job's tensors, with what a process takes beside them, against the memory that is free "
    f"now (of a GPU: all that it has). {formatting.sentence(fitting.RULE[:1].upper() + fitting.RULE[1:])}"
)


#: From a spec to the devices that its run may get, and the memory that a process could use there, in bytes.
RoomFor = Callable[[Measured], tuple[Sequence[Device], float]]


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a run is predicted to need, the memory that there is for it, in bytes, and whether it fits."""

    needed_bytes: float
    memory_bytes: float
    word: Fit


def of(spec: Measured, predicted: Predicted | None, devices: Iterable[Device], free_bytes: float) -> Fitting | None:
    """Whether a run fits where its spec wants to run; None without a prediction or where its device is not here.

    Args:
        spec: of the run.
        predicted: what is known of it.
        devices: that it may get.
        free_bytes: memory that a new process could use there.
    """
    if predicted is None or predicted.peak_bytes is None:
        return None
    if spec.device == "cpu":
        needed: float = fitting.process_bytes(int(predicted.peak_bytes))
        memory: float = min(free_bytes, spec.memory_limit_bytes or free_bytes)
    else:
        needed = predicted.device_bytes or predicted.reserved_bytes or predicted.peak_bytes
        sizes = [device.memory_bytes for device in devices if device.id == spec.device]
        if not sizes:
            return None
        memory = sizes[0]
    return Fitting(needed, memory, fitting.fit(needed, memory))


def columns(
    specs: Sequence[Measured | None],
    known: Mapping[str, Predicted],
    waiting: Iterable[str],
    room_for: RoomFor,
) -> pd.DataFrame:
    """The predicted peak of each run as text, and whether it fits as a list of at most one word.

    Args:
        specs: of the runs; None for what cannot run, which has neither.
        known: predictions by spec hash.
        waiting: hashes of the specs that are being predicted.
        room_for: where each may run.
    """
    wanted = set(waiting)
    lines: list[tuple[str, list[str]]] = []
    for spec in specs:
        if spec is None:
            lines.append((formatting.DASH, []))
            continue
        hashed = spec_hash(spec)
        predicted = known.get(hashed)
        fit = of(spec, predicted, *room_for(spec))
        if predicted is None or predicted.peak_bytes is None:
            lines.append((WAITING if predicted is None and hashed in wanted else formatting.DASH, []))
        else:
            lines.append((formatting.size(predicted.peak_bytes), [fit.word] if fit else []))
    return pd.DataFrame(lines, columns=[PEAK, FITS])


def sentences(
    specs: Iterable[Measured], known: Mapping[str, Predicted], room_for: RoomFor
) -> tuple[str | None, list[str]]:
    """What a person should know before launching: which runs will not fit, and why some have no prediction.

    Args:
        specs: of the runs.
        known: predictions by spec hash.
        room_for: where each may run.

    Returns:
        A sentence on the runs that will not fit (None where all do), and one for each reason of no prediction.
    """
    too_large: list[Fitting] = []
    reasons: Counter[str] = Counter()
    for spec in specs:
        predicted = known.get(spec_hash(spec))
        fit = of(spec, predicted, *room_for(spec))
        if fit is not None and fit.word == "will not fit":
            too_large.append(fit)
        if predicted is not None and predicted.error is not None:
            reasons[predicted.error] += 1
    unknown = [
        f"{formatting.plural(number, 'run')} not predicted: {formatting.sentence(reason)}"
        for reason, number in reasons.items()
    ]
    if not too_large:
        return None, unknown
    most = max(too_large, key=lambda one: one.needed_bytes)
    runs = "1 run" if len(too_large) == 1 else f"{len(too_large)} runs"
    upto = "it needs about" if len(too_large) == 1 else "they need up to about"
    needed, free = formatting.size(most.needed_bytes), formatting.size(most.memory_bytes)
    return f"{runs} will not fit: {upto} {needed}, and {free} are free.", unknown
