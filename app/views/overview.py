"""Overview: what adapters cost on this machine, a section for each kind of run that was measured here."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import formatting, state
from app.kinds import KINDS
from app.widgets import first_sweep, frames, labels
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, cards, draw
from db import runs
from db.runs import RunRow

LORA, DORA = "LoRA · Stock PEFT", "DoRA · Stock PEFT"
TITLES = {
    "init": "Attaching an adapter",
    "merge": "Merging an adapter",
    "train": "Training",
    "inference": "Generating text",
}
BASELINES = {"init": LORA, "merge": LORA, "train": labels.FULL, "inference": labels.BASE}


@st.fragment(run_every=state.LIVE_EVERY_S)
def live_progress(ended: int) -> None:
    """The first sweep while it runs, read from the database at every tick; each run that ends redraws the chart."""
    with state.database().reading() as session:
        current = first_sweep.latest(session)
    if current is None or not current.is_active or current.ended != ended:
        st.rerun()
    else:
        first_sweep.progress_card(current)


def init_numbers(summary: pd.DataFrame) -> None:
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

    ratio = formatting.ratio(dora / lora if lora and dora else None)
    cards(
        [
            Card("LoRA init", formatting.seconds(lora), evidence(LORA)),
            Card("DoRA init, stock", formatting.seconds(dora), evidence(DORA)),
            Card("DoRA / LoRA", ratio, "stock against stock"),
            Card(
                f"Fastest DoRA: {best.removeprefix('DoRA · ')}" if best else "Fastest DoRA",
                formatting.seconds(medians[best]) if best else formatting.DASH,
                f"{formatting.ratio(times)} as fast as stock" if times else "not measured",
                is_good=bool(times and times > 1),
            ),
        ]
    )


def pick_setting(kind: str, rows: list[RunRow]) -> tuple[str, dict[int, RunRow]]:
    """The runs of one setting, newest first, with those without an adapter that are alike in the rest."""
    with_adapter = [row for row in rows if row.spec.get("adapter") is not None]
    settings = list(dict.fromkeys(labels.setting_label(row.spec) for row in with_adapter or rows))
    setting = settings[0]
    if len(settings) > 1:
        setting = st.selectbox(
            "Setting",
            settings,
            key=f"overview_setting_{kind}",
            width=460,
            help="Only runs that are alike in all of this are compared.",
        )
    alike = [row for row in rows if labels.setting_label(row.spec) == setting]
    shared = {labels.bare_setting_label(row.spec) for row in alike}
    bare = [row for row in rows if row.spec.get("adapter") is None and labels.setting_label(row.spec) in shared]
    return setting, {row.id: row for row in [*alike, *bare]}


def section(kind: str, rows: list[RunRow]) -> None:
    """What was measured of one kind: its first chart and the numbers behind it."""
    view = KINDS[kind]
    st.subheader(TITLES[kind], anchor=kind)
    setting, chosen = pick_setting(kind, rows)
    st.caption(formatting.plain(f"{setting} · {state.devices()[0].name}"))
    disturbed = [run for run in chosen.values() if (run.background_cpu_share or 0) > frames.DISTURBED_SHARE]
    if disturbed:
        st.warning(
            f"Other processes used the CPU during {formatting.plural(len(disturbed), 'run')} of {len(chosen)}; "
            "measure again when the machine is quiet.",
            icon=":material/noise_aware:",
        )
    with state.database().reading() as session:
        values = runs.metric_values(session, run_ids=chosen, names=view.NAMES)
    frame = frames.in_order(frames.metric_frame(values, chosen, frames.way_label), view.COMPARED)
    if kind == "inference":
        frame = view.by_variant(frame)
    summary = view.summary(frame)
    device = state.devices()[0]
    limit = {"limit": (f"{device.id}: {formatting.size(device.memory_bytes)}", device.memory_bytes)}
    charts = view.comparison(frame, baseline=BASELINES[kind], **(limit if kind == "train" else {}))
    if not charts:
        st.info("The runs of this setting hold no numbers.", icon=":material/info:")
        return
    if kind == "init":
        init_numbers(summary)
    draw(charts[:1])
    with st.expander("Numbers", icon=":material/table_rows:", expanded=kind == "init"):
        shown = view.table(summary)
        right = st.column_config.TextColumn(alignment="right")
        st.dataframe(
            shown,
            hide_index=True,
            alt=f"The numbers of the chart: {TITLES[kind]}",
            column_config={name: right for name in shown.columns[1:]},
        )
        table_downloads(summary, f"{kind}_summary")


st.title("Adapters on this machine")

with state.database().reading() as session:
    stored = runs.list_runs(session, kinds=list(KINDS), states=["succeeded"], limit=2000)
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
model = models[0]
if len(models) > 1:
    model = st.selectbox(
        "Model", models, format_func=labels.model_label, key="overview_model", bind="query-params", width=260
    )
else:
    st.caption(formatting.plain(labels.model_label(model)))
for kind in KINDS:
    of_kind = [row for row in stored if row.model == model and row.kind == kind]
    if of_kind:
        section(kind, of_kind)
if sweep is not None and not sweep.is_active:
    first_sweep.unsuccessful_notes(sweep)
