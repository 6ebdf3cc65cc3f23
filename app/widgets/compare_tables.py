"""The answer and the tables of the Compare page: verdicts in sentences, key numbers, statistics, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import streamlit as st

from app import formatting
from app.comparison import board, fields, groups, verdicts
from app.comparison.board import Board, Standing
from app.kinds import inference
from app.widgets import address, presenting
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, cards
from app.widgets.sortable import sortable

MOST_SENTENCES = 6
MOST_CARDS = 6
# Longer names than this are cut where six cards share a row.
_LONG_NAME = 24
# Metrics beside each other in one table; all of them on request.
MOST_METRICS = 12
# Fields lie down the table up to this many runs, with more runs across it.
MOST_RUNS_ACROSS = 8
_ICONS: dict[verdicts.Tone, str] = {
    "good": ":green[:material/check_circle:]",
    "bad": ":red[:material/cancel:]",
    "neutral": ":gray[:material/drag_handle:]",
    "open": ":gray[:material/help:]",
}


@dataclass(frozen=True)
class Table:
    """A table as people read it, and the same in stored units for downloads.

    ``numbers`` are what cells of some columns stand for, so that these sort by them.
    """

    name: str
    heading: str
    shown: pd.DataFrame
    stored: pd.DataFrame
    numbers: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


def side_label(variant: str) -> str:
    """What a variant inside a run is called."""
    if variant == groups.PLAIN_STOCK:
        return "Plain stock"
    return inference.variant_label(variant, "Adapter")


def ranked(found: Sequence[Standing]) -> list[Standing]:
    """Standings that say something, the largest decided effects first, then those without enough data."""

    def place(standing: Standing) -> tuple[int, float]:
        verdict = standing.verdict
        if verdict is None:
            return (3, 0.0)
        order = {"good": 0, "bad": 0, "neutral": 1, "open": 2}[verdict.tone]
        change = verdict.change
        size = max(change + 1, 1 / (change + 1)) if change is not None and change > -1 else float("inf")
        return (order, -size)

    others = [standing for standing in found if standing.verdict is not None or standing.summary is None]
    return sorted(others, key=place)


def answer_sentences(shown: Board, found: Sequence[Standing]) -> list[tuple[verdicts.Tone, str]]:
    """(tone, sentence) of the verdicts that matter most, those without enough data in one sentence together."""
    summaries = {standing.group.label: standing.summary for standing in found}
    decided: list[Standing] = []
    undecided: list[Standing] = []
    for standing in ranked(found):
        is_open = standing.verdict is not None and standing.verdict.tone == "open"
        (undecided if is_open else decided).append(standing)
    sentences: list[tuple[verdicts.Tone, str]] = [
        (
            standing.verdict.tone if standing.verdict else "open",
            board.sentence(shown, standing, summaries.get(standing.baseline)),
        )
        for standing in decided[:MOST_SENTENCES]
    ]
    if len(decided) > MOST_SENTENCES:
        sentences.append(("neutral", f"{len(decided) - MOST_SENTENCES} more verdicts are in the table below."))
    if len(undecided) == 1:
        sentences.append(("open", board.sentence(shown, undecided[0], summaries.get(undecided[0].baseline))))
    elif undecided:
        evidence = list(dict.fromkeys(standing.verdict.evidence for standing in undecided if standing.verdict))
        such = "" if len(evidence) == 1 else "such as "
        sentences.append(("open", f"Not enough data to decide on {len(undecided)} groups ({such}{evidence[0]})."))
    return sentences


def answer(shown: Board, found: Sequence[Standing], metric: str, baseline: str) -> None:
    """The verdicts first, with the rule they stand on, then the groups' numbers."""
    way = formatting.better(metric.partition("@")[0])
    with st.container(horizontal=True, vertical_alignment="center"):
        direction = f", {way} is better" if way else ""
        scale = ", times the baseline" if shown.is_normalised else ""
        st.subheader(f"{board.title(metric)}{scale}{direction}", anchor=False, width="content")
        if not presenting.is_on():
            with st.popover("How this is decided", icon=":material/rule:", type="tertiary"):
                st.markdown(verdicts.RULE)
    for tone, sentence in answer_sentences(shown, found):
        st.markdown(f"{_ICONS[tone]} {formatting.plain(sentence)}")
    first = [standing for standing in found if standing.group.label == baseline]
    others = [standing for standing in found if standing.group.label != baseline and standing.summary is not None]
    most = MOST_CARDS if max(len(standing.group.label) for standing in found) <= _LONG_NAME else MOST_CARDS - 2
    if len(others) >= most and any(standing.verdict and standing.verdict.tone != "open" for standing in others):
        others = [standing for standing in ranked(found) if standing.summary is not None]
    numbers = [_card(shown, standing) for standing in [*first, *others][:most] if standing.summary is not None]
    if numbers:
        cards(numbers)


def _card(shown: Board, standing: Standing) -> Card:
    verdict, summary = standing.verdict, standing.summary
    assert summary is not None
    note = "baseline" if standing.baseline == standing.group.label else ""
    if verdict is not None:
        note = f"{verdicts.change_text(verdict.change)}, {verdict.word}"
    spread = _range(shown, standing)
    of = formatting.plural(summary.n, summary.of.removesuffix("s"))
    help_text = f"Median of {of}, quartiles {spread}." if spread else f"From {of}."
    value = board.value_text(shown, standing.metric, summary.median)
    label = formatting.plain(standing.group.label)
    if len(standing.group.label) > _LONG_NAME:
        # A narrow card cuts its label.
        help_text = f"{label}. {help_text}"
    return Card(label, value, note, help_text, verdict is not None and verdict.tone == "good")


def _range(shown: Board, standing: Standing) -> str:
    summary = standing.summary
    if summary is None or summary.lower_quartile is None:
        return ""
    low = board.value_text(shown, standing.metric, summary.lower_quartile)
    return f"{low} to {board.value_text(shown, standing.metric, summary.upper_quartile)}"


def draw_statistics(shown: Board, found: Sequence[Standing]) -> Table:
    """Median, spread, difference and verdict of every group in one metric."""
    table = statistics_table(shown, found)
    _draw(table, f"{table.heading}: median, difference to the baseline and verdict")
    return table


def draw_metrics(shown: Board, baseline: str) -> Table:
    """All metrics beside each other, the kind's own first."""
    names = board.metrics(shown)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("Metrics", anchor=False, width="content")
        is_every = len(names) <= MOST_METRICS or address.switch(f"All {len(names)}", key="every")
    table = metrics_table(shown, names if is_every else names[:MOST_METRICS], baseline)
    _draw(table, "Medians of metrics by group, with the change against the baseline", with_heading=False)
    if not presenting.is_on():
        st.caption("In brackets: change against the baseline; = no difference, ? not enough data.")
    return table


def draw_differences(shown: Board) -> Table:
    """The fields that are not the same in all runs on screen, and only those."""
    names = fields.differing(shown.flats)
    is_transposed = len(shown.rows) > MOST_RUNS_ACROSS
    word = ""
    st.subheader("What differs", anchor=False)
    if names:
        with st.container(horizontal=True, vertical_alignment="center"):
            word = address.search("Search", key="find", placeholder="Field or value")
            is_transposed ^= address.switch("Swap rows and columns", key="swap")
    table = differences_table(shown, names, word, is_transposed=is_transposed)
    if names and len(table.shown):
        _draw(table, "Fields that differ among the runs", with_heading=False)
    else:
        st.caption("No field that differs matches." if names else "Nothing: these runs have the same configuration.")
    return table


def _draw(table: Table, alt: str, *, with_heading: bool = True) -> None:
    if with_heading:
        st.subheader(table.heading, anchor=False)
    first = table.shown.columns[0]
    st.dataframe(
        sortable(table.shown, table.numbers),
        hide_index=True,
        placeholder=formatting.DASH,
        key=f"table_{table.name}",
        alt=alt,
        column_config={first: st.column_config.TextColumn(first, pinned=True)},
    )
    if not presenting.is_on():
        table_downloads(table.stored, f"compare-{table.name}")


def statistics_table(shown: Board, found: Sequence[Standing]) -> Table:
    """One line per group, in reading order."""
    lines = []
    for standing in found:
        summary, verdict = standing.summary, standing.verdict
        of = formatting.plural(summary.n, summary.of.removesuffix("s")) if summary else formatting.DASH
        is_baseline = standing.baseline == standing.group.label
        lines.append(
            {
                "Group": standing.group.label,
                "n": of,
                "Median": board.value_text(shown, standing.metric, summary.median if summary else None),
                "Interquartile range": _range(shown, standing) or formatting.DASH,
                "Δ": _difference(shown, standing),
                "Change": verdicts.change_text(verdict.change) if verdict else formatting.DASH,
                "Verdict": verdict.word if verdict else "baseline" if is_baseline else formatting.DASH,
                "Evidence": verdict.evidence if verdict else "",
            }
        )
    heading = f"{board.title(found[0].metric)} by group" if found else ""
    stored = board.statistics_frame(found, shown.units)
    numbers: dict[str, Sequence[float | None]] = {
        "n": [standing.summary.n if standing.summary else None for standing in found],
        "Median": [standing.summary.median if standing.summary else None for standing in found],
        "Interquartile range": [_width(standing) for standing in found],
        "Δ": [standing.verdict.difference if standing.verdict else None for standing in found],
        "Change": [standing.verdict.change if standing.verdict else None for standing in found],
    }
    return Table("statistics", heading, pd.DataFrame(lines), stored, numbers)


def _width(standing: Standing) -> float | None:
    summary = standing.summary
    if summary is None or summary.lower_quartile is None or summary.upper_quartile is None:
        return None
    return summary.upper_quartile - summary.lower_quartile


def _difference(shown: Board, standing: Standing) -> str:
    if standing.verdict is None:
        return formatting.DASH
    difference = standing.verdict.difference
    sign = "−" if difference < 0 else "+" if difference > 0 else ""
    return f"{sign}{board.value_text(shown, standing.metric, abs(difference))}"


def metrics_table(shown: Board, names: Sequence[str], baseline: str) -> Table:
    """One line per metric, a column per group."""
    cells: list[dict[str, str]] = []
    stored: list[Standing] = []
    for metric in names:
        found = board.standings(shown, metric, baseline)
        stored += found
        cells.append(
            {"Metric": board.title(metric), **{standing.group.label: _cell(shown, standing) for standing in found}}
        )
    return Table("metrics", "Metrics", pd.DataFrame(cells), board.statistics_frame(stored, shown.units))


def _cell(shown: Board, standing: Standing) -> str:
    if standing.summary is None:
        return formatting.DASH
    text = board.value_text(shown, standing.metric, standing.summary.median)
    verdict = standing.verdict
    if verdict is None or not verdict.change:
        return text
    mark = {verdicts.NO_DIFFERENCE: " =", verdicts.NOT_ENOUGH: " ?"}.get(verdict.word, f" {verdict.word}")
    return f"{text} ({verdicts.change_text(verdict.change)}{mark})"


def differences_table(shown: Board, names: Sequence[str], word: str, *, is_transposed: bool) -> Table:
    """Fields down and runs across, or the other way round.

    Args:
        shown: the runs.
        names: the fields.
        word: only fields that have it in their name or in a value, in any case; empty for all.
        is_transposed: whether runs lie down.
    """
    runs = {run_id: f"{run_id}" for run_id in shown.flats}
    texts = {name: [fields.text(name, flat.get(name)) for flat in shown.flats.values()] for name in names}
    kept = [
        name for name in names if any(word.strip().lower() in part.lower() for part in (name, *map(str, texts[name])))
    ]
    stored = pd.DataFrame({name: [flat.get(name) for flat in shown.flats.values()] for name in kept})
    stored.insert(0, "run", list(shown.flats))
    if is_transposed:
        table = pd.DataFrame({name: texts[name] for name in kept})
        table.insert(0, "Run", list(runs.values()))
    else:
        rows = [[name, *texts[name]] for name in kept]
        table = pd.DataFrame(rows, columns=["Field", *(f"Run {name}" for name in runs.values())])
    return Table("differences", "What differs", table, stored)
