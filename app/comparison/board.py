"""Everything the Compare page shows of several runs of one kind, as frames: values by group, statistics, verdicts.

Built from stored rows without looking at anything else. Values stay in stored units (seconds, bytes), or are multiples
of the baseline where they were normalised.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from app import formatting
from app.comparison import environments, fields, groups, statistics, verdicts
from app.comparison.environments import Identity
from app.comparison.fields import Flat
from app.comparison.groups import Group
from app.comparison.statistics import Reading
from app.kinds import KINDS, inference
from db.runs import MetricValue, RunRow

FRAME_COLUMNS = [
    "run_id",
    "group",
    "adapter",
    "name",
    "unit",
    "variant",
    "x",
    "repeat",
    "value",
    "failed_checks",
    "state",
    "metric",
]


@dataclass(frozen=True)
class Board:
    """Several runs of one kind, grouped.

    Attributes:
        rows: the runs, in the order asked for.
        flats: the configuration of each.
        identities: the environment of each.
        groups: in reading order; labels are unique.
        frame: one line per value of a group (``FRAME_COLUMNS``); a run without any has one line without name and value.
            ``metric`` names what can be compared: the metric, with ``@variant`` where the variant is a view and no
            group; None where values lie along an ``x``.
        units: of each metric as stored, also where ``frame`` holds ratios.
        is_normalised: whether values are multiples of the baseline in the same environment.
    """

    rows: tuple[RunRow, ...]
    flats: Mapping[int, Flat]
    identities: Mapping[int, Identity]
    groups: tuple[Group, ...]
    frame: pd.DataFrame
    units: Mapping[str, str]
    is_normalised: bool = False

    def group(self, label: str) -> Group:
        """The group of this label.

        Raises:
            KeyError: where there is none.
        """
        for group in self.groups:
            if group.label == label:
                return group
        raise KeyError(label)


def build(
    rows: Sequence[RunRow],
    recorded: Mapping[int, Mapping[str, Any]],
    values: Sequence[MetricValue],
    *,
    by: Sequence[str] = (),
    sides: Collection[str] | None = None,
) -> Board:
    """Group runs of one kind and sort their values into the groups.

    Args:
        rows: the runs.
        recorded: the environment of each run that has one.
        values: metrics of the runs; those of other runs are ignored.
        by: fields to group by, replicas where empty.
        sides: variants inside a run to show where it has any of them; None shows all.
    """
    flats = {row.id: fields.flat(row, recorded.get(row.id)) for row in rows}
    identities = {row.id: environments.identity(recorded.get(row.id)) for row in rows}
    by_id = {row.id: row for row in rows}
    grouped = groups.group_runs(rows, flats, identities, _shown_sides(rows, values, sides), by)
    of_member = {(member.run_id, member.variant): group for group in grouped for member in group.members}
    lines: list[tuple[object, ...]] = []
    units: dict[str, str] = {}
    for value in values:
        row = by_id.get(value.run_id)
        if row is None:
            continue
        side = groups.side(row, value.variant)
        group = of_member.get((row.id, groups.main_side(row) if value.variant is None else side))
        if group is None:
            continue
        is_view = value.variant is not None and side is None
        metric = f"{value.name}@{value.variant}" if is_view else value.name
        if value.x is None:
            units.setdefault(metric, value.unit)
        lines.append(
            (
                value.run_id,
                group.label,
                group.adapter,
                value.name,
                value.unit,
                value.variant,
                value.x,
                value.repeat,
                value.value,
                row.failed_checks or 0,
                row.state,
                metric if value.x is None else None,
            )
        )
    silent = {row.id for row in rows} - {line[0] for line in lines}
    lines += [
        _silent_line(by_id[member.run_id], group)
        for group in grouped
        for member in group.members
        if member.run_id in silent
    ]
    frame = pd.DataFrame(lines, columns=FRAME_COLUMNS)
    places = {group.label: place for place, group in enumerate(grouped)}
    frame = frame.sort_values("group", key=lambda column: column.map(places), kind="stable", ignore_index=True)
    return Board(tuple(rows), flats, identities, tuple(grouped), frame, units)


def _silent_line(row: RunRow, group: Group) -> tuple[object, ...]:
    """The line of a run that has no value, so that charts can say how it ended."""
    nothing = (float("nan"), row.failed_checks or 0, row.state, None)
    return (row.id, group.label, group.adapter, "", "", None, None, 0, *nothing)


def sides_of(rows: Sequence[RunRow], values: Sequence[MetricValue]) -> list[str]:
    """The variants inside runs that can be compared, in reading order; empty where runs have one side only."""
    by_id = {row.id: row for row in rows}
    found = {
        side: None
        for value in values
        if value.run_id in by_id and (side := groups.side(by_id[value.run_id], value.variant)) is not None
    }
    return sorted(found, key=lambda side: inference.PLACES.get(side, 3))


def _shown_sides(
    rows: Sequence[RunRow], values: Sequence[MetricValue], wanted: Collection[str] | None
) -> dict[int, list[str | None]]:
    """Which sides of each run become members of groups; a run without values is there by its main side."""
    measured: dict[int, dict[str | None, None]] = {row.id: {} for row in rows}
    by_id = {row.id: row for row in rows}
    for value in values:
        if value.run_id in by_id and (value.variant is not None or by_id[value.run_id].kind != "inference"):
            row = by_id[value.run_id]
            measured[row.id][groups.side(row, value.variant)] = None
    shown: dict[int, list[str | None]] = {}
    for row in rows:
        found = list(measured[row.id]) or [groups.main_side(row)]
        shown[row.id] = [side for side in found if side is None or wanted is None or side in wanted]
    return shown


def normalise(board: Board, baseline: str) -> Board:
    """The board with every value as a multiple of the baseline's median in the same environment.

    Values whose environment has no baseline are left out.
    """
    alike = {group.label for group in board.groups if group.recipe == board.group(baseline).recipe}
    kept = board.frame[board.frame["metric"].notna()]
    frame = environments.normalised(kept, board.identities, kept["group"].isin(alike))
    return replace(board, frame=frame.reset_index(drop=True), is_normalised=True)


def without_baseline(board: Board, baseline: str) -> list[str]:
    """Labels of the groups that have no baseline in their own environment."""
    recipe = board.group(baseline).recipe
    alike = [group for group in board.groups if group.recipe == recipe]
    has = {board.identities[run_id] for group in alike for run_id in group.run_ids}
    return [group.label for group in board.groups if not {board.identities[run_id] for run_id in group.run_ids} & has]


def charted(board: Board) -> pd.DataFrame:
    """The frame as charts draw it: in groups of several runs each counts once, by its median, as in the statistics."""
    frame = board.frame
    number = frame.groupby("group")["run_id"].transform("nunique")
    by_run = (number > 1) & frame["metric"].notna()
    if not by_run.any():
        return frame
    keys = [column for column in FRAME_COLUMNS if column not in ("x", "repeat", "value")]
    medians = frame[by_run].groupby(keys, sort=False, dropna=False)["value"].median().reset_index()
    joined = pd.concat([frame[~by_run], medians.assign(x=None, repeat=0)], ignore_index=True)
    places = {group.label: place for place, group in enumerate(board.groups)}
    return joined[FRAME_COLUMNS].sort_values("group", key=lambda column: column.map(places), kind="stable")


def first_metric(board: Board) -> str:
    """The metric to begin with: what the kind is compared by; speed where steps differ in how much they do."""
    names = metrics(board)
    does_more = any(
        len({flat.get(f"train.{name}") for flat in board.flats.values()}) > 1
        for name in ("context_length", "batch_size", "accumulation")
    )
    return "train_tokens_per_s" if does_more and "train_tokens_per_s" in names else names[0]


def known_environments(board: Board) -> list[Identity]:
    """The environments of the runs that have numbers; one that recorded none counts, too."""
    measured = set(board.frame.loc[board.frame["value"].notna(), "run_id"])
    return [identity for run_id, identity in board.identities.items() if run_id in measured]


def wide_fields(board: Board) -> pd.DataFrame:
    """Every field of every run, by run id, with the label of the group that the run is about as ``group``."""
    labels = {run_id: group.label for group in reversed(board.groups) for run_id in group.run_ids}
    about = {(row.id, groups.main_side(row)) for row in board.rows}
    for group in board.groups:
        labels.update(
            {member.run_id: group.label for member in group.members if (member.run_id, member.variant) in about}
        )
    wide = pd.DataFrame.from_dict({run_id: flat for run_id, flat in board.flats.items()}, orient="index")
    wide.index.name = "run_id"
    return wide.assign(group=[labels.get(run_id) for run_id in wide.index])


def metrics(board: Board) -> list[str]:
    """What can be compared, the kind's own most telling ones first, then the rest by title."""
    kind = KINDS.get(board.rows[0].kind) if board.rows else None
    first = list(dict.fromkeys([kind.COMPARED, *kind.NAMES])) if kind else []
    known = board.units
    rest = sorted((metric for metric in known if metric not in first), key=title)
    return [metric for metric in first if metric in known] + rest


def title(metric: str) -> str:
    """A metric's name for people: "Peak extra RSS (anonymous)"."""
    name, _, view = metric.partition("@")
    return f"{formatting.metric_title(name)} ({view.replace('_', ' ')})" if view else formatting.metric_title(name)


def value_text(board: Board, metric: str, value: float | None) -> str:
    """A value of this board as text: in its unit, or as a multiple of the baseline."""
    if board.is_normalised:
        return formatting.ratio(value)
    return formatting.metric_text(metric.partition("@")[0], value, board.units.get(metric, ""))


def readings(board: Board, metric: str) -> dict[str, list[Reading]]:
    """The values of one metric by group."""
    is_metric = board.frame["metric"] == metric
    columns = [board.frame[name][is_metric] for name in ("group", "run_id", "repeat", "value")]
    found: dict[str, list[Reading]] = {group.label: [] for group in board.groups}
    for label, run_id, repeat, value in zip(*columns, strict=True):
        if math.isfinite(value):
            found[label].append(Reading(int(run_id), int(repeat), float(value)))
    return found


@dataclass(frozen=True, slots=True)
class Standing:
    """One group in one metric: its statistics and its verdict against the baseline (None for the baseline itself)."""

    group: Group
    metric: str
    summary: statistics.Summary | None
    verdict: verdicts.Verdict | None
    runs: int
    repeats: int
    baseline: str


def standings(board: Board, metric: str, baseline: str) -> list[Standing]:
    """How each group stands in a metric, in reading order.

    Where values are normalised, each group is held against the baseline in its own environment.
    """
    found = readings(board, metric)
    unit = board.units.get(metric, "")
    result = []
    for group in board.groups:
        against = _own_baseline(board, group, baseline)
        mine = found[group.label]
        verdict = None if group.label == against else verdicts.decide(metric, unit, mine, found[against])
        runs = len({reading.run_id for reading in mine})
        result.append(Standing(group, metric, statistics.summary(mine), verdict, runs, len(mine), against))
    return result


def _own_baseline(board: Board, group: Group, baseline: str) -> str:
    if not board.is_normalised:
        return baseline
    recipe = board.group(baseline).recipe
    for other in board.groups:
        if other.recipe == recipe and other.environment == group.environment:
            return other.label
    return baseline


def sentence(board: Board, standing: Standing, baseline: statistics.Summary | None) -> str:
    """What a group's standing says, for a person; also where there is no value."""
    what = title(standing.metric)
    if standing.summary is None:
        return f"{standing.group.label} has no {_lower_first(what)}{_why_not(board, standing.group)}."
    if standing.verdict is None or baseline is None:
        return f"{standing.group.label}: {value_text(board, standing.metric, standing.summary.median)}."
    return verdicts.sentence(
        standing.verdict,
        standing.group.label,
        standing.baseline,
        value_text(board, standing.metric, standing.summary.median),
        value_text(board, standing.metric, baseline.median),
    )


def _lower_first(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _why_not(board: Board, group: Group) -> str:
    states = {row.state for row in board.rows if row.id in group.run_ids}
    if len(states) == 1 and states != {"succeeded"}:
        return f": {formatting.state_text(states.pop()).lower()}"
    return ""


def statistics_frame(found: Sequence[Standing], units: Mapping[str, str]) -> pd.DataFrame:
    """Standings as a table in stored units, a line each."""
    lines = []
    for standing in found:
        summary, verdict = standing.summary, standing.verdict
        lines.append(
            {
                "metric": standing.metric,
                "unit": units.get(standing.metric, ""),
                "group": standing.group.label,
                "runs": standing.runs,
                "repeats": standing.repeats,
                "median": summary.median if summary else None,
                "lower_quartile": summary.lower_quartile if summary else None,
                "upper_quartile": summary.upper_quartile if summary else None,
                "quartiles_of": summary.of if summary else None,
                "difference": verdict.difference if verdict else None,
                "change": verdict.change if verdict else None,
                "verdict": verdict.word
                if verdict
                else ("baseline" if standing.baseline == standing.group.label else None),
                "p": verdict.p if verdict else None,
                "evidence": verdict.evidence if verdict else None,
                "baseline": standing.baseline,
            }
        )
    return pd.DataFrame(lines)
