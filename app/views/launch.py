"""Launch: choose what to measure, see what that comes to, and put it in the queue."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from app import formatting, people, places, state
from app.kinds import KINDS
from app.widgets import (
    acting,
    adapter_form,
    adapter_picker,
    fields,
    first_sweep,
    fits,
    grid,
    labels,
    launching,
    own_models,
    predictions,
    section_form,
    target_picker,
)
from app.widgets.estimates import ESTIMATE_NOTE, Estimator
from db import runs
from engine import catalog
from engine.catalog import folders, requirements
from engine.result import Device
from engine.spec import Measured, SpecError, canonical_json, parse_spec

DTYPES = ["float32", "bfloat16", "float16"]
ATTENTIONS = ["sdpa", "eager", "flash_attention_2"]
# name: label, default, whether whole numbers only, help
ADAPTER_NUMBERS = {
    "alpha": ("Alpha", "32", False, "Scale of the adapter, divided by the rank."),
    "dropout": ("Dropout", "0", False, "Share of adapter inputs that are dropped in training."),
}
RANK = ("Rank", "16", True, "Width of the adapter's matrices; several values make a sweep.")
SPEC_NUMBERS = {
    "repeats": ("Repeats", "5", True, "Measured repeats in each run."),
    "warmup": ("Warm-up", "1", True, "Rounds before the measured ones."),
    "threads": ("Threads", "", True, "CPU threads of the worker; empty for all cores."),
    "seed": ("Seed", "0", True, "Of the synthetic weights."),
    "timeout_s": ("Timeout, seconds", "3600", False, "A run that takes longer is ended."),
}


@st.cache_data(ttl=30, max_entries=2000, show_spinner=False)
def problems(spec_json: str, devices: tuple[Device, ...], groups_known: bool) -> list[tuple[str, str]]:
    """What keeps a spec from running here; kept for a while, as it looks at files and perhaps the network."""
    spec = parse_spec(spec_json)
    assert isinstance(spec, Measured)
    groups = own_models.facts(spec.model).groups if groups_known else None
    return [(error.field, error.sentence) for error in requirements.problems(spec, devices, groups)]


def spec_problems(spec: Measured) -> list[SpecError]:
    """What keeps a spec from running here, or on the node that it names."""
    nodes = state.nodes()
    if misplaced := places.problem(spec, nodes):
        return [misplaced]
    devices = places.devices(places.nodes_for(spec, nodes)) or tuple(state.devices())
    groups_known = own_models.facts(spec.model).groups is not None
    return [SpecError(field, sentence) for field, sentence in problems(canonical_json(spec), devices, groups_known)]


def model_option(model: str) -> str:
    """A model in the list: label and size, or what was typed."""
    if not own_models.is_bundled(model):
        return model
    entry = catalog.model(model)
    return f"{entry.label} ({formatting.count(entry.parameters)} parameters)" if entry.parameters < 1e9 else entry.label


def default_models(kind: str) -> list[str]:
    """A model that this machine measures within minutes: steps and tokens take longer than attaching."""
    if kind in ("train", "inference") and state.cores() < 8:
        return ["minimind-26m"]
    return [first_sweep.chosen_model()]


def pick_models(kind: str) -> list[str]:
    """Bundled models, and any folder or hub id that is typed in."""
    bundled = list(catalog.models())
    st.session_state.setdefault("launch_models", default_models(kind))
    typed = [model for model in st.session_state["launch_models"] if model not in bundled]
    chosen = st.multiselect(
        "Models",
        bundled + typed,
        key="launch_models",
        format_func=model_option,
        accept_new_options=True,
        persist_state="session",
        placeholder="Choose, or type a folder or hub id",
        help="To measure a model of your own, type the path of its folder or its hub id and press Enter.",
    )
    return [folders.expanded(model.strip()) for model in chosen]


def numbers(target: dict[str, list[Any]], wanted: dict[str, tuple[str, str, bool, str]], errors: list[str]) -> None:
    """Number fields by name, each with label, default, whether whole, and help; what is empty is left out."""
    for name, (label, default, whole, help_text) in wanted.items():
        try:
            values = fields.numbers(
                label, default, whole=whole, key=f"launch_{name}", help=help_text, placeholder="All cores"
            )
        except fields.FieldError as error:
            errors.append(str(error))
            continue
        if values:
            target[name] = list(values)


def more_fields(
    kind: str, picks: list[grid.AdapterPick], errors: list[str]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, Any], dict[str, list[Any]]]:
    """Everything with good defaults: spec fields, adapter fields, options by adapter type, the rest of the section."""
    spec_fields: dict[str, list[Any]] = {}
    adapter_fields: dict[str, list[Any]] = {}
    st.caption("Several values, separated by commas, make a sweep.")
    section: dict[str, list[Any]] = {}
    if kind in section_form.MORE:
        with st.grid(4, min_column_width=190):
            section |= section_form.values(kind, section_form.MORE[kind], errors)
            spec_fields |= section_form.values(kind, section_form.SPEC.get(kind, ()), errors)
            if kind == "inference":
                section["variants"] = section_form.variants()
    with st.grid(4, min_column_width=190):
        numbers(adapter_fields, ADAPTER_NUMBERS, errors)
        numbers(spec_fields, SPEC_NUMBERS, errors)
    with st.grid(3, min_column_width=300):
        adapter_fields["adapter_dtype"] = fields.chips(
            "Adapter dtype",
            DTYPES,
            ["float32"],
            key="launch_adapter_dtype",
            help="float32 is PEFT's default, whatever the model's dtype; the other choice is the model's own dtype.",
        ) or ["float32"]
        spec_fields["attention"] = fields.chips("Attention", ATTENTIONS, ["sdpa"], key="launch_attention") or ["sdpa"]
        spec_fields["weights"] = [
            st.segmented_control(
                "Weights",
                ["synthetic", "pretrained"],
                default="synthetic",
                required=True,
                key="launch_weights",
                persist_state="session",
                help="Synthetic weights give the same times and need no download; pretrained are safetensors.",
            )
        ]
    options: dict[str, Any] = {}
    for type_id in dict.fromkeys(pick.type for pick in picks if pick.type is not None):
        entry = catalog.adapter_type(type_id)
        if entry.fields:
            st.markdown(f"**{entry.label} options**")
            try:
                taken = {name for pick in picks if pick.type == type_id for name in pick.options}
                options[type_id] = adapter_form.option_fields(entry, taken)
            except fields.FieldError as error:
                errors.append(str(error))
    return spec_fields, adapter_fields, options, section


def device_text(device_id: str) -> str:
    """What a device is; where several nodes have one of its id, on how many."""
    owners = [node for node in state.nodes() if any(device["id"] == device_id for device in node.devices)]
    if len(owners) > 1:
        return f"on {len(owners)} nodes"
    device = next(device for device in devices if device.id == device_id)
    return f"{device.name}, {formatting.size(device.memory_bytes)}"


def pick_places() -> list[places.Place]:
    """The nodes to send runs to, where there are several."""
    offered = places.choices(state.nodes())
    if len(offered) == 1:
        return offered
    return fields.chips(
        "Nodes",
        offered,
        offered[:1],
        key="launch_places",
        format_func=lambda place: (
            f"{formatting.plain(places.label(place))} :gray[{formatting.plain(places.facts(place, state.nodes()))}]"
        ),
        help="Any node: whichever is free first and has the versions of the first node.",
    )


def is_mixing_allowed(specs: list[Measured]) -> bool:
    """Whether the sweep may go to the nodes it names: one that would mix versions only when somebody says so."""
    sentence = places.mixed(specs, state.nodes())
    if sentence is None:
        return True
    st.warning(formatting.plain(sentence), icon=":material/difference:")
    return st.checkbox("Mix these versions in one sweep", key="launch_mix", persist_state="session")


def preview(found: list[grid.Candidate]) -> None:
    """The runs in a table, each with its predicted peak as soon as that is known; what is not is asked for."""
    wanted = grid.runnable(found)
    predictions.ask(wanted, place="launch")
    is_waiting = bool(predictions.waiting(wanted))
    st.fragment(preview_now, run_every=predictions.look_every_s() if is_waiting else None)(found, is_waiting)


def preview_now(found: list[grid.Candidate], was_waiting: bool) -> None:
    """The preview with what is known by now; a page that waited and need not any more runs anew, to look no longer."""
    wanted = grid.runnable(found)
    known, waiting = predictions.known(wanted), predictions.waiting(wanted)
    if was_waiting and not waiting:
        st.rerun()
    warning, unknown = fits.sentences(wanted, known, state.room_for)
    if warning:
        st.warning(formatting.plain(warning), icon=":material/memory_alt:")
    fitting = fits.columns([one.spec if one.problem is None else None for one in found], known, waiting, state.room_for)
    frame = grid.preview_frame(found)
    place = frame.columns.get_loc("Expected")
    assert isinstance(place, int)
    for name in (fits.FITS, fits.PEAK):
        frame.insert(place, name, fitting[name])
    st.dataframe(
        frame,
        hide_index=True,
        alt="The runs that these choices make, whether each fits into memory, and what keeps some from running",
        column_config={
            "Measured": st.column_config.TextColumn(help="How often this very spec was measured here."),
            fits.PEAK: st.column_config.TextColumn(help="Of the job's tensors, before anything runs."),
            fits.FITS: st.column_config.MultiselectColumn(
                help=fits.HELP, options=list(fits.WORDS), color=list(fits.COLOURS)
            ),
            "Problem": st.column_config.TextColumn(width="large"),
        },
    )
    for sentence in unknown:
        st.caption(formatting.plain(sentence))


def details(spec: Measured) -> None:
    """The first run as JSON, as a command and as code."""
    document = json.dumps(spec.model_dump(mode="json"), indent=1)
    as_json, as_command, as_code = st.tabs(["Spec JSON", "Command", "Python"])
    with as_json:
        st.code(document, language="json", height=320)
    with as_command:
        st.code(f"python -m engine measure - <<'JSON'\n{document}\nJSON", language="bash", height=320)
    with as_code:
        st.code(catalog.snippet(spec, own_models.facts(spec.model).groups), language="python")


@people.told
def launch_all(specs: list[Measured], sweep_name: str | None) -> None:
    """Queue the runs; callback of the button."""
    st.session_state["launched"] = launching.launch(specs, sweep_name)


def pick_kind() -> str:
    """What is measured, kept in the address; the form's defaults follow it until someone changes them."""
    asked = st.query_params.get("kind")
    before = st.session_state.get("launch_kind_shown")
    if asked in KINDS and asked != before:
        st.session_state["launch_kind"] = asked
    kind = st.segmented_control(
        "Measure",
        list(KINDS),
        key="launch_kind",
        required=True,
        format_func=labels.kind_label,
        label_visibility="collapsed",
        persist_state="session",
    )
    kind = str(kind or "init")
    st.query_params["kind"] = kind
    st.caption(KINDS[kind].QUESTION)
    for key, default in (("launch_models", default_models), ("launch_adapters", adapter_picker.DEFAULT_ADAPTERS.get)):
        if before not in (None, kind) and st.session_state.get(key) == default(before):
            st.session_state[key] = default(kind)
    st.session_state["launch_kind_shown"] = kind
    return kind


st.title("Launch")
if acting.is_refused():
    st.stop()
st.session_state.setdefault("launch_kind", "init")
kind = pick_kind()

devices = list(state.devices())
errors: list[str] = []
left, right = st.columns(2, gap="large")
with left.container():
    models = pick_models(kind)
with right.container():
    picks = adapter_picker.pick_adapters(kind)

for model in models:
    if not own_models.is_bundled(model) and own_models.facts(model).groups is None:
        own_models.inspection_status(model)

with left.container():
    device_ids = fields.chips(
        "Devices",
        [device.id for device in devices],
        [devices[0].id],
        key="launch_devices",
        format_func=lambda name: f"{name} :gray[{formatting.plain(device_text(name))}]",
    )
    chosen_places = pick_places()
    dtypes = fields.chips("Model dtype", DTYPES, ["bfloat16"], key="launch_dtypes")
with right.container():
    strategies = adapter_picker.pick_strategies(kind, picks, any(device.kind == "cuda" for device in devices))
    adapter_fields: dict[str, list[Any]] = {}
    has_adapter = any(not pick.is_bare for pick in picks) or bool(st.session_state.get("launch_other_adapters"))
    if has_adapter:
        numbers(adapter_fields, {"rank": RANK}, errors)

section: dict[str, list[Any]] = {}
if kind in section_form.SHOWN:
    with st.grid(len(section_form.SHOWN[kind]), min_column_width=190):
        section |= section_form.values(kind, section_form.SHOWN[kind], errors)

targets: list[str | tuple[str, ...]] = []
if has_adapter or not picks:
    rank_text = str(st.session_state.get("launch_rank", "16"))
    try:
        shown_rank = int((fields.parse_numbers("Rank", rank_text, whole=True) or [16])[0])
    except fields.FieldError:
        shown_rank = 16
    targets = target_picker.pick(own_models.known_groups(models), shown_rank)

with st.expander("More: other adapters, alpha, repeats, threads, options", icon=":material/tune:"):
    picks = picks + adapter_picker.more_adapters(kind)
    spec_fields, more_adapter_fields, options, more_section = more_fields(kind, picks, errors)
    section |= more_section
    adapter_fields |= more_adapter_fields
for message in errors:
    st.error(formatting.plain(message), icon=":material/error:")

missing = [
    name
    for name, values in (
        ("a model", models),
        ("an adapter", picks),
        ("a strategy", strategies),
        ("target modules", targets or all(pick.path or pick.is_bare for pick in picks)),
        ("a device", device_ids),
        ("a node", chosen_places),
        ("a dtype", dtypes),
    )
    if not values
]
if missing:
    st.info(f"Choose {formatting.listing(missing)} to go on.", icon=":material/info:")
    st.stop()
if errors:
    st.stop()

with state.database().reading() as session:
    measured = runs.measured_hashes(session)
    estimator = Estimator(runs.durations(session))
found = grid.candidates(
    grid.Choices(
        kind,
        models,
        picks,
        strategies,
        targets,
        dtypes,
        device_ids,
        spec_fields,
        adapter_fields,
        options,
        section,
        chosen_places,
    ),
    problems=spec_problems,
    measured=measured,
    estimator=estimator,
    facts=lambda model: (own_models.facts(model).parameters, own_models.facts(model).groups or ()),
)
too_many = len(found) > grid.MAX_COMBINATIONS
specs = [] if too_many else grid.runnable(found)
total_s, is_estimate = grid.expected_total_s(found)
blocked = sum(candidate.problem is not None for candidate in found)
again = sum(candidate.measured > 0 and candidate.problem is None for candidate in found)

may_launch = is_mixing_allowed(specs)
sweep_name = f"{labels.kind_label(kind)}: {formatting.listing(dict.fromkeys(pick.label for pick in picks))}"
with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    parts = [f"**{formatting.plural(len(specs), 'run')}**"]
    if specs and total_s is not None:
        parts.append(
            ("under 1 s" if total_s < 1 else f"about {formatting.duration(total_s)}")
            + (f" ({ESTIMATE_NOTE})" if is_estimate else "")
        )
    if blocked and not too_many:
        parts.append(f"{formatting.plural(blocked, 'combination')} cannot run")
    if again:
        parts.append(f"{again} measured before and measured again")
    if too_many:
        parts = [f"More than {grid.MAX_COMBINATIONS} combinations; choose fewer values."]
    st.markdown(" · ".join(parts), width="content")
    st.button(
        f"Launch {formatting.plural(len(specs), 'run')}",
        key="launch_button",
        type="primary",
        icon=":material/rocket_launch:",
        disabled=not (specs and may_launch),
        on_click=launch_all,
        args=(specs, sweep_name if len(specs) > 1 else None),
    )
if launched := st.session_state.pop("launched", None):
    with st.container(horizontal=True, vertical_alignment="center"):
        st.success(f"{formatting.plural(len(launched), 'run')} queued.", icon=":material/check_circle:", width=260)
        st.page_link("views/queue.py", label="Watch in the queue", icon=":material/arrow_forward:")

if not too_many:
    preview(found)
if specs:
    details(specs[0])
