"""Predicted peaks on pages: what is known at once, what is being predicted, and asking for what is not.

Predictions are kept in the database for good and made by the worker, like everything that needs torch. Asking puts
requests into the queue and waits for nothing; a page shows what is known and lets :func:`follow` run it anew as
answers come in. A sentence that says why there is no prediction is an answer, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from app import formatting, people, state
from app.widgets import launching, progress
from db import predictions, queue, runs
from db.runs import RunRow
from engine.spec import Measured, PredictSpec, SpecError, parse_spec, prediction_key, spec_hash

#: The peak as a device's allocator counts it, and all that it keeps; there only for devices that have one.
ALLOCATED, RESERVED = "peak_allocated_bytes", "peak_reserved_bytes"
PEAK = "peak_bytes"
_NOT_PARTS = ("largest_weight_bytes",)
# Requests are worked on one after another, and give their answers when they end: small ones give the first soon.
_SPECS_IN_A_REQUEST = 4
_MOST_REQUESTS = 10
# Ended without an answer, so that asking once more by itself would go on for ever. A cancelled one was not wanted.
_UNANSWERED = ("failed", "out_of_memory", "timed_out", "lost")
_UNANSWERED_SHOWN = 50
_LOOK_EVERY_S = 0.5
# What is said of a model or a folder that cannot be had may be over soon: the network, the hub, the disk.
_PASSING = ("model", "adapter.path")
_PASSING_S = 300.0


@dataclass(frozen=True, slots=True)
class Predicted:
    """One spec's prediction, or the sentence (``error``) that says why there is none. Sizes are in bytes.

    ``metrics`` are by name and variant; ``peak_bytes``, ``parts`` (by category), ``peak_part`` and what follows are of
    the variant with the highest peak. ``course`` is empty unless it was asked for. ``is_broken_off`` tells a request
    that ended before it had an answer, or a reason that may pass, from an answer that says no.
    """

    spec_hash: str
    error: str | None = None
    metrics: Mapping[tuple[str, str | None], float] = field(default_factory=dict)
    variant: str | None = None
    peak_part: str = ""
    top_tensors: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    device_terms: tuple[Mapping[str, Any], ...] = ()
    course: tuple[Mapping[str, Any], ...] = ()
    is_broken_off: bool = False

    @property
    def peak_bytes(self) -> float | None:
        """The most that the job's tensors take, None without a prediction."""
        return self.metrics.get((PEAK, self.variant))

    @property
    def reserved_bytes(self) -> float | None:
        """The most that the device's allocator keeps, None where there is none."""
        return self.metrics.get((RESERVED, self.variant))

    @property
    def device_bytes(self) -> float | None:
        """All that the job takes of a device, with what libraries and the driver take; None where that is not known."""
        return sum(float(term["bytes"]) for term in self.device_terms) or None

    @property
    def parts(self) -> dict[str, float]:
        """Bytes at the peak by category."""
        return self.parts_of(self.variant)

    def parts_of(self, variant: str | None) -> dict[str, float]:
        """Bytes by category at the peak of one variant."""
        return {
            name.removesuffix("_bytes").replace("_", " "): value
            for (name, of), value in self.metrics.items()
            if of == variant and name.endswith("_bytes") and "peak" not in name and name not in _NOT_PARTS
        }


def from_entry(entry: Mapping[str, Any]) -> Predicted:
    """A prediction as it is stored (an entry of ``engine.jobs.predict``)."""
    if problem := entry.get("error"):
        return Predicted(str(entry["spec_hash"]), error=str(problem["text"]), is_broken_off=_may_pass(entry))
    return Predicted(
        str(entry["spec_hash"]),
        metrics={(one["name"], one["variant"]): float(one["value"]) for one in entry["metrics"]},
        variant=entry.get("peak_variant"),
        peak_part=str(entry.get("peak_part") or ""),
        top_tensors=tuple(entry.get("top_tensors") or ()),
        notes=tuple(entry.get("notes") or ()),
        device_terms=tuple(entry.get("device_terms") or ()),
        course=tuple(entry.get("course") or ()),
    )


def known(specs: Iterable[Measured], card: str | None = None, *, with_course: bool = False) -> dict[str, Predicted]:
    """What is known of these specs without waiting, by spec hash.

    Args:
        specs: what to look up.
        card: the card that they were predicted for, if any.
        with_course: also the course of memory, which takes longer to read.
    """
    by_key = _by_key(specs, card)
    with state.database().reading() as session:
        found = predictions.find(session, by_key, with_course=with_course)
    answers = {key: from_entry(entry) for key, entry in found.items() if not _is_over(entry)}
    missing = by_key.keys() - answers.keys()
    if missing:
        answers |= _unanswered(missing)
    # Specs that differ only in what does not matter to a prediction share one.
    return {hashed: answers[key] for key, hashes in by_key.items() if key in answers for hashed in hashes}


def waiting(specs: Iterable[Measured], card: str | None = None) -> set[str]:
    """The hashes of those of these specs that are being predicted or wait for it."""
    by_key = _by_key(specs, card)
    return {hashed for row in _requests(("queued", "running")) for key in _keys(row) for hashed in by_key.get(key, ())}


def ask(specs: Sequence[Measured], card: str | None = None, *, place: str = "", again: bool = False) -> list[int]:
    """Queue what of these specs is neither known nor being predicted already, in a few requests in the given order.

    Args:
        specs: what to predict.
        card: the card to predict for.
        place: names a form that asks for something else whenever it changes: what it asked for before in this session
            is cancelled as far as none of it is wanted any more.
        again: also what an earlier request left without an answer, each in a request of its own.

    Returns:
        The ids of the new requests; none where this visitor may only look.
    """
    if not people.visitor().may_change:
        return []
    with state.database().reading() as session:
        keys = _by_key(specs, card)
        found = predictions.find(session, keys)
    stored = {key for key, entry in found.items() if not (_may_pass(entry) if again else _is_over(entry))}
    under_way = {key for row in _requests(("queued", "running")) for key in _keys(row)}
    left_out = stored | under_way
    if not again and (missing := keys.keys() - left_out):
        left_out |= _unanswered(missing).keys()
    if place:
        _withdraw(place, keys.keys())
    by_key = {prediction_key(spec, card): spec for spec in reversed(specs)}
    wanted = [by_key[key] for key in keys if key not in left_out]
    if not wanted:
        return []
    size = 1 if again else max(_SPECS_IN_A_REQUEST, math.ceil(len(wanted) / _MOST_REQUESTS))
    # The first alone, so that a page has something to show as soon as can be.
    groups = [wanted[:1], *(wanted[start : start + size] for start in range(1, len(wanted), size))]
    ids = launching.launch([PredictSpec(of=tuple(group), card=card) for group in groups])
    if place:
        st.session_state.setdefault(_asked_key(place), []).extend(ids)
    return ids


def follow(specs: Sequence[Measured], card: str | None = None) -> None:
    """A line while some of these specs are being predicted; runs the page anew whenever answers have come in.

    It takes no room once all have an answer. Call it where a page has a place of its own for it.
    """
    left = len(waiting(specs, card))
    if left:
        st.fragment(_look, run_every=look_every_s())(list(specs), card, left)


def look_every_s() -> float:
    """How often a page looks for answers: seldom while a measurement is under way, which it must not disturb."""
    return state.LIVE_EVERY_S if _is_measuring() else _LOOK_EVERY_S


def _look(specs: list[Measured], card: str | None, left_before: int) -> None:
    left = len(waiting(specs, card))
    if left != left_before:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        what = "1 prediction" if left == 1 else f"{left} predictions"
        st.markdown(f":material/hourglass_top: {what} to come", width="content")
        progress.supervisor_badge()


def keys_of_runs(rows: Iterable[RunRow]) -> dict[int, str]:
    """The prediction key of each measured run whose spec can still be read, by run id."""
    found = {row.id: _key_of(row.uid, row.spec) for row in rows}
    return {run_id: key for run_id, key in found.items() if key is not None}


@st.cache_data(max_entries=5000, show_spinner=False)
def _key_of(uid: str, _document: Mapping[str, Any]) -> str | None:
    """Kept, as a run's spec never changes."""
    try:
        spec = parse_spec(_document)
    except SpecError:
        return None
    return prediction_key(spec) if isinstance(spec, Measured) else None


def _may_pass(entry: Mapping[str, Any]) -> bool:
    """Whether a stored sentence is about something that may be otherwise the next time."""
    return bool(entry.get("error")) and entry["error"].get("field") in _PASSING


def _is_over(entry: Mapping[str, Any]) -> bool:
    """Whether a stored sentence may have passed by now, so that it is no answer any more."""
    return _may_pass(entry) and state.now_s() - entry["created_at"] > _PASSING_S


def _by_key(specs: Iterable[Measured], card: str | None) -> dict[str, list[str]]:
    """Prediction key -> hashes of the specs that share it, in the given order."""
    found: dict[str, list[str]] = {}
    for spec in specs:
        hashes = found.setdefault(prediction_key(spec, card), [])
        hashed = spec_hash(spec)
        if hashed not in hashes:
            hashes.append(hashed)
    return found


def _requests(states: Sequence[str], limit: int | None = None) -> list[RunRow]:
    with state.database().reading() as session:
        return list(runs.list_runs(session, kinds=["predict"], states=states, limit=limit))


def _unanswered(keys: Iterable[str]) -> dict[str, Predicted]:
    """Which of these keys the latest request for them left without an answer, and what it says of that, by key."""
    wanted = set(keys)
    found: dict[str, Predicted] = {}
    for row in _requests(_UNANSWERED, _UNANSWERED_SHOWN):
        for key, hashed in _keys(row).items():
            if key in wanted:
                reason = row.error_text or formatting.state_text(row.state)
                text = f"The prediction ended without an answer: {reason}"
                found.setdefault(key, Predicted(hashed, error=text, is_broken_off=True))
    return found


def _keys(row: RunRow) -> Mapping[str, str]:
    """The prediction keys that a request asks for, and the hash of a spec of each."""
    return _keys_of(row.uid, row.spec)


@st.cache_data(max_entries=500, show_spinner=False)
def _keys_of(uid: str, _document: Mapping[str, Any]) -> dict[str, str]:
    """Kept, as a request never changes and reading its specs takes long beside the rest."""
    try:
        request = parse_spec(_document)
    except SpecError:
        # Of another version of the project: its keys would be others, too.
        return {}
    assert isinstance(request, PredictSpec)
    return {prediction_key(spec, request.card): spec_hash(spec) for spec in request.of}


def _withdraw(place: str, keys: Iterable[str]) -> None:
    """Cancel what this session asked for at a place and nobody wants there any more."""
    asked = set(st.session_state.pop(_asked_key(place), ()))
    wanted = set(keys)
    rows = [row for row in _requests(("queued", "running")) if row.id in asked]
    kept = [row.id for row in rows if not wanted.isdisjoint(_keys(row))]
    st.session_state[_asked_key(place)] = kept
    if unwanted := [row.id for row in rows if row.id not in kept]:
        with people.acting("cancel") as act:
            queue.request_cancel(act.session, unwanted)


def _asked_key(place: str) -> str:
    return f"predictions_asked_{place}"


def _is_measuring() -> bool:
    """Whether a measurement is under way, which an open page must not disturb."""
    with state.database().reading() as session:
        return any(row.state == "running" and row.kind != "predict" for row in runs.queued_and_running(session))
