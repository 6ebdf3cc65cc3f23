"""The sweep behind a new Overview's one button: LoRA against DoRA, stock and two faster strategies, and its result.

Which runs belong to it and how far they are comes from the database, so that a reloaded page finds them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st
from sqlalchemy.orm import Session

from app import formatting, people, state
from app.kinds import init
from app.widgets import acting, frames, labels, launching, presenting, sweep_card
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, cards, draw
from db import runs
from db.runs import RunRow
from engine.cases import DISTURBED_SHARE
from engine.spec import Spec, parse_spec

SWEEP_NAME = "LoRA against DoRA"
REPEATS = 3
LORA, DORA = "LoRA · Stock PEFT", "DoRA · Stock PEFT"
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


@people.told
def start() -> None:
    """Queue the sweep unless one is under way, as it may have been started from another tab."""
    with state.database().reading() as session:
        sweep = latest(session)
    if sweep is None or not sweep.is_active:
        launching.launch(specs(chosen_model()), SWEEP_NAME)


def empty_state(sweep: FirstSweep | None) -> None:
    """What a new database shows: one sentence and one button, and why the last try gave nothing."""
    if sweep is not None:
        sweep_card.unsuccessful_notes(sweep.unsuccessful)
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
    acting.button(
        "Measure LoRA against DoRA here",
        key="measure_here",
        type="primary",
        icon=":material/play_arrow:",
        on_click=start,
    )


def progress_card(sweep: FirstSweep) -> None:
    """How far the sweep is."""
    sweep_card.sweep_card(
        f"Measuring on {labels.model_label(sweep.runs[0].model)}", sweep.runs, key="cancel_first_sweep"
    )


def result(session: Session, sweep: FirstSweep) -> pd.DataFrame:
    """What its runs measured, for the charts of their kind; empty until one has a result."""
    measured = {row.id: row for row in sweep.runs if row.state == "succeeded"}
    values = runs.metric_values(session, run_ids=measured, names=init.NAMES)
    return frames.in_order(frames.metric_frame(values, measured, frames.way_label), init.COMPARED)


def show(sweep: FirstSweep, frame: pd.DataFrame) -> None:
    """Its answer in four numbers, the chart, and the numbers of the chart."""
    spec = sweep.runs[0].spec
    st.subheader(f"LoRA against DoRA on {labels.model_label(sweep.runs[0].model)}", anchor=False)
    st.caption(formatting.plain(f"{labels.setting_label(spec)} · {state.devices()[0].name}"))
    disturbed = [row for row in sweep.runs if (row.background_cpu_share or 0) > DISTURBED_SHARE]
    if disturbed:
        st.warning(
            f"Other processes used the CPU during {formatting.plural(len(disturbed), 'run')} of {len(sweep.runs)}; "
            "measure again when the machine is quiet.",
            icon=":material/noise_aware:",
        )
    summary = init.summary(frame)
    _numbers(summary)
    draw(init.comparison(frame, baseline=LORA)[:1])
    if presenting.is_on():
        return
    with st.expander("Numbers", icon=":material/table_rows:"):
        shown = init.table(summary)
        right = st.column_config.TextColumn(alignment="right")
        st.dataframe(
            shown,
            hide_index=True,
            alt="Seconds to attach LoRA and DoRA by strategy",
            column_config={name: right for name in shown.columns[1:]},
        )
        table_downloads(summary, "lora_against_dora")


def _numbers(summary: pd.DataFrame) -> None:
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
