"""Small multiples: one panel per value on the same axes."""

from __future__ import annotations

import functools

import pandas as pd
import pytest

from app import figures

COLOURS = {"LoRA": "#0072B2", "DoRA": "#E69F00"}
lines = functools.partial(figures.lines, colours=COLOURS, title="Step time", unit="s", x_title="rank")
spread = functools.partial(figures.spread, colours=COLOURS, title="Step time", is_panel=True)


def frame(batches: list[object], groups: tuple[str, ...] = ("LoRA", "DoRA")) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "group": group,
                "label": group,
                "adapter": group,
                "x": x,
                "value": place * x + 1.0,
                "run_id": 1,
                "b": b,
            }
            for place, b in enumerate(batches)
            for group in groups
            for x in (4, 8, 16)
        ]
    )


def heads(figure: object) -> list[str]:
    return [note.text for note in figure.layout.annotations if note.name != "direct label"]  # type: ignore[attr-defined]


def axes(figure: object, letter: str) -> list[object]:
    return [axis for axis in figure.select_xaxes()] if letter == "x" else list(figure.select_yaxes())  # type: ignore[attr-defined]


def test_each_value_has_a_panel_in_order_and_every_panel_the_same_range() -> None:
    figure = figures.facets(frame([8, 1, 4]), "b", lines, name="batch")
    assert heads(figure) == ["batch 1", "batch 4", "batch 8"]
    assert len({tuple(axis.range) for axis in axes(figure, "y")}) == 1
    assert len({tuple(axis.range) for axis in axes(figure, "x")}) == 1
    assert axes(figure, "y")[0].range[1] > frame([8, 1, 4])["value"].max()


def test_one_value_is_the_chart_itself() -> None:
    assert figures.facets(frame([1]), "b", lines).to_json() == lines(frame([1])).to_json()


def test_runs_without_the_field_have_a_panel_of_their_own() -> None:
    assert heads(figures.facets(frame([None, "float32"]), "b", lines)) == ["float32", "not set"]
    assert heads(figures.facets(frame([16, None, 8]), "b", lines)) == ["8", "16", "not set"]


def test_more_than_twelve_panels_are_cut_and_the_title_says_so() -> None:
    figure = figures.facets(frame(list(range(14))), "b", lines)
    assert len(heads(figure)) == 12
    assert figure.layout.title.text.endswith("(the first 12 of 14)")


def test_names_at_line_ends_become_one_legend_with_each_name_once() -> None:
    figure = figures.facets(frame([1, 2]), "b", lines)
    assert figure.layout.showlegend
    assert [trace.name for trace in figure.data if trace.showlegend] == ["LoRA", "DoRA"]
    assert not [note for note in figure.layout.annotations if note.name == "direct label"]


def test_a_group_looks_the_same_in_every_panel() -> None:
    rows = frame([1, 2], ("a", "b")).assign(adapter="LoRA")
    rows = rows[~((rows["b"] == 2) & (rows["group"] == "a"))]
    figure = figures.facets(rows, "b", lines)
    looks = {(trace.name, trace.line.color, trace.marker.symbol) for trace in figure.data}
    assert len(looks) == 2


def test_typed_values_are_shown_letter_by_letter() -> None:
    assert heads(figures.facets(frame(["<b>x</b>", "y"]), "b", lines))[0] == "&lt;b&gt;x&lt;/b&gt;"


def test_rows_keep_their_names_order_and_baseline_in_every_panel() -> None:
    figure = figures.facets(frame([1, 2, 3]), "b", functools.partial(spread, baseline="LoRA"))
    assert {tuple(axis.categoryarray) for axis in axes(figure, "y")} == {("DoRA", "LoRA")}
    assert {tuple(axis.range) for axis in axes(figure, "y")} == {(-0.5, 1.5)}, "no row is cut off"
    assert len(figure.layout.shapes) == 3
    assert {shape.xref for shape in figure.layout.shapes} == {"x", "x2", "x3"}


def test_the_scale_is_decided_once_for_all_panels() -> None:
    rows = pd.DataFrame(
        [
            {"label": "LoRA", "adapter": "LoRA", "value": value, "run_id": 1, "b": batch, "group": "LoRA", "x": x}
            for batch, values in ((1, (0.1, 0.11)), (2, (50.0, 60.0)))
            for x, value in zip((4, 8), values, strict=True)
        ]
    )
    figure = figures.facets(rows, "b", lines)
    assert len({(axis.type, tuple(axis.range)) for axis in axes(figure, "y")}) == 1
    (low, high), kind = axes(figure, "y")[0].range, axes(figure, "y")[0].type
    assert (10**high if kind == "log" else high) > 60
    assert (10**low if kind == "log" else low) < 0.1


@pytest.mark.parametrize("batches", [[1, 2], [1, 2, 3, 4], list(range(7))])
def test_stacks_keep_their_parts_in_every_panel(batches: list[object]) -> None:
    rows = pd.DataFrame(
        [{"label": "LoRA", "part": part, "value": 1.0, "b": b} for b in batches for part in ("forward", "backward")]
    )
    draw = functools.partial(figures.stacked, colours=figures.STEP_COLOURS, title="Step", unit="s")
    figure = figures.facets(rows, "b", draw)
    assert figure.layout.barmode == "stack"
    assert sum(trace.type == "bar" for trace in figure.data) == 2 * len(batches)
    assert sum(bool(trace.showlegend) for trace in figure.data if trace.type == "bar") == 2
