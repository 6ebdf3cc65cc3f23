"""Overview: how long attaching an adapter takes on this machine, by adapter and strategy."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, formatting, state
from app.widgets import first_sweep, frames, labels
from app.widgets.downloads import table_downloads
from db import runs

LORA, DORA = "LoRA · Stock PEFT", "DoRA · Stock PEFT"


@st.fragment(run_every=state.LIVE_EVERY_S)
def live_progress(ended: int) -> None:
    """The first sweep while it runs, read from the database at every tick; each run that ends redraws the chart."""
    with state.database().reading() as session:
        current = first_sweep.latest(session)
    if current is None or not current.is_active or current.ended != ended:
        st.rerun()
    else:
        first_sweep.progress_card(current)


def key_numbers(summary: pd.DataFrame) -> None:
    """The answer in four numbers, of runs whose checks passed."""
    passed = summary[summary["failed_checks"] == 0].set_index("variant")
    medians = passed["median_s"]
    lora, dora = medians.get(LORA), medians.get(DORA)
    faster = medians[medians.index.str.startswith("DoRA · ") & (medians.index != DORA)]
    best = str(faster.idxmin()) if len(faster) else None
    times = dora / medians[best] if best and dora else None

    def evidence(variant: str) -> str:
        row = passed.loc[variant] if variant in passed.index else None
        return "not measured" if row is None else formatting.evidence(int(row["repeats"]), int(row["runs"]))

    with st.grid(4, min_column_width=170):
        card("LoRA init", formatting.seconds(lora), evidence(LORA))
        card("DoRA init, stock", formatting.seconds(dora), evidence(DORA))
        card("DoRA / LoRA", formatting.ratio(dora / lora if lora and dora else None), "stock against stock")
        card(
            f"Fastest DoRA: {best.removeprefix('DoRA · ')}" if best else "Fastest DoRA",
            formatting.seconds(medians[best]) if best else formatting.DASH,
            f"{formatting.ratio(times)} as fast as stock" if times else "not measured",
            is_good=bool(times and times > 1),
        )


def card(label: str, value: str, note: str, *, is_good: bool = False) -> None:
    """One number with what it stands on."""
    st.metric(
        label,
        value,
        delta=note,
        delta_arrow="off",
        delta_color="green" if is_good else "off",
        border=True,
        height="stretch",
    )


def table(summary: pd.DataFrame) -> None:
    """The chart's numbers."""
    shown = pd.DataFrame(
        {
            "Adapter and strategy": summary["variant"],
            "Median": [formatting.seconds(value) for value in summary["median_s"]],
            "Interquartile range": [
                f"{formatting.seconds(low)} to {formatting.seconds(high)}" if pd.notna(low) else formatting.DASH
                for low, high in zip(summary["lower_quartile_s"], summary["upper_quartile_s"], strict=True)
            ],
            "Measured": [
                formatting.evidence(repeats, runs_)
                for repeats, runs_ in zip(summary["repeats"], summary["runs"], strict=True)
            ],
            "Times LoRA": [formatting.ratio(value) for value in summary["times_lora"]],
            "Peak extra memory": [formatting.size(value) for value in summary["peak_extra_bytes"]],
        }
    )
    right = st.column_config.TextColumn(alignment="right")
    st.dataframe(
        shown,
        hide_index=True,
        alt="Time and memory to attach the adapter, by adapter and strategy",
        column_config={name: right for name in shown.columns[1:]},
    )
    table_downloads(summary, "init_by_strategy")


st.title("Adapter init on this machine")

with state.database().reading() as session:
    stored = runs.list_runs(session, kinds=["init"], states=["succeeded"], limit=2000)
    sweep = first_sweep.latest(session)
# Imported runs come from other machines.
stored = [row for row in stored if row.origin == "local"]

if sweep is not None and sweep.is_active:
    live_progress(sweep.ended)
elif not stored:
    first_sweep.empty_state(sweep)
if not stored:
    st.stop()

models = list(dict.fromkeys(row.model for row in stored))
with st.container(horizontal=True, vertical_alignment="bottom"):
    if len(models) > 1:
        model = st.selectbox(
            "Model", models, format_func=labels.model_label, key="overview_model", bind="query-params", width=260
        )
    else:
        model = models[0]
    of_model = [row for row in stored if row.model == model]
    settings = list(dict.fromkeys(labels.setting_label(row.spec) for row in of_model))
    if len(settings) > 1:
        setting = st.selectbox(
            "Setting",
            settings,
            key="overview_setting",
            width=420,
            help="Only runs that are alike in all of this are compared.",
        )
    else:
        setting = settings[0]

chosen = {row.id: row for row in of_model if labels.setting_label(row.spec) == setting}
with state.database().reading() as session:
    values = runs.metric_values(session, run_ids=chosen, names=frames.CHART_METRICS)
frame = frames.init_frame(values, chosen)
peaks = {run_id: value for (run_id, name), value in frames.medians(values).items() if name == frames.PEAK_EXTRA}
if frame.empty:
    st.info("The runs of this setting hold no init times.", icon=":material/info:")
    st.stop()

summary = frames.summary(frame, peaks)
st.caption(f"{labels.model_label(model)} · {setting} · {state.devices()[0].name}")
disturbed = [run for run in chosen.values() if (run.background_cpu_share or 0) > frames.DISTURBED_SHARE]
if disturbed:
    st.warning(
        f"Other processes used the CPU during {formatting.plural(len(disturbed), 'run')} of {len(chosen)}; "
        "measure again when the machine is quiet.",
        icon=":material/noise_aware:",
    )
key_numbers(summary)
st.plotly_chart(
    figures.init_seconds(frame, labels.adapter_colours(), baseline=LORA),
    key="init_chart",
    config={"displaylogo": False},
    alt="Seconds to attach the adapter by adapter and strategy, lower is better; the table below has the numbers",
)
table(summary)
if sweep is not None and not sweep.is_active:
    first_sweep.unsuccessful_notes(sweep)
