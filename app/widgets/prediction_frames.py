"""Predictions as DataFrames for charts and tables, beside what was measured of the same. Draws and asks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from app import formatting
from app.widgets import fits, labels
from app.widgets.predict_form import Asked, Place
from app.widgets.predictions import Predicted
from engine.cases.train_memory import PUBLISHED_RATIOS

#: What a job takes on top of the model before it, where a run of its kind measures that.
EXTRA = {"init": "init_peak_extra_bytes", "merge": "merge_peak_extra_bytes"}
#: What a device counts beside tensors: its allocator, libraries and driver; a name among ``CATEGORY_COLOURS``.
BESIDE = "beside tensors"
PUBLISHED_MODEL = "tinyllama-1.1b"
PUBLISHED_NOTE = (
    "Published: huggingface/peft#1514, LoRA of rank 64 on every linear layer; its batch size, dtype and attention are "
    "not known, so the ratios and their rise are what can be compared."
)
_STACK = ["group", "x", "part", "value", "label"]
#: Peaks that were measured, by spec hash and variant, in bytes.
Peaks = Mapping[tuple[str, str | None], float]


def stacks(asked: Sequence[Asked], known: Mapping[str, Predicted]) -> pd.DataFrame:
    """``group x part value label`` of every predicted peak: a line per category, none where that is nothing."""
    lines = [
        (one.group, one.length, part, size, one.group)
        for one in asked
        for part, size in (_stack(known[one.hash]) if one.hash in known else {}).items()
        if size
    ]
    return pd.DataFrame(lines, columns=_STACK)


def _stack(predicted: Predicted) -> dict[str, float]:
    """The parts at the peak, and on a device that counts more than tensors also what that is."""
    beside = (predicted.device_bytes or 0.0) - (predicted.peak_bytes or 0.0)
    return {**predicted.parts, **({BESIDE: beside} if beside > 0 else {})}


def points(asked: Sequence[Asked], known: Mapping[str, Predicted], measured: Peaks) -> pd.DataFrame:
    """``group x value`` of the measured peaks of what was asked for, of the same variant as predicted."""
    lines = [
        (one.group, one.length, measured[one.hash, known[one.hash].variant])
        for one in asked
        if one.hash in known and (one.hash, known[one.hash].variant) in measured
    ]
    return pd.DataFrame(lines, columns=["group", "x", "value"])


def variants(predicted: Predicted) -> pd.DataFrame:
    """``label part value``: the parts at the peak of each form of the model, a row for each."""
    lines = []
    for name, variant in predicted.metrics:
        if name == "peak_bytes":
            label = formatting.metric_title(name) if variant is None else str(variant).replace("_", " ").capitalize()
            parts = predicted.parts_of(variant)
            lines += [(label, part, size) for part, size in parts.items() if size]
    return pd.DataFrame(lines, columns=["label", "part", "value"])


def course(predicted: Predicted) -> pd.DataFrame:
    """``number part category bytes`` of the course of memory."""
    lines = [
        (moment["number"], moment["part"], category, size)
        for moment in predicted.course
        for category, size in moment["bytes"].items()
    ]
    return pd.DataFrame(lines, columns=["number", "part", "category", "bytes"])


def against_full(asked: Sequence[Asked], known: Mapping[str, Predicted], measured: Peaks, bare: str) -> pd.DataFrame:
    """Peaks over those of full fine-tuning at the same length, as ``app.figures.ratios`` wants them.

    Published ratios are there for LoRA on TinyLlama (case 3); see :data:`PUBLISHED_NOTE`.
    """
    full = {one.length: one for one in asked if one.group == bare}
    lines = []
    for one in asked:
        other = full.get(one.length)
        if one.group == bare or other is None or one.length is None:
            continue
        ratio = _over(_peak(known, one), _peak(known, other))
        here = _over(measured.get((one.hash, None)), measured.get((other.hash, None)))
        published = PUBLISHED_RATIOS.get(one.length) if _is_published(one) else None
        if ratio is not None:
            label = f"{one.group}, {one.length} tokens"
            lines.append((label, one.group, one.length, ratio, here, here, here, published))
    columns = ["label", "group", "length", "predicted", "measured", "low", "high", "published"]
    return pd.DataFrame(lines, columns=columns)


def table(
    asked: Sequence[Asked], known: Mapping[str, Predicted], measured: Peaks, place: Place, free_bytes: float
) -> pd.DataFrame:
    """A line for each spec in stored units: method, length, peak, its parts, whether it fits, what was measured."""
    lines = []
    for one in asked:
        predicted = known.get(one.hash, Predicted(one.hash))
        fit = fits.of(one.spec, predicted, [place.device], free_bytes)
        line: dict[str, Any] = {
            "method": one.group,
            "length": one.length,
            "peak_bytes": predicted.peak_bytes,
            "fits": fit.word if fit else None,
            "needed_bytes": fit.needed_bytes if fit else None,
            "extra_bytes": predicted.metrics.get((EXTRA.get(one.spec.kind, ""), predicted.variant)),
            "reserved_bytes": predicted.reserved_bytes,
            **{f"{part.replace(' ', '_')}_bytes": size for part, size in predicted.parts.items()},
            "measured_bytes": measured.get((one.hash, predicted.variant)),
            "problem": predicted.error,
        }
        lines.append(line)
    frame = pd.DataFrame(lines)
    always = ("method", "peak_bytes", "fits")
    return frame.drop(columns=[name for name in frame if name not in always and frame[name].isna().all()])


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""
    names = {"method": "Method", "length": "Length", "fits": "Fits", "problem": "Not predicted, because"}
    columns = {}
    for name in frame:
        if str(name).endswith("_bytes"):
            title = _TITLES.get(str(name)) or str(name).removesuffix("_bytes").replace("_", " ").capitalize()
            columns[title] = frame[name].map(formatting.size)
        else:
            columns[names[str(name)]] = frame[name] if name == "length" else frame[name].fillna("")
    # Chips, in the same colours as on Launch.
    return pd.DataFrame(columns).assign(Fits=[[word] if word else [] for word in frame["fits"].fillna("")])


_TITLES = {
    "peak_bytes": "Predicted peak",
    "needed_bytes": "Needs in all",
    "extra_bytes": "On top of the model",
    "reserved_bytes": "Reserved",
    "measured_bytes": "Measured peak",
}


def _is_published(one: Asked) -> bool:
    return one.spec.model == PUBLISHED_MODEL and one.adapter == labels.adapter_label({"type": "lora"})


def _peak(known: Mapping[str, Predicted], one: Asked) -> float | None:
    return known[one.hash].peak_bytes if one.hash in known else None


def _over(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None
