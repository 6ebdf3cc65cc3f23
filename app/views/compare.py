"""Compare: which of several stored runs is faster or smaller, and how sure that is. ``?ids=1,2,3`` names the runs.

The address holds everything that decides what is shown, so it can be sent to somebody else. Samples are never read.
"""

from __future__ import annotations

import streamlit as st

from app import formatting, state
from app.comparison import board, environments, fields, selection
from app.comparison.board import Board
from app.kinds import KINDS, inference
from app.widgets import address, compare_charts, compare_export, compare_tables, labels, presenting
from app.widgets.metrics import draw
from db import runs
from db.runs import RunRow

NOTHING = "Nothing"
# With more groups than this, only the variants that runs are about are compared, until others are asked for.
MOST_GROUPS_OF_VARIANTS = 12


def empty(sentence: str) -> None:
    """What to do where there is nothing to compare."""
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown(sentence, text_alignment="center")
        if st.button("Choose runs", type="primary", icon=":material/table_rows:"):
            st.switch_page("views/runs.py")
    st.stop()


def runs_picker(rows: list[RunRow]) -> None:
    """Take runs away from the comparison; the address follows."""

    def keep() -> None:
        st.query_params["ids"] = selection.ids_text(st.session_state["kept_runs"])

    with st.popover(formatting.plural(len(rows), "run"), icon=":material/table_rows:", help="Take runs away, or add"):
        st.multiselect(
            "Runs that are compared",
            [row.id for row in rows],
            default=[row.id for row in rows],
            format_func={row.id: f"{row.id}: {labels.run_title(row)}" for row in rows}.__getitem__,
            key="kept_runs",
            on_change=keep,
        )
        st.page_link("views/runs.py", label="Choose other runs", icon=":material/add:")


def of_one_kind(rows: list[RunRow]) -> list[RunRow]:
    """The runs of one kind, as only those can be compared; asks which where there are several."""
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    if len(kinds) > 1:
        chosen = address.tab("Kind", [labels.kind_label(kind) for kind in kinds], key="kind")
        st.caption("Runs of one kind are compared at a time.")
        kinds = [kind for kind in kinds if labels.kind_label(kind) == chosen]
    return [row for row in rows if row.kind in kinds]


def chosen_sides(rows: list[RunRow], found: list[str]) -> list[str] | None:
    """The variants inside runs that are compared; None for all."""
    if not found:
        return None
    kind = rows[0].kind
    is_train = kind == "train"
    main = {KINDS[kind].main_variant(row) for row in rows}
    is_many = len(rows) * len(found) > MOST_GROUPS_OF_VARIANTS
    default = found
    if is_train:
        # What was specified is always there; plain stock comes beside it.
        default = found if len(rows) == 1 else []
    elif is_many:
        default = [side for side in found if side in main or side == inference.BASE]
    chosen = address.several(
        "Variants",
        found,
        key="variants",
        default=default,
        text=compare_tables.side_label,
        placeholder="As specified" if is_train else "All",
        width=200 if is_train else 320,
    )
    return chosen if chosen or is_train else None


def facts(shown: Board) -> str:
    """What all of the runs have in common, and how many there are."""
    differ = set(fields.differing(shown.flats))
    first = shown.flats[shown.rows[0].id]
    same = [
        fields.text(name, first.get(name))
        for name in ("model", "adapter", "dtype", "device")
        if name not in differ and first.get(name) is not None
    ]
    count = f"{formatting.plural(len(shown.rows), 'run')} in {formatting.plural(len(shown.groups), 'group')}"
    origins = {row.origin for row in shown.rows}
    sample = ["sample data" if origins == {labels.SAMPLE} else "sample data among them"]
    return " · ".join(
        [labels.kind_label(shown.rows[0].kind), *same, count, *(sample if labels.SAMPLE in origins else [])]
    )


def controls(shown: Board) -> tuple[str, str]:
    """Metric and baseline."""
    names = board.metrics(shown)
    metric = address.one("Metric", names, key="metric", default=board.first_metric(shown), text=board.title, width=200)
    groups = [group.label for group in shown.groups]
    measured = set(shown.frame.loc[shown.frame["metric"] == metric, "group"])
    default = next((label for label in groups if label in measured), groups[0])
    help_text = "What everything else is held against."
    return metric, address.one("Baseline", groups, key="baseline", default=default, help=help_text, width=260)


def normalised(shown: Board, warning: str, baseline: str) -> Board:
    """Says in what the environments differ, and sets each against its own baseline where that is asked for."""
    with st.container(border=True):
        st.markdown(f":orange[:material/warning:] {formatting.plain(warning)}")
        if not address.switch(
            "Normalise: each environment against its own baseline",
            key="normalise",
            help="Every value becomes a multiple of the baseline's median in the same environment.",
        ):
            return shown
        if left_out := board.without_baseline(shown, baseline):
            names = formatting.listing(formatting.plain(name) for name in left_out[:5])
            more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
            st.caption(f"Left out, as there is no {formatting.plain(baseline)} in the same environment: {names}{more}.")
        return board.normalise(shown, baseline)


# The containers are always there: what comes and goes in one moves no widget below it (see ``address``).
st.title("Compare", anchor=False)
notice = st.container()
kind_place = st.container()
header = st.container()
choices = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
warning_place = st.container()
answer_place = st.container()

asked = selection.parse_ids(st.query_params.get("ids", ""))
with state.database().reading() as session:
    rows = runs.get_rows(session, asked.ids)
if sentence := selection.missing_sentence(asked, {row.id for row in rows}):
    notice.warning(formatting.plain(sentence), icon=":material/link_off:")
if not rows:
    empty("Select two or more runs in the table of runs to compare them here.")
every_row = rows
with kind_place:
    rows = of_one_kind(rows)
if not rows:
    empty("These runs measured nothing that could be compared.")
with state.database().reading() as session:
    values = runs.metric_values(session, run_ids=[row.id for row in rows])
    recorded = runs.environments(session, [row.id for row in rows])
if all(value.x is not None for value in values):
    empty("These runs hold no numbers to compare.")

varying = fields.differing({row.id: fields.flat(row, recorded.get(row.id)) for row in rows})
with choices:
    with st.container(width="content"):
        sides = chosen_sides(rows, board.sides_of(rows, values))
    by = address.several(
        "Group by",
        varying,
        key="group",
        placeholder="Replicas",
        help="Fields whose values make the groups.",
        width=200,
    )
    shown = board.build(rows, recorded, values, by=by, sides=sides)
    metric, baseline = controls(shown)
    facet = address.one(
        "Small multiples by",
        [NOTHING, *varying],
        key="split",
        default=NOTHING,
        help="A panel for each value of a field, all with the same axes.",
        width=180,
    )
warning = environments.sentence(environments.differences(board.known_environments(shown)))
if warning:
    with warning_place:
        shown = normalised(shown, warning, baseline)

found = board.standings(shown, metric, baseline)
with answer_place:
    compare_tables.answer(shown, found, metric, baseline)
with st.container():
    charts = compare_charts.chosen(shown, metric, baseline, None if facet == NOTHING else facet)
    draw(charts)
tables = [
    compare_tables.draw_statistics(shown, found),
    compare_tables.draw_metrics(shown, baseline),
    compare_tables.draw_differences(shown),
]

with header, st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.caption(formatting.plain(facts(shown)), width="content")
    if not presenting.is_on():
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            runs_picker(every_row)
            compare_export.button(shown, found, metric, baseline, warning, charts, tables)
            presenting.button()
presenting.way_back()
