"""Overview: how long attaching an adapter takes on this machine, by adapter and strategy."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, formatting, state
from app.widgets import first_sweep, frames, labels
from app.widgets.downloads import table_downloads
from db import runs


@st.fragment(run_every=1)
def live_progress() -> None:
    """The first sweep while it runs, read from the database at every tick."""
    with state.database().reading() as session:
        current = first_sweep.latest(session)
    if current is None or not current.is_active:
        st.rerun()
    else:
        first_sweep.progress_card(current)


def key_numbers(table: pd.DataFrame) -> None:
    """The answer in four numbers."""
    by_variant = table.set_index("variant")["median_s"]
    lora, dora = by_variant.get("LoRA · Stock PEFT"), by_variant.get("DoRA · Stock PEFT")
    faster = by_variant[by_variant.index.str.startswith("DoRA · ") & (by_variant.index != "DoRA · Stock PEFT")]
    best = faster.idxmin() if len(faster) else None
    with st.grid(4, min_column_width=170):
        st.metric("LoRA init", formatting.seconds(lora), border=True, height="stretch")
        st.metric("DoRA init, stock", formatting.seconds(dora), border=True, height="stretch")
        st.metric(
            "DoRA / LoRA",
            formatting.ratio(dora / lora if lora and dora else None),
            border=True,
            height="stretch",
            help="How many times as long as LoRA stock DoRA takes to attach.",
        )
        st.metric(
            f"Fastest DoRA: {best.removeprefix('DoRA · ')}" if best else "Fastest DoRA",
            formatting.seconds(by_variant[best]) if best else formatting.DASH,
            delta=f"{formatting.ratio(dora / by_variant[best])} as fast as stock" if best and dora else None,
            delta_arrow="off",
            delta_color="green" if best and dora and by_variant[best] < dora else "off",
            border=True,
            height="stretch",
        )


def table(summary: pd.DataFrame) -> None:
    """The chart's numbers."""
    unit, unit_bytes = formatting.byte_unit(float(summary["peak_extra_bytes"].max() or 0))
    shown = summary.assign(peak_extra_bytes=summary["peak_extra_bytes"] / unit_bytes)
    st.dataframe(
        shown,
        hide_index=True,
        alt="Time and memory to attach the adapter, by adapter and strategy",
        column_config={
            "variant": st.column_config.TextColumn("Adapter and strategy", pinned=True),
            "median_s": st.column_config.NumberColumn("Median", format="%.3g s"),
            "lower_quartile_s": st.column_config.NumberColumn("Lower quartile", format="%.3g s"),
            "upper_quartile_s": st.column_config.NumberColumn("Upper quartile", format="%.3g s"),
            "repeats": st.column_config.NumberColumn("Repeats"),
            "runs": st.column_config.NumberColumn("Runs"),
            "times_lora": st.column_config.NumberColumn("Times LoRA", format="%.3g×"),
            "peak_extra_bytes": st.column_config.NumberColumn(f"Peak extra memory, {unit}", format="%.3g"),
        },
    )
    table_downloads(summary, "init_by_strategy")


st.title("Adapter init on this machine")

with state.database().reading() as session:
    stored = runs.list_runs(session, kinds=["init"], states=["succeeded"], limit=2000)
    sweep = first_sweep.latest(session)
# Imported runs come from other machines.
stored = [row for row in stored if row.origin == "local"]

if sweep is not None and sweep.is_active:
    live_progress()
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
key_numbers(summary)
st.plotly_chart(
    figures.init_seconds(frame, labels.adapter_colours(), baseline="LoRA · Stock PEFT"),
    key="init_chart",
    config={"displaylogo": False},
    alt="Seconds to attach the adapter by adapter and strategy, lower is better; the table below has the numbers",
)
table(summary)
if sweep is not None and not sweep.is_active:
    first_sweep.unsuccessful_notes(sweep)
