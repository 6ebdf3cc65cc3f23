"""The sweep behind the Overview's one button: LoRA against DoRA, stock and two faster strategies.

Which runs belong to it and how far they are comes from the database, so that a reloaded page finds them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from sqlalchemy.orm import Session

from app import formatting, state
from app.widgets import frames, labels, launching, progress
from db import runs
from db.runs import RunRow
from engine.spec import Spec, parse_spec

SWEEP_NAME = "LoRA against DoRA"
REPEATS = 3
# Model, and the cores and free bytes with which its four runs and their proofs end within a minute; largest first.
MODELS: tuple[tuple[str, int, int], ...] = (
    ("tinyllama-1.1b", 8, 8 * 2**30),
    ("qwen2.5-0.5b", 2, 4 * 2**30),
    ("minimind-26m", 0, 0),
)

_VARIANTS: tuple[tuple[dict[str, object], str], ...] = (
    ({}, "stock"),
    ({"use_dora": True}, "stock"),
    ({"use_dora": True}, "zero_b_norm"),
    ({"use_dora": True}, "factored_norm"),
)


@dataclass(frozen=True, slots=True)
class FirstSweep:
    """The runs of the latest such sweep, oldest first."""

    runs: Sequence[RunRow]

    @property
    def is_active(self) -> bool:
        """Whether any of its runs still waits or runs."""
        return any(row.state in ("queued", "running") for row in self.runs)

    @property
    def ended(self) -> int:
        """How many of its runs have ended."""
        return sum(row.state not in ("queued", "running") for row in self.runs)

    @property
    def unsuccessful(self) -> list[RunRow]:
        """Its runs that ended without a result."""
        return [row for row in self.runs if row.state not in ("queued", "running", "succeeded")]


def latest(session: Session) -> FirstSweep | None:
    """The latest sweep that the button started, None if there is none."""
    rows = [row for row in runs.list_runs(session, search=SWEEP_NAME, limit=40) if row.sweep_name == SWEEP_NAME]
    if not rows:
        return None
    newest = max(row.sweep_id or 0 for row in rows)
    return FirstSweep(sorted((row for row in rows if row.sweep_id == newest), key=lambda row: row.id))


def chosen_model() -> str:
    """The largest model that this machine measures within a minute, as the difference shows better on larger ones."""
    return next(
        model
        for model, cores, free_bytes in MODELS
        if state.cores() >= cores and state.free_memory_bytes() >= free_bytes
    )


def specs(model: str) -> list[Spec]:
    """What the button measures on ``model``: equal in everything but adapter and strategy."""
    return [
        parse_spec(
            {"kind": "init", "model": model, "strategy": strategy, "repeats": REPEATS, "adapter": {"options": options}}
        )
        for options, strategy in _VARIANTS
    ]


def start() -> None:
    """Queue the sweep unless one is under way, as it may have been started from another tab."""
    with state.database().reading() as session:
        sweep = latest(session)
    if sweep is None or not sweep.is_active:
        launching.launch(specs(chosen_model()), SWEEP_NAME)


def empty_state(sweep: FirstSweep | None) -> None:
    """What a new database shows: one sentence and one button, and why the last try gave nothing."""
    if sweep is not None:
        unsuccessful_notes(sweep)
    with st.container(border=True, horizontal_alignment="center", gap="medium"):
        st.space("small")
        st.markdown(
            "Nothing is measured yet: see within a minute how long LoRA and DoRA take to attach here, "
            "and which strategy makes DoRA fast.",
            text_alignment="center",
        )
        start_button()
        st.caption(
            f"Four runs on {labels.model_label(chosen_model())} with synthetic weights; nothing is downloaded.",
            text_alignment="center",
        )
        st.space("small")


def start_button() -> None:
    """The one button."""
    st.button(
        "Measure LoRA against DoRA here",
        key="measure_here",
        type="primary",
        icon=":material/play_arrow:",
        on_click=start,
    )


def unsuccessful_notes(sweep: FirstSweep) -> None:
    """One sentence for each run of the sweep that has no result."""
    for row in sweep.unsuccessful:
        reason = frames.problem_sentence(row) or formatting.state_text(row.state)
        st.warning(
            f"{progress.run_name(row)} ended as {formatting.state_text(row.state).lower()}: {formatting.plain(reason)}",
            icon=formatting.state_icon(row.state),
        )


def progress_card(sweep: FirstSweep) -> None:
    """How far the sweep is: one bar for all of it, one line for each run."""
    total = len(sweep.runs)
    # What a run has done of building its model is left out: its first guess of what is left would take it back.
    now_s = state.now_s()
    measuring = [row for row in sweep.runs if row.state == "running" and (row.progress or {}).get("eta_s") is not None]
    share = (sweep.ended + sum(progress.fraction_done(row, now_s) for row in measuring)) / total
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**Measuring on {labels.model_label(sweep.runs[0].model)}**", width="content")
            with st.container(horizontal=True, vertical_alignment="center", width="content"):
                progress.supervisor_badge()
                st.button(
                    "Cancel",
                    key="cancel_first_sweep",
                    icon=":material/cancel:",
                    on_click=progress.cancel,
                    args=([row.id for row in sweep.runs],),
                )
        st.progress(min(share, 1.0), text=f"{sweep.ended} of {total} runs measured")
        with st.container(gap="xsmall"):
            run_lines(sweep)


def run_lines(sweep: FirstSweep) -> None:
    """One line for each run, with what the running one does now."""
    for row in sweep.runs:
        name = formatting.plain(labels.variant_label(row))
        line = f"{formatting.state_icon(row.state)} {name}"
        if row.state == "running":
            st.markdown(f"{line} · :gray[{progress.phase_text(row, state.now_s())}]")
        elif row.state == "queued":
            st.markdown(f":gray[{line}]")
        else:
            st.markdown(f":{formatting.state_colour(row.state)}[{formatting.state_icon(row.state)}] {name}")
