"""Predict: the peak memory of jobs before anything runs, for this machine or for a card that is not here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import streamlit as st

from app import figures, formatting, people, state
from app.widgets import (
    acting,
    estimates,
    fits,
    labels,
    launching,
    own_models,
    predict_form,
    prediction_details,
    prediction_frames,
    predictions,
    presenting,
)
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, Chart, cards, draw
from app.widgets.predict_form import Asked, Form
from app.widgets.prediction_frames import Peaks
from app.widgets.predictions import Predicted
from db import runs
from engine.catalog import requirements
from engine.spec import Measured, prediction_key

MOST_CARDS = 6
_MEASURED_LOOKED_AT = 500


def measured_peaks(form: Form) -> Peaks:
    """Peaks of stored runs of what was asked for, the latest of each; none for a card that is not here."""
    if not form.place.is_here:
        return {}
    with state.database().reading() as session:
        rows = runs.list_runs(
            session, kinds=[form.kind], models=[form.model], states=["succeeded"], limit=_MEASURED_LOOKED_AT
        )
        keys = predictions.keys_of_runs([row for row in rows if row.origin != labels.SAMPLE])
        hashes: dict[str, list[str]] = {}
        for one in form.asked:
            hashes.setdefault(prediction_key(one.spec), []).append(one.hash)
        wanted = {run_id: hashes[key] for run_id, key in keys.items() if key in hashes}
        values = runs.metric_values(session, list(wanted), ["peak_bytes"])
    found: dict[tuple[str, str | None], float] = {}
    for value in values:
        for hashed in wanted[value.run_id]:
            found[hashed, value.variant] = value.value
    return found


def answer(form: Form, known: Mapping[str, Predicted], waiting: Collection[str], free_bytes: float) -> None:
    """What each method takes at the longest length that is predicted, whether it fits, and what most of it is."""
    failed = {one.hash for one in form.asked if one.hash in known and known[one.hash].error is not None}
    lengths = [one.length for one in form.asked if one.length is not None and one.hash not in failed]
    shown = [one for one in form.asked if not lengths or one.length == max(lengths)]
    place = form.place
    where = formatting.plain(place.label if place.card or place.label != predict_form.THIS_MACHINE else "this machine")
    memory = formatting.size(_memory_bytes(form, free_bytes)) + (" free" if place.device.kind == "cpu" else "")
    presenting.words(f"{f'At **{max(lengths)} tokens**, on' if lengths else 'On'} {where} ({memory}):")
    cards([_card(form, one, known.get(one.hash), one.hash in waiting, free_bytes) for one in shown[:MOST_CARDS]])
    if len(shown) > MOST_CARDS:
        st.caption(f"The first {MOST_CARDS} of {len(shown)}; all are in the table below.")


def _card(form: Form, one: Asked, predicted: Predicted | None, is_waiting: bool, free_bytes: float) -> Card:
    if predicted is None or predicted.peak_bytes is None:
        return Card(one.group, "…" if is_waiting else formatting.DASH, "to come" if is_waiting else "not predicted")
    fit = fits.of(one.spec, predicted, [form.place.device], free_bytes)
    extra = predicted.metrics.get((prediction_frames.EXTRA.get(form.kind, ""), predicted.variant))
    part, size = max(predicted.parts.items(), key=lambda item: item[1], default=("", 0.0))
    notes: list[str] = [fit.word] if fit else []
    if extra is None:
        notes.append(f"{formatting.share(size / predicted.peak_bytes)} {part}")
    else:
        notes.append(f"{formatting.size(extra)} on top of the model")
    help_text = f"Peak of the job's tensors: {formatting.size(predicted.peak_bytes)}. "
    help_text += f"Needs {formatting.size(fit.needed_bytes)} in all. " if fit else ""
    return Card(
        one.group,
        formatting.size(predicted.device_bytes or predicted.peak_bytes),
        " · ".join(notes),
        help_text + fits.HELP,
        is_good=fit is not None and fit.word == "fits",
        is_bad=fit is not None and fit.word == "will not fit",
    )


def _memory_bytes(form: Form, free_bytes: float) -> float:
    """What there is: free memory of this machine, all that a card has."""
    return free_bytes if form.place.device.kind == "cpu" else float(form.place.device.memory_bytes)


def limits(form: Form, free_bytes: float) -> dict[str, float]:
    """The line that says where memory ends."""
    size = _memory_bytes(form, free_bytes)
    name = "free on this machine" if form.place.device.kind == "cpu" else form.place.label
    return {f"{name}: {formatting.size(size)}": size}


def charts(form: Form, known: Mapping[str, Predicted], measured: Peaks, free_bytes: float) -> None:
    """Memory at the peak against the length by method, or by method alone, and what adapters save of full training."""
    frame = prediction_frames.stacks(form.asked, known)
    if frame.empty:
        return
    peaks = {
        f"{one.group} at {one.length}": known[one.hash].peak_bytes or 0.0 for one in form.asked if one.hash in known
    }
    title = f"Predicted peak of {'a training step' if form.kind == 'train' else labels.kind_label(form.kind).lower()}"
    alt = figures.alt_text(f"{title} by category", peaks, "bytes", "lower")
    if frame["x"].notna().all():
        beside = prediction_frames.points(form.asked, known, measured)
        x_title = "context length" if form.kind == "train" else "prompt tokens"
        figure = figures.context_memory(
            frame, title=title, limits=limits(form, free_bytes), x_title=x_title, is_predicted=True, points=beside
        )
        drawn = [Chart(figure, "predicted_chart", f"{alt}, against {x_title}", is_wide=True)]
    else:
        limit = next(iter(limits(form, free_bytes).items()))
        figure = figures.stacked(frame, figures.CATEGORY_COLOURS, title=title, unit="bytes", limit=limit)
        drawn = [Chart(figure, "predicted_chart", alt, is_wide=True)]
    if form.kind == "train":
        ratios = prediction_frames.against_full(form.asked, known, measured, labels.FULL)
        if len(ratios):
            values = dict(zip(ratios["label"], ratios["predicted"], strict=True))
            alt = figures.alt_text("Peak memory over that of full fine-tuning", values, "ratio", "lower")
            figure = figures.ratios(ratios, title="Peak memory, adapter / full fine-tuning")
            drawn.append(Chart(figure, "ratio_chart", alt, is_wide=True))
    draw(drawn)
    if form.kind == "train" and ratios["published"].notna().any():
        st.caption(prediction_frames.PUBLISHED_NOTE)


def measure(form: Form, known: Mapping[str, Predicted], measured: Peaks, free_bytes: float) -> None:
    """A button that measures, once each, what fits on this machine and was not measured yet."""
    if not form.place.is_here or presenting.is_on():
        return
    left = []
    for one in form.asked:
        predicted = known.get(one.hash)
        fit = fits.of(one.spec, predicted, state.devices(), free_bytes)
        if fit is not None and fit.word != "will not fit" and not any(hashed == one.hash for hashed, _ in measured):
            # One step counts the same bytes as many.
            spec = one.spec.model_copy(update={"repeats": 1, "warmup": 0})
            if not requirements.problems(spec, state.devices(), None):
                left.append(spec)
    with st.container(horizontal=True, vertical_alignment="center"):
        acting.button(
            f"Measure {formatting.plural(len(left), 'run')}" if left else "Measure",
            key="measure_predicted",
            icon=":material/rocket_launch:",
            disabled=not left,
            on_click=_launch,
            args=(left, f"Predicted: {labels.model_label(form.model)}"),
            help="Puts what fits here and was not measured yet into the queue, one repeat each; the measured peaks "
            "appear as points on the chart.",
        )
        if left:
            st.markdown(f":gray[{_expected(left)}]", width="content")
        if number := st.session_state.pop("predicted_launched", None):
            st.page_link(
                "views/queue.py", label=f"{formatting.plural(number, 'run')} queued", icon=":material/arrow_forward:"
            )


@people.told
def _launch(specs: Sequence[Measured], name: str) -> None:
    st.session_state["predicted_launched"] = len(launching.launch(specs, name))


def _expected(specs: Sequence[Measured]) -> str:
    with state.database().reading() as session:
        estimator = estimates.Estimator(runs.durations(session, limit=500))
    total_s = 0.0
    for spec in specs:
        facts, document = own_models.facts(spec.model), spec.model_dump(mode="json")
        expected = estimator.expect(
            kind=spec.kind,
            model=spec.model,
            adapter=labels.adapter_option_label(spec.kind, document["adapter"]),
            strategy=spec.strategy,
            dtype=spec.dtype,
            device=spec.device,
            spec=document,
            parameters=facts.parameters,
            groups=facts.groups or (),
        )
        if expected is None:
            return ""
        total_s += expected.seconds
    return f"about {formatting.duration(total_s)}"


def problems(form: Form, known: Mapping[str, Predicted]) -> None:
    """Why some are not predicted, each reason once, and a way to try those again whose request broke off."""
    for sentence in form.problems:
        st.error(formatting.plain(sentence), icon=":material/error:")
    reasons: dict[str, list[Asked]] = {}
    for one in form.asked:
        if one.hash in known and (error := known[one.hash].error):
            reasons.setdefault(error, []).append(one)
    for reason, ones in reasons.items():
        number = "" if len(ones) == len(form.asked) else f"{len(ones)} of {len(form.asked)}: "
        st.warning(formatting.plain(number + formatting.sentence(reason)), icon=":material/info:")
    broken = [one.spec for one in form.asked if one.hash in known and known[one.hash].is_broken_off]
    if broken:
        acting.button(
            "Predict again",
            icon=":material/replay:",
            on_click=_ask_again,
            args=(broken, form.place.card),
        )


def _ask_again(specs: Sequence[Measured], card: str | None) -> None:
    predictions.ask(specs, card, again=True)


# The containers are always there: what comes and goes in one moves no widget below it (see ``address``).
with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.title("Peak memory", anchor=False, width="content")
    presenting.button()
choices, notice, status, answer_place, chart_place = (st.container() for _ in range(5))
with choices:
    form = predict_form.draw()
specs = [one.spec for one in form.asked]
predictions.ask(specs, form.place.card, place="predict")
known = predictions.known(specs, form.place.card)
waiting = predictions.waiting(specs, form.place.card)
free_bytes = float(state.free_memory_bytes())
measured = measured_peaks(form)
with notice:
    problems(form, known)
with status:
    predictions.follow(specs, form.place.card)
    if any(one.hash not in known and one.hash not in waiting for one in form.asked):
        # Whoever may only look asks for none.
        acting.is_refused()
if all(one.hash in known and known[one.hash].error is not None for one in form.asked):
    # Why there is none is said above.
    presenting.way_back()
    st.stop()
with answer_place:
    answer(form, known, waiting, free_bytes)
with chart_place:
    charts(form, known, measured, free_bytes)
    measure(form, known, measured, free_bytes)
prediction_details.draw(form)
frame = prediction_frames.table(form.asked, known, measured, form.place, free_bytes)
st.subheader("All predictions", anchor=False)
st.dataframe(
    prediction_frames.shown(frame),
    hide_index=True,
    column_config={
        "Fits": st.column_config.MultiselectColumn(help=fits.HELP, options=list(fits.WORDS), color=list(fits.COLOURS)),
        "Not predicted, because": st.column_config.TextColumn(width="large"),
    },
    alt="Every prediction with its parts, whether it fits, and what was measured",
)
table_downloads(frame, "predictions")
presenting.way_back()
