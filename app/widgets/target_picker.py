"""The target-module picker: presets and one chip per module group, with counts and added parameters.

What a preset or a chip means is ``engine.catalog.targets.resolve``'s to say; the engine uses the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app import formatting
from app.widgets import fields
from engine.catalog import ModuleGroup
from engine.catalog.targets import PRESETS, TargetError, resolve

CUSTOM = "custom"
PRESET_KEY, CHIPS_KEY, PATTERN_KEY = "launch_presets", "launch_groups", "launch_pattern"
_SHOWN = {
    "all-linear": "All linear",
    "attention": "Attention",
    "qk": "Q, K",
    "qv": "Q, V",
    "mlp": "MLP",
    "lm_head": "Output head",
}


def pick(groups_by_model: Mapping[str, Sequence[ModuleGroup]], rank: int) -> list[str | tuple[str, ...]]:
    """Draw the picker and return the target modules chosen: presets, and one list of group names for custom chips.

    Args:
        groups_by_model: the chosen models' groups, those that are known.
        rank: for the added parameters shown on the chips.
    """
    presets = fields.chips(
        "Target modules",
        [*PRESETS, CUSTOM],
        ["all-linear"],
        key=PRESET_KEY,
        format_func=preset_label,
        on_change=_show_preset_on_chips,
        args=(list(next(iter(groups_by_model.values()), ())),),
        help="Several make a sweep. Clicking a module below makes a choice of your own.",
    )
    groups = _by_name(groups_by_model)
    if not groups:
        st.caption("The modules appear here once the model is inspected; presets work without.")
        return [name for name in presets if name != CUSTOM]
    if CHIPS_KEY not in st.session_state:
        _show_preset_on_chips(list(next(iter(groups_by_model.values()))))
    chosen = fields.chips(
        "Modules",
        list(groups),
        [],
        key=CHIPS_KEY,
        format_func=lambda name: _chip(name, groups[name], rank),
        on_change=_custom,
        label_visibility="collapsed",
    )
    st.caption(_summary(presets, chosen, groups_by_model, rank))
    targets: list[str | tuple[str, ...]] = [name for name in presets if name != CUSTOM]
    if CUSTOM in presets and chosen:
        targets.append(tuple(chosen))
    return targets


def preset_label(name: str) -> str:
    """A preset as the pickers show it; anything else is a choice of one's own."""
    return _SHOWN.get(name, "Custom")


def _by_name(groups_by_model: Mapping[str, Sequence[ModuleGroup]]) -> dict[str, list[ModuleGroup]]:
    """The first model's groups by name, then names that only other models have."""
    by_name: dict[str, list[ModuleGroup]] = {}
    for groups in groups_by_model.values():
        mine: dict[str, list[ModuleGroup]] = {}
        for group in groups:
            if group.kind != "Embedding":
                mine.setdefault(group.name, []).append(group)
        for name, found in mine.items():
            by_name.setdefault(name, found)
    return by_name


def _chip(name: str, groups: Sequence[ModuleGroup], rank: int) -> str:
    modules = sum(group.count for group in groups)
    added = sum(group.added_parameters(rank) for group in groups)
    return f"{formatting.plain(name)} :gray[×{modules} · +{formatting.count(added)}]"


def _show_preset_on_chips(groups: list[ModuleGroup]) -> None:
    """Let the chips show what the one chosen preset takes; several presets or a custom choice leave them alone."""
    presets = st.session_state.get(PRESET_KEY) or []
    if CUSTOM in presets and len(presets) > 1 and st.session_state.get("launch_was_custom"):
        # A preset clicked after a choice of one's own replaces it.
        presets = [name for name in presets if name != CUSTOM]
        st.session_state[PRESET_KEY] = presets
    st.session_state["launch_was_custom"] = CUSTOM in presets
    if len(presets) != 1 or presets[0] == CUSTOM:
        return
    try:
        matched = resolve(groups, presets[0])
    except TargetError:
        st.session_state[CHIPS_KEY] = []
        return
    st.session_state[CHIPS_KEY] = list(dict.fromkeys(group.name for group in matched.groups))


def _custom() -> None:
    st.session_state[PRESET_KEY] = [CUSTOM]
    st.session_state["launch_was_custom"] = True


def _summary(
    presets: Sequence[str], chosen: Sequence[str], groups_by_model: Mapping[str, Sequence[ModuleGroup]], rank: int
) -> str:
    """What the first choice comes to on the first model, in one line."""
    model, groups = next(iter(groups_by_model.items()))
    parts = []
    for name in presets:
        try:
            matched = resolve(groups, tuple(chosen) if name == CUSTOM else name, model)
        except TargetError as error:
            parts.append(str(error))
            continue
        added = formatting.count(matched.added_parameters(rank))
        label = preset_label(name)
        parts.append(
            f"{label}: {formatting.plural(matched.module_count, 'module')}, LoRA adds {added} parameters at rank {rank}"
        )
    return " · ".join(parts) if parts else "Choose at least one preset or module."
