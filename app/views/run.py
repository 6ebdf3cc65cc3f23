"""Run: everything about one run, named by ``?id=`` in the address."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import streamlit as st

from app import figures, formatting, people, state
from app.comparison.selection import OFFERED_RUNS, ids_text
from app.kinds import KINDS
from app.widgets import acting, labels, launching, manage, own_models, progress, run_prediction, samples
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Chart, Metrics, cards, draw
from app.widgets.predictions import Predicted
from db import runs
from db.documents import FINAL_STATES
from db.runs import RunDetail, RunRow
from engine import catalog
from engine.cases import DISTURBED_SHARE
from engine.spec import Measured, SpecError, parse_spec

FINAL_ADVICE = {
    "out_of_memory": "Free memory, or choose a smaller model, a shorter context, fewer targets or another strategy.",
    "timed_out": "Raise the timeout, or choose fewer repeats.",
    "lost": "The worker ended without a result; the log below may say why, and the run can be started again.",
    "cancelled": "Someone cancelled it.",
    "failed": "The log below has the details.",
}


def run_id() -> int | None:
    """The id in the address, None where there is none or it is no number."""
    text = st.query_params.get("id", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def load(number: int) -> RunDetail | None:
    """The run with its metrics and samples."""
    with state.database().reading() as session:
        return runs.get_run(session, number)


@st.fragment(run_every=state.LIVE_EVERY_S)
def live(number: int) -> None:
    """A queued or running run, until it ends."""
    with state.database().reading() as session:
        rows = [row for row in runs.queued_and_running(session) if row.id == number]
    if not rows:
        st.rerun()
    elif rows[0].state == "running":
        progress.running_card(rows[0])
    else:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            progress.supervisor_badge()
            st.markdown("It waits for its turn.", width="content")
            acting.button(
                "Cancel", key="cancel_waiting", icon=":material/cancel:", on_click=progress.cancel, args=([number],)
            )


def header(run: RunDetail) -> None:
    """Title, state, what it measured, and what can be done with it."""
    icon = formatting.state_icon(run.state)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(progress.run_name(run), anchor=False, width="content")
        st.badge(formatting.state_text(run.state), icon=icon, color=formatting.state_colour(run.state))  # type: ignore[arg-type]
        if run.origin == samples.ORIGIN:
            samples.badge()
        for tag in run.tags:
            st.badge(formatting.plain_badge(tag), icon=":material/label:", color="gray")
    facts = [f"Run {run.id}"]
    if run.kind in KINDS:
        if run.name:
            way = labels.variant_label(run)
            facts.append(f"{labels.kind_label(run.kind)}: {way} on {labels.model_label(run.model)}")
        facts.append(labels.setting_label(run.spec))
    facts.append(formatting.moment(run.finished_at or run.created_at, state.zone()))
    if run.replica:
        facts.append(f"replica {run.replica + 1}")
    if run.sweep_name:
        facts.append(f"sweep {run.sweep_name}")
    if run.origin == "import":
        facts.append("imported")
    if run.archived_at is not None:
        facts.append("archived")
    st.caption(formatting.plain(" · ".join(facts)))
    if run.note:
        st.markdown(formatting.plain(run.note))


def actions(run: RunDetail) -> None:
    """Run again, download, manage, compare."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if run.state not in ("queued", "running"):
            acting.button(
                "Run again",
                icon=":material/replay:",
                on_click=again,
                args=(run,),
                help="Queues the same spec once more, as a replica.",
            )
            st.download_button(
                "Download JSON",
                data=lambda: manage.documents_json([run.id]),
                file_name=f"run-{run.id}.json",
                mime="application/json",
                icon=":material/download:",
                on_click="ignore",
            )
        manage.actions([run])
        replicas_link(run)


def replicas_link(run: RunDetail) -> None:
    """The way to Compare with the other ended runs of the same spec, where there are some."""
    if run.kind not in KINDS:
        return
    with state.database().reading() as session:
        same = runs.list_runs(session, spec_hashes=[run.spec_hash], states=FINAL_STATES)
    others = [row.id for row in same if row.id != run.id]
    if others:
        st.page_link(
            "views/compare.py",
            label="Compare with its replica" if len(others) == 1 else f"Compare with its {len(others)} replicas",
            icon=":material/compare_arrows:",
            query_params={"ids": ids_text([run.id, *others[: OFFERED_RUNS - 1]])},
        )


@people.told
def again(run: RunRow) -> None:
    """Queue the same spec once more, or say why not."""
    try:
        spec = parse_spec(run.spec)
        ids = launching.launch_again(spec)
    except SpecError as error:
        st.session_state["run_again_problem"] = str(error)
    else:
        st.session_state["run_again"] = ids[0]


def what_went_wrong(run: RunDetail, foreseen: str | None) -> None:
    """The sentence first, for every run that is not a plain success; ``foreseen`` is what was predicted of it."""
    if run.state in FINAL_ADVICE:
        sentence = formatting.plain(formatting.sentence(run.error_text or FINAL_ADVICE[run.state]))
        advice = FINAL_ADVICE[run.state] if run.error_text and run.state != "cancelled" else ""
        said = [sentence]
        if foreseen and run.state == "out_of_memory":
            said.append(formatting.plain(foreseen))
        show = st.error if run.state in ("failed", "lost") else st.warning
        show("  \n".join([*said, *([advice] if advice else [])]), icon=formatting.state_icon(run.state))
    elif foreseen:
        st.caption(formatting.plain(foreseen))
    if run.failed_checks:
        st.warning(
            f"{formatting.plural(run.failed_checks, 'check')} did not pass, so these times may prove nothing; "
            "Checks below says which.",
            icon=":material/rule:",
        )
    if run.background_cpu_share is not None and run.background_cpu_share > DISTURBED_SHARE:
        st.warning(
            f"Disturbed: other processes used {formatting.share(run.background_cpu_share)} of the CPU meanwhile.",
            icon=":material/noise_aware:",
        )


def charts(run: RunDetail, metrics: Metrics) -> list[Chart]:
    """The charts of the run's kind, and the memory of its process."""
    memory = pd.DataFrame(run.samples, columns=["source", "time_s", "phase", "category", "bytes"])
    view = KINDS.get(run.kind)
    drawn: list[Chart] = view.charts(run, metrics, memory) if view else []
    process = memory[memory["source"] == "process"]
    if len(process):
        drawn.append(Chart(figures.process_memory(process), "process_chart", "Memory of the process over the run"))
    return drawn


def metric_table(metrics: pd.DataFrame) -> None:
    """Every metric with median and spread, and the raw repeats to download."""
    lines = []
    for (name, variant, x), rows in metrics.groupby(["name", "variant", "x"], sort=False, dropna=False):
        values, unit = rows["value"], rows["unit"].iloc[0]
        lines.append(
            {
                "Metric": formatting.metric_title(str(name)),
                "Variant": variant if isinstance(variant, str) else "",
                "At": f"{x:g}" if pd.notna(x) else "",
                "Median": formatting.metric_text(str(name), float(values.median()), unit),
                "Lower quartile": quartile(str(name), values, 0.25, unit),
                "Upper quartile": quartile(str(name), values, 0.75, unit),
                "n": len(values),
                "Better": formatting.better(str(name)) or "",
            }
        )
    table = pd.DataFrame(lines)
    table = table.drop(columns=[name for name in ("Variant", "At") if not table[name].any()])
    st.dataframe(table, hide_index=True, alt="Every metric of this run with median, quartiles and count")
    table_downloads(metrics, f"run_{st.query_params.get('id')}_metrics")


def quartile(name: str, values: pd.Series, share: float, unit: str) -> str:
    """A quartile as text, empty for a single value."""
    return formatting.metric_text(name, float(values.quantile(share)), unit) if len(values) > 1 else ""


def checks_table(run: RunDetail) -> None:
    """What was verified in the job."""
    for check in run.checks or []:
        mark = ":green[:material/check_circle:]" if check["passed"] else ":red[:material/cancel:]"
        name = formatting.plain(str(check["name"]).replace("_", " "))
        st.markdown(
            f"{mark} **{name[:1].upper()}{name[1:]}** :gray[{formatting.plain(str(check.get('detail') or ''))}]"
        )


def environment_table(environment: dict[str, object]) -> None:
    """Where it was measured, flat."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix} {key}".strip(), item)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for number, item in enumerate(value, start=1):
                add(f"{prefix} {number}", item)
        else:
            items = value if isinstance(value, list) else [value]
            words = {None: formatting.DASH, True: "yes", False: "no"}
            text = ", ".join(words[item] if item is None or isinstance(item, bool) else str(item) for item in items)
            if prefix.endswith("bytes") and isinstance(value, int | float):
                prefix, text = prefix.removesuffix("_bytes"), formatting.size(float(value))
            # Environment variables keep their underscores.
            name = prefix.replace("_", " ") if prefix == prefix.lower() else prefix
            flat[formatting.plain(name.removeprefix("packages "))] = formatting.plain(text or formatting.DASH)

    add("", environment)
    st.table(flat, border="horizontal", alt="Environment of the run")


def details(run: RunDetail, metrics: Metrics, predicted: Predicted | None) -> None:
    """Checks, numbers, environment, spec, log and code, one tab each."""
    log = state.log_tail(Path(run.run_folder) / "log.txt") if run.run_folder else ""
    names = []
    if run.checks:
        names.append("Checks")
    if len(metrics.frame):
        names.append("Numbers")
    if predicted is not None:
        names.append("Predicted")
    if run.environment:
        names.append("Environment")
    names += ["Spec", "Log"] + (["Python"] if run.kind in KINDS else [])
    if run.kind == "inspect" and run.inspection:
        names.append("Modules")
    # A run without a result is looked at for its log.
    default = "Log" if run.state in FINAL_ADVICE and log else names[0]
    for name, tab in zip(names, st.tabs(names, default=default), strict=True):
        with tab:
            if name == "Checks":
                checks_table(run)
            elif name == "Numbers":
                metric_table(metrics.frame)
            elif name == "Predicted":
                assert predicted is not None
                run_prediction.table(run, metrics, predicted)
            elif name == "Environment":
                environment_table(run.environment or {})
            elif name == "Spec":
                st.code(json.dumps(run.spec, indent=1), language="json")
            elif name == "Log":
                if log:
                    st.code(log, language=None, wrap_lines=True, height=360 if log.count("\n") > 15 else "content")
                else:
                    st.caption("This run has no log here.")
            elif name == "Python":
                python_code(run)
            elif name == "Modules":
                modules_table(run.inspection or {})


def python_code(run: RunDetail) -> None:
    """How to use the same adapter and strategy elsewhere."""
    try:
        spec = parse_spec(run.spec)
    except SpecError as error:
        st.caption(formatting.plain(str(error)))
        return
    if isinstance(spec, Measured):
        st.code(catalog.snippet(spec, own_models.facts(spec.model).groups), language="python")


def modules_table(inspection: dict[str, object]) -> None:
    """What an inspection found."""
    groups = [catalog.ModuleGroup.from_json(item) for item in inspection.get("groups", [])]  # type: ignore[attr-defined]
    frame = pd.DataFrame(
        [
            {
                "module": group.name,
                "kind": group.kind,
                "in_features": group.in_features,
                "out_features": group.out_features,
                "modules": group.count,
                "added_parameters_at_rank_16": group.added_parameters(16),
            }
            for group in groups
        ]
    )
    st.dataframe(
        frame,
        hide_index=True,
        alt="Adaptable modules of the model",
        column_config={
            "module": "Module",
            "kind": "Kind",
            "in_features": "In",
            "out_features": "Out",
            "modules": "Modules",
            "added_parameters_at_rank_16": st.column_config.NumberColumn("LoRA adds at rank 16", format="localized"),
        },
    )
    table_downloads(frame, "modules")


number = run_id()
run = load(number) if number is not None else None
if run is None:
    asked = st.query_params.get("id")
    st.title("Run")
    st.markdown(f"There is no run {formatting.plain(asked[:20])} here." if asked else "No run is named in the address.")
    st.page_link("views/runs.py", label="All runs", icon=":material/table_rows:")
    st.stop()

header(run)
actions(run)
if problem := st.session_state.pop("run_again_problem", None):
    st.error(formatting.plain(problem), icon=":material/error:")
if new_id := st.session_state.pop("run_again", None):
    with st.container(horizontal=True, vertical_alignment="center"):
        st.success("Queued once more.", icon=":material/check_circle:", width=240)
        st.page_link(
            "views/run.py", label=f"Run {new_id}", icon=":material/arrow_forward:", query_params={"id": str(new_id)}
        )
if run.state in ("queued", "running"):
    live(run.id)
predicted = run_prediction.known(run)
what_went_wrong(run, run_prediction.foreseen(run, predicted))
metrics = Metrics(run.metrics, predicted.metrics if predicted else None)
if run.kind in KINDS and (numbers := KINDS[run.kind].key_numbers(run, metrics)):
    cards([*numbers, *run_prediction.card(run, metrics, predicted)])
run_prediction.ask_button(run, predicted)
draw(charts(run, metrics), columns=2)
details(run, metrics, predicted)
