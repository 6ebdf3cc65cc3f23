"""Case: one published claim, named by ``?id=``: what was said, what this machine says, and what to do about it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, formatting, state
from app.comparison import board, fields
from app.kinds import KINDS
from app.widgets import (
    case_parts,
    case_predictions,
    case_runs,
    labels,
    own_models,
    predicted_runs,
    presenting,
    samples,
    sweep_card,
)
from app.widgets.case_runs import CaseRuns, Origin
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, Chart, cards, draw
from app.widgets.sortable import sortable
from db import runs
from engine import cases, catalog
from engine.cases import Case, Ratio, Size

SIZES: tuple[Size, ...] = ("here", "published")
# What each claim speaks of, by the unit of its metrics: a claim on memory needs no charts of seconds.
UNITS = {
    "init": ("s",),
    "merge": ("bytes", "W"),
    "train_memory": ("bytes",),
    "inference": ("tokens/s", "s", "ratio"),
    "train_speed": ("s", "tokens/s"),
}


def asked_case() -> Case | None:
    """The case in the address, None where there is none of that name."""
    try:
        return cases.case(st.query_params.get("id", ""))
    except KeyError:
        return None


def header(case: Case) -> None:
    """What was claimed, by whom, in two sentences."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(case.title, anchor=False, width="content")
        presenting.button()
    st.caption(f"Case {case.number} of {len(cases.cases())} · {case.question}")
    presenting.words(f"**Claimed:** {case.claim}")
    st.caption(" · ".join(f"[{source.label}]({source.url})" for source in case.sources))


def load_sizes(case: Case, sizes: tuple[Size, ...], origin: Origin) -> dict[Size, CaseRuns]:
    """The case's runs at each of these sizes."""
    with state.database().reading() as session:
        loaded = case_runs.load(session, [(case, size) for size in sizes], state.devices(), origin)
    return dict(zip(sizes, loaded, strict=True))


def chosen_size(found: dict[Size, CaseRuns]) -> Size:
    """Which sweep is shown: this machine's, unless the published one has runs too and is asked for."""
    if not (found["published"].is_measured or found["published"].is_active):
        return "here"
    return case_parts.choice("size", {size: case_parts.size_name(size) for size in SIZES}, "here")  # type: ignore[return-value]


@st.fragment(run_every=state.LIVE_EVERY_S)
def live(case: Case, size: Size) -> None:
    """The sweep while it runs, until its last run has ended."""
    with state.database().reading() as session:
        rows = case_runs.batch(case_runs.listed(session, [(case, size)]))
    if not rows:
        st.rerun()
    else:
        model = labels.model_label(case.sweep(size).model)
        sweep_card.sweep_card(f"Measuring on {formatting.plain(model)}", rows, key=f"cancel_{size}")


def measuring(found: dict[Size, CaseRuns]) -> None:
    """The buttons that start the sweeps, with what each takes or why it cannot run here; nothing while presenting."""
    if presenting.is_on():
        return
    devices = state.devices()
    with st.container(border=True):
        for size, one in found.items():
            with st.container(horizontal=True, vertical_alignment="center"):
                with st.container(width=340):
                    case_parts.measure_button(
                        one, devices, button_text(one), key=f"measure_{size}", is_primary=size != "published"
                    )
                model = labels.model_label(one.sweep.model)
                if one.verdict.word == "not testable on this machine: no GPU":
                    st.markdown(f":gray[{formatting.plain(model)}]", width="content")
                    case_parts.verdict_badge(one.verdict, "local")
                    continue
                facts = case_runs.refusal(one.sweep, devices) or case_runs.minutes_text(one)
                text = f"{model} · {'being measured' if one.is_active else facts}"
                st.markdown(f":gray[{formatting.plain(text)}]", width="content")


def button_text(found: CaseRuns) -> str:
    """What pressing the button does."""
    where = {"here": "on this machine", "published": "at published size", "test": "at test size"}[found.size]
    if not found.is_measured:
        return f"Measure {where}"
    if case_runs.is_complete(found):
        return f"Measure again {where}"
    runs_missing = formatting.plural(len(case_runs.missing(found)), "missing run")
    return f"Queue the {runs_missing}" + ("" if found.size == "here" else f" {where}")


def answer(found: CaseRuns, origin: Origin) -> None:
    """The verdict with its rule, the key number, and measured ratios beside published ones."""
    verdict = found.verdict
    with st.container(horizontal=True, vertical_alignment="center"):
        case_parts.verdict_badge(verdict, origin)
        if origin == "sample":
            samples.badge()
        if not presenting.is_on():
            st.markdown(verdict.sentence, width="content")
    if presenting.is_on():
        st.header(verdict.sentence, anchor=False)
    cards(
        [
            Card(
                case_parts.sentence_case(found.case.key_label),
                formatting.ratio(verdict.key_value),
                case_parts.published_text(verdict),
            ),
            Card("Runs that count", f"{verdict.have} of {verdict.need}", "needed by the rule"),
        ]
    )
    st.caption(f"**Rule:** {found.case.rule}")
    ratio_chart(found)


def ratio_chart(found: CaseRuns) -> None:
    """Measured, published and predicted ratios, as far as something was measured or predicted."""
    frame = case_predictions.with_predicted(
        found.case, found.sweep, case_parts.ratio_frame(found.verdict.ratios or no_ratios(found))
    )
    has_measured = frame["measured"].notna().any()
    has_predicted = "predicted" in frame
    if not has_measured and not has_predicted:
        return
    first = "Measured" if has_measured else "Predicted"
    title = f"{first} beside published" + (" and predicted" if has_measured and has_predicted else "")
    figure = figures.ratios(frame, title=title)
    draw([Chart(figure, "ratios_chart", f"{title}, as ratios: {found.case.title}")])


def no_ratios(found: CaseRuns) -> tuple[Ratio, ...]:
    """The ratios of a sweep that was not judged, without values."""
    is_predicted = found.case.id in case_predictions.OF_BYTES
    return cases.predicted_ratios(found.case, found.sweep, {}) if is_predicted else ()


def evidence(found: CaseRuns) -> None:
    """The charts of the case's kind and the tables behind them."""
    measured = [row for row in found.rows if row.state not in case_runs.ACTIVE]
    with state.database().reading() as session:
        recorded = runs.environments(session, [row.id for row in measured])
    shown = board.build(measured, recorded, found.values)
    if recorded:
        st.caption(formatting.plain(measured_on(shown.flats[max(recorded)])))
    if found.outdated and not presenting.is_on():
        left_out = formatting.plural(len(found.outdated), "run")
        st.caption(f"{left_out} left out: measured under other hardware, versions or settings than the newest.")
    kind = KINDS[found.sweep.specs[0].kind]
    of_claim = shown.frame[shown.frame["unit"].isin(UNITS[found.case.id]) | (shown.frame["name"] == "")]
    wide = predicted_runs.beside(board.wide_fields(shown), measured)
    charts = kind.compare_charts(of_claim, wide, baseline=None, facet=None)
    draw(charts, columns=2)
    if presenting.is_on():
        return
    with st.expander("Numbers", icon=":material/table_rows:"):
        ratios = case_predictions.with_predicted(found.case, found.sweep, case_parts.ratio_frame(found.verdict.ratios))
        st.markdown("**Measured beside published**")
        ratio_table(ratios)
        table_downloads(ratios, f"case_{found.case.id}_ratios")
        st.markdown("**What was measured**")
        medians = median_table(shown)
        st.dataframe(
            sortable(*medians),
            hide_index=True,
            placeholder=formatting.DASH,
            alt="Medians of what was measured, a line per setting",
        )
        table_downloads(shown.frame, f"case_{found.case.id}_values")
    compared = [*found.outdated, *measured]
    st.page_link(
        "views/compare.py",
        label=f"Compare these {formatting.plural(len(compared), 'run')}",
        icon=":material/compare_arrows:",
        query_params={"ids": ",".join(str(row.id) for row in compared)},
    )


def measured_on(flat: fields.Flat) -> str:
    """The machine and the versions in one line."""
    cores = flat.get("environment.cores")
    parts = [
        flat.get("environment.cpu"),
        formatting.plural(int(cores), "core") if cores else None,
        flat.get("environment.gpus"),
        *(
            f"{name} {version}"
            for name in ("torch", "transformers", "peft")
            if (version := flat.get(f"environment.packages.{name}"))
        ),
    ]
    return f"Measured on {', '.join(str(part) for part in parts if part)}"


def ratio_table(frame: pd.DataFrame) -> None:
    """Ratios as people read them."""
    names = [name for name in ("measured", "low", "high", "published", "predicted") if name in frame]
    numbers = {name: [formatting.ratio(value) for value in frame[name]] for name in names}
    titles = {
        "label": "Ratio",
        "measured": "Measured",
        "low": "From",
        "high": "To",
        "published": "Published",
        "predicted": "Predicted",
        "note": "Note",
    }
    shown = frame.assign(**numbers).rename(columns=titles)
    behind = {title: frame[name] for name, title in titles.items() if name in names}
    st.dataframe(
        sortable(shown, behind),
        hide_index=True,
        placeholder=formatting.DASH,
        alt="Measured ratios with their range beside published ones",
    )


def median_table(shown: board.Board) -> tuple[pd.DataFrame, dict[str, list[float | None]]]:
    """A line per setting, a column per metric of the kind, as people read them, and the medians behind each metric."""
    kind = KINDS[shown.rows[0].kind]
    names = [name for name in board.metrics(shown) if name in kind.NAMES]
    lines = []
    medians: dict[str, list[float | None]] = {board.title(name): [] for name in names}
    for group in shown.groups:
        of_group = shown.frame[shown.frame["group"] == group.label]
        line: dict[str, object] = {"Setting": group.label}
        for name in names:
            values = of_group[of_group["metric"] == name]["value"]
            median = float(values.median()) if len(values) else None
            line[board.title(name)] = board.value_text(shown, name, median)
            medians[board.title(name)].append(median)
        states = {row.state for row in shown.rows if row.id in group.run_ids}
        line["Runs"] = len(group.run_ids)
        line["State"] = formatting.listing(formatting.state_text(name) for name in sorted(states))
        lines.append(line)
    return pd.DataFrame(lines), medians


def published(case: Case) -> None:
    """The numbers as they were published."""
    st.subheader("Published numbers", anchor=False)
    frame = pd.DataFrame(
        [(item.label, item.value, item.unit, item.note) for item in case.published],
        columns=["label", "value", "unit", "note"],
    )
    shown = pd.DataFrame(
        {
            "What": frame["label"],
            "Published": [published_value(item.value, item.unit) for item in case.published],
            **({"Note": frame["note"]} if frame["note"].any() else {}),
        }
    )
    st.dataframe(shown, hide_index=True, alt=f"Published numbers: {case.title}")
    table_downloads(frame, f"case_{case.id}_published")


def published_value(value: float, unit: str) -> str:
    """A published number in the unit it was published in; GB stays GB."""
    return formatting.ratio(value) if unit == "ratio" else f"{formatting.significant(value)} {unit}"


def truth(case: Case) -> None:
    """What is true where the claim is imprecise."""
    st.subheader("What is true", anchor=False)
    presenting.words(case.truth)


def advice(case: Case) -> None:
    """What to do about it, with the code that does it."""
    st.subheader("What to do about it", anchor=False)
    for item in case.advice:
        presenting.words(f"- {item.text}" if not presenting.is_on() else item.text)
        if item.spec is not None and not presenting.is_on():
            with st.expander(f"Python: {labels.strategy_label(item.spec.kind, item.spec.strategy)}"):
                st.code(catalog.snippet(item.spec, own_models.facts(item.spec.model).groups), language="python")


def neighbours(case: Case, origin: Origin) -> None:
    """The way to the cases before and after, also while presenting."""
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        for other in cases.cases():
            if abs(other.number - case.number) == 1:
                is_next = other.number > case.number
                st.page_link(
                    "views/case.py",
                    label=f"{other.number} · {other.title}",
                    icon=":material/arrow_forward:" if is_next else ":material/arrow_back:",
                    icon_position="right" if is_next else "left",
                    query_params=case_parts.link(origin, id=other.id),
                    width="content",
                )


case = asked_case()
if case is None:
    st.title("Case")
    asked = st.query_params.get("id")
    st.markdown(f"There is no case {formatting.plain(asked[:40])}." if asked else "No case is named in the address.")
    st.page_link("views/cases.py", label="All cases", icon=":material/fact_check:")
    st.stop()

header(case)
is_test = st.query_params.get("size") == "test"
sizes: tuple[Size, ...] = ("test",) if is_test else SIZES
local = load_sizes(case, sizes, "local")
origin = case_parts.chosen_origin(has_local=any(one.is_measured or one.is_active for one in local.values()))
found = local if origin == "local" else load_sizes(case, sizes, origin)
if is_test:
    st.info(
        "The test size shows that sweep and rule work; its tiny model says nothing about the claim.",
        icon=":material/science:",
    )
size = sizes[0] if is_test else chosen_size(found)
shown = found[size]
for one in local.values():
    if one.is_active:
        live(case, one.size)
if not shown.is_measured:
    ratio_chart(shown)
    measuring(local)
    sweep_card.unsuccessful_notes([] if shown.is_active else shown.unsuccessful)
else:
    answer(shown, origin)
    # Where runs are missing, that is the next step; otherwise what was measured comes first.
    is_short = origin == "local" and not case_runs.is_complete(shown)
    if is_short:
        measuring(local)
    sweep_card.unsuccessful_notes([] if shown.is_active else shown.unsuccessful)
    evidence(shown)
    if not is_short:
        measuring(local)
case_predictions.larger_models(case)
case_predictions.ask_button(case, shown.sweep)
left, right = st.columns(2, gap="large")
with left:
    truth(case)
    if not presenting.is_on():
        advice(case)
with right:
    (advice if presenting.is_on() else published)(case)
neighbours(case, origin)
presenting.way_back()
