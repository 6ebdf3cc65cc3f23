"""What the Overview, the list of cases and each case's page share: verdict, key number, the button to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from app import formatting
from app.widgets import acting, case_runs, presenting, samples
from app.widgets.case_runs import CaseRuns, Origin
from engine.cases import Case, Ratio, Size, Verdict, Word
from engine.result import Device

#: The query parameter that says whose runs are shown.
FROM = "from"
# icon, colour of the badge
_LOOKS: dict[Word, tuple[str, str]] = {
    "holds here": (":material/check_circle:", "green"),
    "holds in direction": (":material/trending_up:", "blue"),
    "does not hold here": (":material/cancel:", "orange"),
    "not enough data yet": (":material/hourglass_empty:", "gray"),
    "not testable on this machine: no GPU": (":material/developer_board_off:", "gray"),
}
# Sample runs were measured elsewhere, where "here" would be wrong.
_ELSEWHERE: dict[Word, str] = {
    "holds here": "held there",
    "holds in direction": "held in direction",
    "does not hold here": "did not hold there",
}


def choice(parameter: str, names: Mapping[str, str], default: str) -> str:
    """One of a few ways to look at a page, kept in the address by its short name; no control while presenting.

    A bound widget would write the shown name into the address.
    """
    asked = st.query_params.get(parameter, default)
    known = asked if asked in names else default
    if presenting.is_on():
        return known
    chosen = st.segmented_control(
        parameter.capitalize(),
        list(names),
        format_func=names.__getitem__,
        default=known,
        required=True,
        key=f"choice_{parameter}",
        label_visibility="collapsed",
    )
    st.query_params[parameter] = str(chosen)
    return str(chosen)


def chosen_origin(*, has_local: bool) -> Origin:
    """Whose runs a page shows: this machine's, or the bundled ones where these are loaded and asked for.

    Args:
        has_local: whether this machine has something to show, which then comes first.
    """
    if not samples.are_loaded():
        return "local"
    names = {"local": "This machine", "sample": "Sample data"}
    return choice(FROM, names, "local" if has_local else "sample")  # type: ignore[return-value]


def link(origin: Origin, **query: str) -> dict[str, str]:
    """Query parameters for a link from one of these pages to another: whose runs, and whether it is presented."""
    return {**query, FROM: origin, **presenting.stay()} if samples.are_loaded() else {**query, **presenting.stay()}


def short_name(case: Case) -> str:
    """A case in one or two words: "Train memory"."""
    return case.id.replace("_", " ").capitalize()


def verdict_badge(verdict: Verdict, origin: Origin) -> None:
    """The verdict's word."""
    icon, colour = _LOOKS[verdict.word]
    text = _ELSEWHERE.get(verdict.word, verdict.word) if origin == "sample" else verdict.word
    st.badge(text[:1].upper() + text[1:], icon=icon, color=colour)  # type: ignore[arg-type]


def published_text(verdict: Verdict) -> str:
    """The published value of the verdict's key number: "published 20.0×"."""
    first = verdict.ratios[:1]
    of_key = [ratio for ratio in verdict.ratios if ratio.measured == verdict.key_value is not None] or first
    published = of_key[0].published if of_key else None
    return f"published {formatting.ratio(published)}" if published is not None else ""


def key_number(found: CaseRuns) -> None:
    """The case's key number, with the published one below it."""
    verdict = found.verdict
    st.metric(
        sentence_case(found.case.key_label),
        formatting.ratio(verdict.key_value),
        delta=published_text(verdict) or None,
        delta_arrow="off",
        delta_color="off",
    )


def sentence_case(text: str) -> str:
    """With a capital first."""
    return text[:1].upper() + text[1:]


def ratio_frame(ratios: Sequence[Ratio]) -> pd.DataFrame:
    """Ratios as the chart of ratios takes them."""
    return pd.DataFrame(
        [(ratio.label, ratio.measured, ratio.low, ratio.high, ratio.published, ratio.note) for ratio in ratios],
        columns=["label", "measured", "low", "high", "published", "note"],
    )


def measure_button(found: CaseRuns, devices: Sequence[Device], label: str, *, key: str, is_primary: bool) -> None:
    """Starts what is missing of a sweep; grey, with the reason, where it runs already or this machine cannot."""
    reason = case_runs.refusal(found.sweep, devices)
    acting.button(
        label,
        key=key,
        type="primary" if is_primary else "secondary",
        icon=":material/play_arrow:",
        disabled=reason is not None or found.is_active,
        help=reason,
        on_click=case_runs.start,
        args=([(found.case, found.size)],),
    )


def size_name(size: Size) -> str:
    """Where a sweep belongs, for people."""
    return {"here": "This machine", "published": "Published size", "test": "Test size"}[size]
