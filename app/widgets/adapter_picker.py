"""Choosing adapters and strategies for one kind; what cannot do the kind is grey, and why is said below."""

from __future__ import annotations

import streamlit as st

from app import formatting
from app.widgets import fields, labels
from app.widgets.grid import AdapterPick
from engine import catalog
from engine.catalog import AdapterChoice, Strategy, folders, requirements

# So many adapters are chips; the others are in a list.
CHIPS = 8
BARE = "none"
BARE_LABELS = {"train": "No adapter (full fine-tuning)", "inference": "Base only"}
DEFAULT_ADAPTERS = {
    "init": ["lora", "dora"],
    "merge": ["lora"],
    "train": [BARE, "lora"],
    "inference": ["lora"],
}
DEFAULT_STRATEGIES = {"merge": ["stock", "row_blocks"]}


def pick_adapters(kind: str) -> list[AdapterPick]:
    """No adapter where the kind can do without, and the well-known types."""
    choices = {choice.id: choice for choice in catalog.adapter_choices()[:CHIPS]}
    chosen = fields.chips(
        "Adapters",
        [*([BARE] if kind in BARE_LABELS else []), *choices],
        DEFAULT_ADAPTERS[kind],
        key="launch_adapters",
        format_func=lambda name: BARE_LABELS.get(kind, "") if name == BARE else _shown(choices[name], kind),
    )
    _cannot_notes(kind, list(choices.values()))
    return [AdapterPick(labels.bare_label(kind)) if name == BARE else _pick(choices[name]) for name in chosen]


def more_adapters(kind: str) -> list[AdapterPick]:
    """The rarer types, and an adapter saved by PEFT."""
    choices = {choice.id: choice for choice in catalog.adapter_choices()[CHIPS:]}
    others = st.multiselect(
        "Other adapter types",
        list(choices),
        key="launch_other_adapters",
        format_func=lambda name: (
            f"{choices[name].label} (cannot)" if _cannot(choices[name], kind) else choices[name].label
        ),
        persist_state="session",
        placeholder=f"{len(choices)} more",
    )
    _cannot_notes(kind, list(choices.values()))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        folder = st.text_input(
            "Your own saved adapter",
            key="launch_saved",
            persist_state="session",
            placeholder="Folder with adapter_config.json",
            help="Measures PeftModel.from_pretrained instead of creating an adapter."
            if kind == "init"
            else "Takes this adapter instead of creating one.",
        ).strip()
        low = st.toggle(
            "low_cpu_mem_usage",
            key="launch_low_memory",
            persist_state="session",
            disabled=not folder,
            help="PEFT creates the adapter's weights on the meta device and then assigns the saved ones.",
        )
    picks = [_pick(choices[name]) for name in others]
    if folder:
        try:
            path = str(folders.resolved(folder))
        except folders.FolderError:
            # What is wrong with it is said of the specs that have it.
            path = folder
        picks.append(AdapterPick(labels.adapter_label({"path": path}), path=path, low_cpu_mem_usage=low))
    return picks


def pick_strategies(kind: str, picks: list[AdapterPick], has_gpu: bool) -> list[str]:
    """Strategies of a kind; those that nothing chosen can use are grey."""
    strategies = {strategy.id: strategy for strategy in catalog.strategies(kind)}
    reasons = {name: _why_unusable(strategies[name], picks, has_gpu) for name in strategies}
    chosen = fields.chips(
        "Strategies",
        list(strategies),
        DEFAULT_STRATEGIES.get(kind, ["stock"]),
        key=f"launch_strategies_{kind}",
        format_func=lambda name: f":gray[{strategies[name].label}]" if reasons[name] else strategies[name].label,
        help="\n".join(
            f"- **{strategy.label}** (`{strategy.id}`): {strategy.summary}"
            + (" *Unverified: never ran on a GPU.*" if strategy.unverified else "")
            for strategy in strategies.values()
        ),
    )
    notes = []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [strategies[name].label for name in strategies if reasons[name] == reason]
        notes.append(f"{formatting.listing(names)} {'needs' if len(names) == 1 else 'need'} {reason}.")
    if notes:
        st.caption(" ".join(notes))
    return chosen


def _why_unusable(strategy: Strategy, picks: list[AdapterPick], has_gpu: bool) -> str | None:
    """What a strategy needs and nothing chosen has; a saved adapter may be anything."""
    saved = any(pick.path is not None for pick in picks) or bool(st.session_state.get("launch_saved"))
    if "gpu" in strategy.needs and not has_gpu:
        return "a GPU, and this machine has none"
    if "compiler" in strategy.needs and not requirements.has_compiler():
        return "a C++ compiler, and this machine has none"
    if "dora" in strategy.needs and not saved and not any(pick.label == "DoRA" for pick in picks):
        return "DoRA"
    if "lora" in strategy.needs and not saved and not any(pick.type == "lora" for pick in picks):
        return "LoRA or one of its forms"
    return None


def _pick(choice: AdapterChoice) -> AdapterPick:
    return AdapterPick(choice.label, choice.type, choice.options)


def _cannot(choice: AdapterChoice, kind: str) -> str | None:
    return catalog.cannot(catalog.adapter_type(choice.type), choice.options, kind)


def _shown(choice: AdapterChoice, kind: str) -> str:
    return f":gray[{choice.label}]" if _cannot(choice, kind) else choice.label


def _cannot_notes(kind: str, choices: list[AdapterChoice]) -> None:
    """Why the grey ones are grey, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for choice in choices:
        if reason := _cannot(choice, kind):
            reasons.setdefault(reason, []).append(choice.label)
    if reasons:
        st.caption(
            " ".join(
                f"{formatting.listing(names)}: {formatting.plain(formatting.sentence(reason))}"
                for reason, names in reasons.items()
            )
        )
