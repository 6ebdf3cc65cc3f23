"""What was predicted of one run beside what was measured: a card, sentences and a table. Predicts nothing itself."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from app import formatting, state
from app.comparison import accuracy
from app.kinds import KINDS
from app.widgets import fits, predicted_runs
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, Metrics
from app.widgets.predictions import Predicted
from db.runs import RunDetail

_OTHER_VERSIONS = "The run was measured with other versions than those installed here, which the prediction is of."


def known(run: RunDetail) -> Predicted | None:
    """What is predicted of a run, None where nothing is known yet or its kind is not predicted."""
    return predicted_runs.known([run]).get(run.spec_hash) if run.kind in KINDS else None


def medians(metrics: Metrics) -> dict[tuple[str, str | None], float]:
    """The medians of a run's metrics, by name and variant."""
    rows = metrics.frame[metrics.frame["x"].isna()]
    found = rows.groupby(["name", "variant"], sort=False, dropna=False)["value"].median()
    return {
        (str(name), variant if isinstance(variant, str) else None): float(value)
        for (name, variant), value in found.items()
    }


def card(run: RunDetail, metrics: Metrics, predicted: Predicted | None) -> list[Card]:
    """The predicted peak with its error, of what the run is about; empty where there is nothing on either side."""
    if predicted is None:
        return []
    found = accuracy.pairs(medians(metrics), predicted.metrics)
    main = KINDS[run.kind].main_variant(run)
    # A kind's own extra memory says more than the model under it.
    pair = next((one for one in reversed(found) if one.variant == main), found[0] if found else None)
    if pair is None:
        return []
    label = "Predicted peak"
    if not accuracy.is_of_these_versions(run.environment, predicted_runs.installed()):
        return [Card(label, formatting.size(pair.predicted), "of other versions", _OTHER_VERSIONS)]
    note = "exact to the byte" if pair.error == 0 else f"{formatting.error(pair.error)} of measured"
    return [Card(label, formatting.size(pair.predicted), note, accuracy.shown(pair), is_good=pair.error == 0)]


def foreseen(run: RunDetail, predicted: Predicted | None) -> str | None:
    """What was predicted of a run that has no result (yet), as one sentence; None where nothing is known."""
    if predicted is None or run.state == "succeeded":
        return None
    if predicted.error is not None:
        return f"Not predicted: {formatting.sentence(predicted.error)}"
    spec = predicted_runs.specs([run]).get(run.spec_hash)
    if spec is None or predicted.peak_bytes is None:
        return None
    sentence = f"Predicted: a peak of {formatting.size(predicted.peak_bytes)} of tensors"
    fit = fits.of(spec, predicted, state.devices(), _memory_bytes(run))
    if fit is None:
        return f"{sentence}."
    whole = f", about {formatting.size(fit.needed_bytes)} in all" if fit.needed_bytes != predicted.peak_bytes else ""
    return f"{sentence}{whole}; {formatting.size(fit.memory_bytes)} there ({fit.word})."


def _memory_bytes(run: RunDetail) -> float:
    """What the run's machine has; for one that waits, what is free here."""
    if run.state == "queued":
        return state.free_memory_bytes()
    return float((run.environment or {}).get("memory_bytes") or state.devices()[0].memory_bytes)


def table(run: RunDetail, metrics: Metrics, predicted: Predicted) -> None:
    """Every number that was predicted, beside the measured one where there is one."""
    if predicted.error is not None:
        st.markdown(formatting.plain(formatting.sentence(predicted.error)))
        return
    if run.environment and not accuracy.is_of_these_versions(run.environment, predicted_runs.installed()):
        st.caption(_OTHER_VERSIONS)
    frame = rows(medians(metrics), predicted.metrics)
    shown = pd.DataFrame(
        {
            "Metric": frame["metric"].map(formatting.metric_title),
            "Variant": frame["variant"].fillna("").str.replace("_", " "),
            "Predicted": frame["predicted"].map(formatting.size),
            "Measured": frame["measured"].map(formatting.size),
            "Error": frame["error"].map(formatting.error),
        }
    )
    if not shown["Variant"].any():
        shown = shown.drop(columns="Variant")
    st.dataframe(shown, hide_index=True, alt="Predicted bytes beside measured ones")
    table_downloads(frame, f"run_{run.id}_predicted")
    for note in predicted.notes:
        st.caption(formatting.plain(formatting.sentence(note[:1].upper() + note[1:])))


def rows(
    measured: Mapping[tuple[str, str | None], float], predicted: Mapping[tuple[str, str | None], float]
) -> pd.DataFrame:
    """``metric variant predicted measured error`` of everything in bytes that was predicted."""
    lines = []
    for (name, variant), value in predicted.items():
        if name.endswith("_bytes"):
            seen = measured.get((name, variant))
            error = None if seen is None else accuracy.Pair(name, variant, value, seen).error
            lines.append((name, variant, value, seen, error))
    return pd.DataFrame(lines, columns=["metric", "variant", "predicted", "measured", "error"]).astype(
        {"variant": object, "predicted": float, "measured": float, "error": float}
    )


def ask_button(run: RunDetail, predicted: Predicted | None) -> None:
    """Asks for the prediction of a run that has none."""
    if predicted is None and run.kind in KINDS:
        predicted_runs.ask_button([run], "Predict its peak", key="predict_run", says_how_many=False)
