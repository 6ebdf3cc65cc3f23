"""Describe what a model offers to adapt, as one JSON-ready dictionary. Loads no weights and measures nothing."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from engine.adapters import list_groups, parameter_count
from engine.catalog import targets
from engine.models import build_meta, model_config, supported_attention

RANKS_SHOWN = (8, 16, 64)


def inspect_model(name: str) -> dict[str, Any]:
    """The adaptable modules of a bundled model, a local folder or a hub id, with counts, shapes and presets.

    Raises:
        SpecError: one sentence, when there is no such model or it cannot be built.
    """
    config = model_config(name)
    model = build_meta(name, config=config)
    groups = list_groups(model)
    return {
        "model": name,
        "model_type": config.model_type,
        "parameters": parameter_count(model),
        **dimensions(config),
        "tied_embeddings": any(group.tied for group in groups),
        "attention": list(supported_attention(model)),
        "groups": [
            {
                **group.to_json(),
                "added_parameters_at_rank": {str(rank): group.added_parameters(rank) for rank in RANKS_SHOWN},
            }
            for group in groups
        ],
        "presets": {
            preset: _describe(targets.resolve(groups, preset))
            for preset in targets.PRESETS
            if targets.preset_applies(groups, preset)
        },
    }


def dimensions(config: PretrainedConfig) -> dict[str, int]:
    """Layers, hidden size and positions by the names that all configs answer to; 0 where a config has none."""
    text = config.get_text_config()
    return {
        "layers": int(getattr(text, "num_hidden_layers", 0) or 0),
        "hidden_size": int(getattr(text, "hidden_size", 0) or 0),
        "max_positions": int(getattr(text, "max_position_embeddings", 0) or 0),
    }


def _describe(chosen: targets.Targets) -> dict[str, Any]:
    return {
        "names": list(chosen.names),
        "parameters": list(chosen.parameters),
        "modules": chosen.module_count,
        "added_parameters_at_rank": {str(rank): chosen.added_parameters(rank) for rank in RANKS_SHOWN},
    }
