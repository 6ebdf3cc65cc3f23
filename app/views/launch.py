"""Launch: choose what to measure, see what that comes to, and put it in the queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import streamlit as st

from app import formatting, state
from app.widgets import adapter_form, fields, first_sweep, grid, labels, launching, own_models, target_picker
from app.widgets.estimates import ESTIMATE_NOTE, Estimator
from db import runs
from engine import catalog
from engine.catalog import requirements
from engine.spec import InitSpec, SpecError, canonical_json, parse_spec

# So many adapters are chips; the others are in a list.
CHIPS = 8
DTYPES = ["float32", "bfloat16", "float16"]
ATTENTIONS = ["sdpa", "eager", "flash_attention_2"]


@st.cache_data(ttl=30, max_entries=2000, show_spinner=False)
def problems(spec_json: str, device_ids: tuple[str, ...], groups_known: bool) -> list[tuple[str, str]]:
    """What keeps a spec from running here; kept for a while, as it looks at files and perhaps the network."""
    spec = parse_spec(spec_json)
    assert isinstance(spec, InitSpec)
    devices = [device for device in state.devices() if device.id in device_ids]
    groups = own_models.facts(spec.model).groups if groups_known else None
    return [(error.field, error.sentence) for error in requirements.problems(spec, devices, groups)]


def spec_problems(spec: InitSpec) -> list[SpecError]:
    """What keeps a spec from running here."""
    device_ids = tuple(device.id for device in state.devices())
    groups_known = own_models.facts(spec.model).groups is not None
    return [SpecError(field, sentence) for field, sentence in problems(canonical_json(spec), device_ids, groups_known)]


def model_option(model: str) -> str:
    """A model in the list: label and size, or what was typed."""
    if not own_models.is_bundled(model):
        return model
    entry = catalog.model(model)
    return f"{entry.label} ({formatting.count(entry.parameters)} parameters)" if entry.parameters < 1e9 else entry.label


def pick_models() -> list[str]:
    """Bundled models, and any folder or hub id that is typed in."""
    bundled = list(catalog.models())
    st.session_state.setdefault("launch_models", [first_sweep.chosen_model()])
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
    return [str(Path(model).expanduser()) if model.startswith("~") else model.strip() for model in chosen]


def pick_adapters() -> list[grid.AdapterPick]:
    """Adapters to create, and one saved in a folder."""
    choices = {choice.id: choice for choice in catalog.adapter_choices()}
    ids = list(choices)
    chosen = fields.chips(
        "Adapters",
        ids[:CHIPS],
        ["lora", "dora"],
        key="launch_adapters",
        format_func=lambda name: choices[name].label,
    )
    return [grid.AdapterPick(choices[name].label, choices[name].type, choices[name].options) for name in chosen]


def more_adapters() -> list[grid.AdapterPick]:
    """The rarer types, and an adapter saved by PEFT."""
    choices = {choice.id: choice for choice in catalog.adapter_choices()[CHIPS:]}
    others = st.multiselect(
        "Other adapter types",
        list(choices),
        key="launch_other_adapters",
        format_func=lambda name: choices[name].label,
        persist_state="session",
        placeholder=f"{len(choices)} more",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        folder = st.text_input(
            "Your own saved adapter",
            key="launch_saved",
            persist_state="session",
            placeholder="Folder with adapter_config.json",
            help="Measures PeftModel.from_pretrained instead of creating an adapter.",
        ).strip()
        low = st.toggle(
            "low_cpu_mem_usage",
            key="launch_low_memory",
            persist_state="session",
            disabled=not folder,
            help="PEFT creates the adapter's weights on the meta device and then assigns the saved ones.",
        )
    picks = [grid.AdapterPick(choices[name].label, choices[name].type, choices[name].options) for name in others]
    if folder:
        path = str(Path(folder).expanduser().resolve())
        picks.append(grid.AdapterPick(labels.adapter_label({"path": path}), path=path, low_cpu_mem_usage=low))
    return picks


def pick_strategies(has_dora: bool, has_gpu: bool) -> list[str]:
    """Strategies; those that nothing chosen can use are grey, and why is said below."""
    strategies = {strategy.id: strategy for strategy in catalog.strategies("init")}

    def unusable(name: str) -> bool:
        needs = strategies[name].needs
        return ("gpu" in needs and not has_gpu) or ("dora" in needs and not has_dora)

    def shown(name: str) -> str:
        label = strategies[name].label
        return f":gray[{label}]" if unusable(name) else label

    chosen = fields.chips(
        "Strategies",
        list(strategies),
        ["stock"],
        key="launch_strategies",
        format_func=shown,
        help="\n".join(
            f"- **{strategy.label}** (`{strategy.id}`): {strategy.summary}"
            + (" *Unverified: never ran on a GPU.*" if strategy.unverified else "")
            for strategy in strategies.values()
        ),
    )
    notes = []
    gpu = [strategies[name].label for name in strategies if "gpu" in strategies[name].needs]
    dora = [strategies[name].label for name in strategies if strategies[name].needs & {"dora"} and name not in gpu]
    if not has_gpu and gpu:
        notes.append(f"{formatting.listing(gpu)} need a GPU, and this machine has none.")
    if not has_dora and dora:
        notes.append("The norm strategies and Deferred need DoRA.")
    if notes:
        st.caption(" ".join(notes))
    return chosen


def more_fields(picks: list[grid.AdapterPick]) -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, Any]]:
    """Everything with good defaults: spec fields, adapter fields, options by adapter type."""
    spec_fields: dict[str, list[Any]] = {}
    adapter_fields: dict[str, list[Any]] = {}
    errors: list[str] = []

    def number(target: dict[str, list[Any]], name: str, label: str, default: str, whole: bool, help: str) -> None:
        try:
            values = fields.numbers(
                label, default, whole=whole, key=f"launch_{name}", help=help, placeholder="All cores"
            )
        except fields.FieldError as error:
            errors.append(str(error))
            return
        if values:
            target[name] = list(values)

    st.caption("Several values, separated by commas, make a sweep.")
    with st.grid(4, min_column_width=190):
        number(adapter_fields, "rank", "Rank", "16", True, "Width of the adapter's matrices.")
        number(adapter_fields, "alpha", "Alpha", "32", False, "Scale of the adapter, divided by the rank.")
        number(
            adapter_fields, "dropout", "Dropout", "0", False, "Share of adapter inputs that are dropped in training."
        )
        number(spec_fields, "repeats", "Repeats", "5", True, "Measured attaches in each run.")
        number(spec_fields, "warmup", "Warm-up", "1", True, "Attaches before the measured ones.")
        number(spec_fields, "threads", "Threads", "", True, "CPU threads of the worker; empty for all cores.")
        number(spec_fields, "seed", "Seed", "0", True, "Of the synthetic weights.")
        number(spec_fields, "timeout_s", "Timeout, seconds", "3600", False, "A run that takes longer is ended.")
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
        kind = catalog.adapter_type(type_id)
        if kind.fields:
            st.markdown(f"**{kind.label} options**")
            try:
                taken = {name for pick in picks if pick.type == type_id for name in pick.options}
                options[type_id] = adapter_form.option_fields(kind, taken)
            except fields.FieldError as error:
                errors.append(str(error))
    for message in errors:
        st.error(formatting.plain(message), icon=":material/error:")
    if errors:
        st.session_state["launch_field_errors"] = errors
    else:
        st.session_state.pop("launch_field_errors", None)
    return spec_fields, adapter_fields, options


def details(spec: InitSpec) -> None:
    """The first run as JSON, as a command and as code."""
    document = json.dumps(spec.model_dump(mode="json"), indent=1)
    as_json, as_command, as_code = st.tabs(["Spec JSON", "Command", "Python"])
    with as_json:
        st.code(document, language="json", height=320)
    with as_command:
        st.code(f"python -m engine measure - <<'JSON'\n{document}\nJSON", language="bash", height=320)
    with as_code:
        st.code(catalog.snippet(spec, own_models.facts(spec.model).groups), language="python")


def launch_all(specs: list[InitSpec], sweep_name: str | None) -> None:
    """Queue the runs; callback of the button."""
    st.session_state["launched"] = launching.launch(specs, sweep_name)


st.title("Launch")
st.caption("Measures how long attaching an adapter to a model takes, and how much memory it needs.")

devices = list(state.devices())
left, right = st.columns(2, gap="large")
with left.container():
    models = pick_models()
with right.container():
    picks = pick_adapters()

for model in models:
    if not own_models.is_bundled(model) and own_models.facts(model).groups is None:
        own_models.inspection_status(model)

with left.container():
    device_ids = fields.chips(
        "Devices",
        [device.id for device in devices],
        [devices[0].id],
        key="launch_devices",
        format_func=lambda name: next(
            f"{name} :gray[{formatting.plain(device.name)}, {formatting.size(device.memory_bytes)}]"
            for device in devices
            if device.id == name
        ),
    )
    dtypes = fields.chips("Model dtype", DTYPES, ["bfloat16"], key="launch_dtypes")
with right.container():
    has_dora = any(pick.label == "DoRA" for pick in picks) or bool(st.session_state.get("launch_saved"))
    strategies = pick_strategies(has_dora, any(device.kind == "cuda" for device in devices))

rank_text = str(st.session_state.get("launch_rank", "16"))
try:
    shown_rank = int((fields.parse_numbers("Rank", rank_text, whole=True) or [16])[0])
except fields.FieldError:
    shown_rank = 16
targets = target_picker.pick(own_models.known_groups(models), shown_rank)

with st.expander("More: other adapters, rank, repeats, threads, options", icon=":material/tune:"):
    picks = picks + more_adapters()
    spec_fields, adapter_fields, options = more_fields(picks)

missing = [
    name
    for name, values in (
        ("a model", models),
        ("an adapter", picks),
        ("a strategy", strategies),
        ("target modules", targets or all(pick.path for pick in picks)),
        ("a device", device_ids),
        ("a dtype", dtypes),
    )
    if not values
]
if missing:
    st.info(f"Choose {formatting.listing(missing)} to go on.", icon=":material/info:")
    st.stop()
if st.session_state.get("launch_field_errors"):
    st.stop()

with state.database().reading() as session:
    measured = runs.measured_hashes(session)
    estimator = Estimator(runs.durations(session))
found = grid.candidates(
    grid.Choices(models, picks, strategies, targets, dtypes, device_ids, spec_fields, adapter_fields, options),
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
        disabled=not specs,
        on_click=launch_all,
        args=(specs, f"{formatting.listing(dict.fromkeys(p.label for p in picks))}" if len(specs) > 1 else None),
    )
if launched := st.session_state.pop("launched", None):
    with st.container(horizontal=True, vertical_alignment="center"):
        st.success(f"{formatting.plural(len(launched), 'run')} queued.", icon=":material/check_circle:", width=260)
        st.page_link("views/queue.py", label="Watch in the queue", icon=":material/arrow_forward:")

if not too_many:
    preview = grid.preview_frame(found)
    st.dataframe(
        preview,
        hide_index=True,
        alt="The runs that these choices make, and what keeps some from running",
        column_config={
            "Measured": st.column_config.TextColumn(help="How often this very spec was measured here."),
            "Problem": st.column_config.TextColumn(width="large"),
        },
    )
if specs:
    details(specs[0])
