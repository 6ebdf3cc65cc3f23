"""What is predicted of a published claim: its ratios beside the measured ones, and for models too large to measure.

Only claims on memory have predictions. Draws nothing but :func:`larger_models`; judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from app import figures, formatting
from app.widgets import acting, labels, predictions, presenting
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Chart, draw
from app.widgets.predictions import Predicted
from engine import cases
from engine.cases import Case, Ratio, Sweep
from engine.spec import Measured, TrainSpec, spec_hash

#: The claims whose rules speak of bytes, which can be predicted.
OF_BYTES = ("merge", "train_memory")
PUBLISHED = "published"
_SAVING_TITLE = "LoRA's peak over full fine-tuning's, predicted"


def ratios(case: Case, sweep: Sweep, known: Mapping[str, Predicted]) -> tuple[Ratio, ...]:
    """The ratios of one sweep as they are predicted; those without predictions have no value."""
    return cases.predicted_ratios(case, sweep, {hashed: one.metrics for hashed, one in known.items()})


def with_predicted(case: Case, sweep: Sweep, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame of measured ratios with a column of predicted ones, where there are any.

    Args:
        case: the claim.
        sweep: which of its sweeps the ratios are of.
        frame: ``label`` and what was measured.
    """
    if case.id not in OF_BYTES:
        return frame
    found = {ratio.label: ratio.measured for ratio in ratios(case, sweep, predictions.known(sweep.specs))}
    predicted = pd.to_numeric(frame["label"].map(found), errors="coerce")
    if predicted.isna().all():
        return frame
    shown = frame.copy()
    shown.insert(int(frame.columns.get_indexer(["published"])[0]) + 1, "predicted", predicted)
    return shown


def wanted(case: Case, sweep: Sweep) -> list[Measured]:
    """Every spec that the page of a claim can show predictions of: of the sweep that is shown, and of larger models."""
    if case.id not in OF_BYTES:
        return []
    return [*sweep.specs, *(spec for larger in case.predicted for spec in larger.specs)]


def ask_button(case: Case, sweep: Sweep) -> None:
    """Asks for what is not predicted yet, and follows what is on its way; nothing while presenting."""
    specs = wanted(case, sweep)
    if not specs or presenting.is_on():
        return
    settled = predictions.known(specs).keys() | predictions.waiting(specs)
    left = [spec for spec in specs if spec_hash(spec) not in settled]
    with st.container(horizontal=True, vertical_alignment="center"):
        if left:
            models = dict.fromkeys(labels.model_label(spec.model) for spec in left)
            acting.button(
                f"Predict {formatting.plural(len(left), 'peak')}",
                key="predict_case",
                icon=":material/online_prediction:",
                on_click=_ask,
                args=(left,),
                help="From the job's own code, without its memory; takes about a second each.",
            )
            st.markdown(f":gray[{formatting.plain(formatting.listing(models))}]", width="content")
        predictions.follow(specs)


def _ask(specs: Sequence[Measured]) -> None:
    predictions.ask(specs)


def larger_models(case: Case) -> None:
    """The claim's ratio for models of every size along context length, as far as it is predicted."""
    specs = [spec for sweep in case.predicted for spec in sweep.specs]
    if not specs:
        return
    known = predictions.known(specs)
    frame = saving_frame(case, known)
    if frame.empty:
        return
    st.subheader("Larger models, predicted", anchor=False)
    figure = figures.lines(
        chart_frame(case, frame),
        _colours([sweep.model for sweep in case.predicted]),
        title=_SAVING_TITLE,
        unit="ratio",
        x_title="context length",
        better=None,
        is_log_x=True,
        baseline=PUBLISHED,
        reference=1.0,
    )
    alt = f"{_SAVING_TITLE}, against context length, a line per model; what was published is dashed"
    draw([Chart(figure, "larger_chart", alt)])
    presenting.words(little_saved(frame))
    if presenting.is_on():
        return
    st.page_link("views/fit.py", label="What fits on which card", icon=":material/fit_screen:")
    with st.expander("Predicted peaks", icon=":material/table_rows:"):
        shown = pd.DataFrame(
            {
                "Model": frame["model"].map(labels.model_label),
                "Context length": frame["context_length"],
                "Full fine-tuning": frame["full_bytes"].map(formatting.size),
                "LoRA": frame["lora_bytes"].map(formatting.size),
                "LoRA / full": frame["ratio"].map(formatting.ratio),
            }
        )
        st.dataframe(shown, hide_index=True, alt="Predicted peaks of full fine-tuning and LoRA by model and length")
        table_downloads(frame, f"case_{case.id}_predicted")


def little_saved(frame: pd.DataFrame) -> str:
    """From which length on LoRA saves little of each model's memory, as one sentence."""
    said = []
    for model, rows in frame.groupby("model", sort=False):
        points = list(zip(rows["context_length"], rows["ratio"], strict=True))
        at = cases.little_saved_from(points)
        where = f"from about {at:.0f}" if at is not None else f"beyond {points[-1][0]}"
        if points[0][1] >= cases.LITTLE_SAVED:
            where = f"before {points[0][0]}"
        said.append(f"{where} with {labels.model_label(str(model))}")
    share = formatting.share(1 - cases.LITTLE_SAVED)
    return formatting.plain(f"LoRA saves less than {share}, in tokens: {', '.join(said)}.")


def saving_frame(case: Case, known: Mapping[str, Predicted]) -> pd.DataFrame:
    """``model context_length full_bytes lora_bytes ratio`` of every length at which both sides are predicted."""
    peaks: dict[tuple[str, int], dict[str, float]] = {}
    for spec in (spec for sweep in case.predicted for spec in sweep.specs):
        predicted = known.get(spec_hash(spec))
        if isinstance(spec, TrainSpec) and predicted is not None and predicted.peak_bytes is not None:
            side = "full_bytes" if spec.adapter is None else "lora_bytes"
            peaks.setdefault((spec.model, spec.train.context_length), {})[side] = predicted.peak_bytes
    lines = [
        (model, length, both["full_bytes"], both["lora_bytes"], both["lora_bytes"] / both["full_bytes"])
        for (model, length), both in peaks.items()
        if len(both) == 2
    ]
    return pd.DataFrame(lines, columns=["model", "context_length", "full_bytes", "lora_bytes", "ratio"])


def chart_frame(case: Case, frame: pd.DataFrame) -> pd.DataFrame:
    """The lines of the chart: a group per model, and what was published of the claim's own model."""
    names = frame["model"].map(labels.model_label)
    lines = frame.assign(group=names, adapter=frame["model"], x=frame["context_length"], value=frame["ratio"])
    # The rule has the published ratios by length.
    published = [ratio for sweep in case.predicted[:1] for ratio in cases.predicted_ratios(case, sweep, {})]
    said = pd.DataFrame(
        [(PUBLISHED, "", ratio.x, ratio.published) for ratio in published if ratio.published is not None],
        columns=["group", "adapter", "x", "value"],
    )
    found = pd.concat([lines[["group", "adapter", "x", "value"]], said], ignore_index=True)
    return found.assign(run_id=0)


def _colours(models: Sequence[str]) -> dict[str, str]:
    return dict(zip(models, formatting.PALETTE, strict=False))
