"""Runs: every stored run in one table. The address holds what it is narrowed to, its order and its columns."""

from __future__ import annotations

import zlib
from collections.abc import Collection

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import formatting, state
from app.comparison.selection import OFFERED_RUNS, ids_text
from app.filtering import Known
from app.filtering.fields import KnownField, columns, spec_fields
from app.widgets import filter_box, frames, importing, labels, manage, run_table
from app.widgets.downloads import table_downloads
from db import runs
from db.conditions import Column, Condition, EnvironmentField, MetricField, Order
from db.runs import FilterValues, RunRow

ROWS = 500
ADDED = 20
NEWEST = "newest"
FACETS = ("state", "kind", "model", "adapter", "device", "tag")
NEWEST_FIRST = ("id", "created", "started", "finished")


def first_page() -> None:
    """Another list starts at its beginning."""
    if "page" in st.session_state:
        st.session_state["page"] = 1


def clear() -> None:
    """Take every filter away."""
    for name in ("q", "filter"):
        st.session_state[name] = ""
    for name in FACETS:
        st.session_state[name] = []
    first_page()


def empty() -> None:
    """What to do where nothing is stored yet."""
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown("No run is stored yet; launch one or measure LoRA against DoRA.", text_alignment="center")
        if st.button("Launch a run", type="primary", icon=":material/rocket_launch:"):
            st.switch_page("views/launch.py")


def nothing(is_filtered: bool) -> None:
    """Where no run is shown: what keeps them away, and one button against it."""
    with st.container(border=True, horizontal_alignment="center"):
        if is_filtered:
            st.markdown("No run passes these filters.", text_alignment="center")
            st.button("Clear the filters", icon=":material/filter_alt_off:", on_click=clear)
        else:
            st.markdown("Every run is archived.", text_alignment="center")
            st.button("Show archived runs", icon=":material/unarchive:", on_click=show_archived)


def show_archived() -> None:
    """List archived runs, too."""
    st.session_state["archived"] = True


def several(label: str, options: tuple[str, ...], key: str, **kwargs: object) -> list[str] | None:
    """A filter for one column, kept in the address; None where everything passes."""
    chosen = st.multiselect(  # type: ignore[call-overload]
        label,
        options,
        key=key,
        bind="query-params",
        placeholder="Any",
        width=170,
        on_change=first_page,
        **kwargs,
    )
    return list(chosen) or None


def facets(known: FilterValues) -> runs.Filters:
    """The search, and a choice of values for each column that has several."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        search = st.text_input(
            "Search",
            type="search",
            key="q",
            bind="query-params",
            placeholder="Name, note, model, error",
            width=220,
            icon=":material/search:",
            on_change=first_page,
        )
        states = several("State", known.states, "state", format_func=formatting.state_text)
        kinds = several("Kind", known.kinds, "kind", format_func=labels.kind_label)
        models = several("Model", known.models, "model", format_func=labels.model_label)
        adapters = several("Adapter", known.adapters, "adapter")
        # What comes and goes stands in a place of its own, or last: a widget that moves loses its place in the address.
        with st.container(width="content"):
            devices = several("Device", known.devices, "device") if len(known.devices) > 1 else None
        tags = several("Tag", known.tags, "tag") if known.tags else None
    return runs.Filters(
        search=search, states=states, kinds=kinds, models=models, adapters=adapters, devices=devices, tags=tags
    )


def recall(options: Collection[str]) -> None:
    """Columns as they were when the page was left, unless the address names others: Streamlit forgets both choices."""
    for key, names in st.session_state.get("columns_left", {}).items():
        if key not in st.session_state and key not in st.query_params:
            st.session_state[key] = [name for name in names if name in options]


def layout(fields: Known) -> tuple[Order, list[KnownField], list[str]]:
    """The order, the added and the hidden columns."""
    names = [*fields.metrics, *columns(), *spec_fields(), *fields.environment]
    recall({*names, *run_table.HIDEABLE})
    chosen = st.selectbox(
        "Sort by",
        [NEWEST, *names],
        format_func=lambda name: "Newest first" if name == NEWEST else name,
        key="sort",
        bind="query-params",
        width=230,
        on_change=first_page,
        help="Over all runs that pass, not only those on this page; of a metric the best come first.",
    )
    is_reversed = st.toggle("Reverse", key="reverse", bind="query-params", on_change=first_page)
    with st.popover("Columns", icon=":material/view_column:"):
        added = st.multiselect(
            "Add",
            names,
            key="add",
            bind="query-params",
            placeholder="Any metric or field",
            max_selections=ADDED,
            select_all=False,
            width=420,
        )
        hidden = st.multiselect(
            "Hide",
            list(run_table.HIDEABLE),
            format_func=run_table.HIDEABLE.__getitem__,
            key="hide",
            bind="query-params",
            placeholder="Nothing",
            width=420,
        )
    st.session_state["columns_left"] = {"add": added, "hide": hidden}
    by = None if chosen == NEWEST else fields.find(chosen)
    entries = [entry for name in added if (entry := fields.find(name))]
    # What the list is ordered by can be read off it.
    if by is not None and not isinstance(by.field, Column) and by not in entries:
        entries.append(by)
    return order(by, is_reversed), entries, list(hidden)


def order(by: KnownField | None, is_reversed: bool) -> Order:
    """The natural order of a field, or its reverse: the best of a metric first, the newest moment, A to Z."""
    if by is None:
        return Order(Column("id"), is_descending=not is_reversed)
    is_descending = by.name in NEWEST_FIRST
    if isinstance(by.field, MetricField):
        is_descending = formatting.better(by.field.name) == "higher"
    return Order(by.field, is_descending != is_reversed)


def page_of(total: int) -> int:
    """Which page of the list is shown, from 0."""
    pages = -(-total // ROWS)
    if pages <= 1:
        return 0
    if st.session_state.get("page", 1) > pages:
        st.session_state["page"] = pages
    return int(st.pagination(pages, key="page", bind="query-params")) - 1


def grid(table: run_table.RunTable, ids: list[int]) -> list[int]:
    """The runs; returns the ids of the selected ones."""
    # A selection is of places in the table, so another list of runs is another widget, and starts with those of the
    # selected runs that it has.
    remembered = set(st.session_state.get("selected_runs", ()))
    event = st.dataframe(
        table.shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [place for place, run_id in enumerate(ids) if run_id in remembered]}},
        key=f"runs_table_{zlib.crc32(repr(ids).encode()):08x}",
        height=min(38 + 35 * max(len(ids), 1), 480),
        placeholder="",
        alt="Stored runs; select rows to open, compare, edit or download them",
        column_config=table.config,
    )
    selected = [ids[place] for place in sorted(event.selection.rows) if place < len(ids)]
    st.session_state["selected_runs"] = selected
    return selected


def actions(selected: list[RunRow], shown: list[RunRow]) -> None:
    """What can be done with the selected runs, or with all that are shown."""
    if not selected:
        if 1 < len(shown) <= OFFERED_RUNS and st.button("Compare all shown", icon=":material/compare_arrows:"):
            compare(shown)
        return
    ids = [row.id for row in selected]
    st.markdown(f"**{formatting.plural(len(ids), 'run')} selected**", width="content")
    if len(ids) == 1 and st.button("Open", icon=":material/open_in_new:", type="primary"):
        st.switch_page("views/run.py", query_params={"id": str(ids[0])})
    is_too_many = len(ids) > OFFERED_RUNS
    if len(ids) > 1 and st.button(
        "Compare",
        icon=":material/compare_arrows:",
        type="primary",
        disabled=is_too_many,
        help=f"At most {OFFERED_RUNS} runs at once." if is_too_many else None,
    ):
        compare(selected)
    st.download_button(
        "Result JSON",
        data=lambda: manage.documents_json(ids),
        file_name="runs.json",
        mime="application/json",
        icon=":material/download:",
        on_click="ignore",
        help="Everything that was measured, as python -m engine export prints it; it can be imported again.",
    )
    manage.actions(selected)


def compare(rows: list[RunRow]) -> None:
    """Go to the page that compares these runs."""
    st.switch_page("views/compare.py", query_params={"ids": ids_text(row.id for row in rows)})


def problems(selected: list[RunRow]) -> None:
    """Why selected runs are not plain successes, one line each."""
    for row in selected[:10]:
        if problem := frames.problem_sentence(row):
            st.markdown(
                f":{formatting.state_colour(row.state)}[{formatting.state_icon(row.state)}] Run {row.id}: "
                f"{formatting.plain(formatting.sentence(problem))}"
            )


def results(
    count: DeltaGenerator,
    filters: runs.Filters,
    sorting: Order,
    added: list[KnownField],
    hidden: list[str],
    fields: Known,
) -> None:
    """The runs that pass, and what can be done with them; their number goes into ``count``."""
    with state.database().reading() as session:
        found = runs.list_ids(session, order=sorting, **filters)
    if not found:
        nothing(is_filtered=any(value for name, value in filters.items() if name != "include_archived"))
        return
    count.caption(formatting.plural(len(found), "run"), width="content")
    place = st.container()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        below = st.container(horizontal=True, vertical_alignment="center", gap="small", width="stretch")
        start = page_of(len(found)) * ROWS
    with state.database().reading() as session:
        rows = runs.get_rows(session, found[start : start + ROWS])
        ids = [row.id for row in rows]
        medians = runs.medians(session, ids, run_table.metrics_of(rows, added))
        needs_environment = any(isinstance(entry.field, EnvironmentField) for entry in added)
        environments = runs.environments(session, ids) if needs_environment else {}
    table = run_table.build(rows, medians, environments, added, hidden, fields.units)
    with place:
        chosen = set(grid(table, ids))
    selected = [row for row in rows if row.id in chosen]
    with below:
        actions(selected, rows)
    problems(selected)
    table_downloads(table.stored[table.stored["id"].isin(chosen)] if chosen else table.stored, "runs")


def page() -> None:
    """The whole page."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="bottom", width="content"):
            st.title("Runs", anchor=False, width="content")
            count = st.container(width="content")
        importing.import_button()
    with state.database().reading() as session:
        values = runs.filter_values(session)
        fields = Known.of(runs.stored_metrics(session), runs.environment_paths(session))
    if not values.states:
        empty()
        return
    filters = facets(values)
    where: Condition | None
    where, is_usable = filter_box.box(fields, on_change=first_page)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        sorting, added, hidden = layout(fields)
        archived = st.toggle("Archived too", key="archived", bind="query-params", on_change=first_page)
    if is_usable:
        results(count, {**filters, "where": where, "include_archived": archived}, sorting, added, hidden, fields)


page()
