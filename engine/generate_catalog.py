"""Write the generated part of the catalog: module tables of the bundled models and field tables of the PEFT types.

Run ``python -m engine.generate_catalog`` after changing a hand-written part (a model's config, ``adapter_facts.json``)
or the installed PEFT or transformers; a test compares the files with what this would write. Allocates no weights.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import transformers
from peft.config import PeftConfig, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.adapters import parameter_count
from engine.catalog.adapter_types import ADAPTERS_FILE
from engine.catalog.architectures import MODELS_FOLDER
from engine.inspection import dimensions
from engine.models import build_meta, supported_attention
from engine.module_groups import list_groups

FACTS_FILE = ADAPTERS_FILE.with_name("adapter_facts.json")
MODEL_TYPES_FILE = ADAPTERS_FILE.with_name("model_types.json")
_HAND_WRITTEN = ("id", "label", "source", "published_parameters", "config")
# Model types that an adapter type is written for, where it is not written for all.
_MODEL_TYPES: dict[str | None, list[str]] = {
    "ln_tuning": sorted(TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING),
    "adaption_prompt": sorted(TRANSFORMERS_MODEL_CONFIG),
}
_BASE_FIELDS = {field.name for field in dataclasses.fields(PeftConfig)}


def model_document(path: Path) -> dict[str, Any]:
    """A bundled model's file with its generated part made anew from its config."""
    data = json.loads(path.read_text(encoding="utf-8"))
    document = {key: data[key] for key in _HAND_WRITTEN}
    values = dict(data["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = build_meta(data["id"], config=config)
    groups = list_groups(model)
    return {
        **document,
        "parameters": parameter_count(model),
        **dimensions(config),
        "tied_embeddings": any(group.tied for group in groups),
        "attention": list(supported_attention(model)),
        "groups": [{key: value for key, value in group.to_json().items() if key != "count"} for group in groups],
    }


def adapter_documents() -> list[dict[str, Any]]:
    """All adapter types: PEFT's config classes with the hand-written facts over them; LoRA first, then by label."""
    facts = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
    documents = []
    for peft_type, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        identifier = str(peft_type.value).lower()
        documents.append(_adapter_document(identifier, config_class, facts, facts["types"][identifier]))
    return sorted(documents, key=lambda document: (document["id"] != "lora", document["label"].lower()))


def model_types_document() -> dict[str, Any]:
    """The causal-language-model types that the installed transformers can build."""
    return {
        "transformers": transformers.__version__,
        "causal_lm": sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    }


def _adapter_document(
    identifier: str, config_class: type[PeftConfig], facts: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.name not in _BASE_FIELDS}
    common = own.get("common_fields", {})
    refused = {name: why for name, why in facts["refused_fields"].items() if name in fields or name in _BASE_FIELDS}
    if identifier == "lora":
        del refused["use_dora"]
    else:
        refused["use_dora"] = facts["refused_fields"]["use_dora"]
    refused |= own.get("refused_fields", {})
    defaults = own.get("engine_defaults", {})
    hints = typing.get_type_hints(config_class)
    entries = []
    for name, field in fields.items():
        if name in refused or name in common.values():
            continue
        entry = _field_entry(field, hints[name], facts["help"])
        rules = facts["field_rules"].get(name, {}) | own.get("fields", {}).get(name, {})
        nested = rules.pop("nested", {})
        entry |= rules
        if nested:
            entry["fields"] = _nested_fields(hints[name], nested, facts["help"])
        if "fits" in entry:
            # PEFT's default may not fit a model's layers; null stands for the largest up to it that does.
            entry |= {"default": None, "nullable": True}
        if name in defaults:
            entry["default"] = defaults[name]
        entry["essential"] = name in own["essentials"]
        entries.append(entry)
    missing = [name for name in own["essentials"] if name not in {entry["name"] for entry in entries}]
    if missing:
        raise ValueError(f"{identifier} has no field {missing[0]} to be essential")
    order = {name: place for place, name in enumerate(own["essentials"])}
    entries.sort(key=lambda entry: order.get(entry["name"], len(order)))
    return {
        "id": identifier,
        "peft_type": identifier.upper(),
        "config_class": config_class.__name__,
        "label": own["label"],
        "summary": own["summary"],
        "common_fields": common,
        "targets_modules": "target_modules" in fields
        and not issubclass(config_class, PromptLearningConfig)
        and own.get("targets_modules", True),
        "kinds": own["kinds"],
        "model_types": _MODEL_TYPES.get(own.get("model_types"), []),
        "rank_bounded": own.get("rank_bounded", True),
        "unavailable_reason": own.get("unavailable_reason"),
        **_abilities(facts, own),
        "data": own.get("data"),
        "engine_defaults": defaults,
        "refused_fields": refused,
        "fields": entries,
    }


def _abilities(facts: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What the type cannot do, altogether and in some forms; what cannot be merged cannot be unmerged either."""
    merged = facts["cannot"] | own.get("cannot", {})
    every = {what: reason for what, reason in merged.items() if reason is not None}
    return {
        "cannot": _with_unmerge(every),
        "cannot_when": [{**case, "cannot": _with_unmerge(case["cannot"])} for case in own.get("cannot_when", [])],
    }


def _with_unmerge(cannot: dict[str, str]) -> dict[str, str]:
    return {**cannot, **({"unmerge": cannot["merge"]} if "merge" in cannot else {})}


def _nested_fields(hint: Any, rules: dict[str, Any], our_help: dict[str, str]) -> list[dict[str, Any]]:
    """The fields of a config that is one field of another."""
    nested = next(part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part))
    hints = typing.get_type_hints(nested)
    return [
        _field_entry(field, hints[field.name], our_help) | rules.get(field.name, {})
        for field in dataclasses.fields(nested)
    ]


def _field_entry(field: dataclasses.Field[Any], hint: Any, our_help: dict[str, str]) -> dict[str, Any]:
    default = _plain(field.default if field.default is not dataclasses.MISSING else None)
    if field.default_factory is not dataclasses.MISSING:
        default = _plain(field.default_factory())
    help_text = field.metadata.get("help") or ""
    help_text = " ".join(help_text) if isinstance(help_text, tuple) else str(help_text)
    kind, choices, nullable = _describe(hint)
    if field.name == "bias" and kind == "text":
        kind, choices = "choice", ["none", "all", *re.findall(r"\w+_only", help_text)[:1]]
    entry: dict[str, Any] = {
        "name": field.name,
        "type": kind,
        "default": default,
        # PEFT's help explains to someone who reads its code, and often at length.
        "help": our_help.get(field.name) or _first_sentence(help_text),
        "nullable": nullable,
    }
    if choices:
        entry["choices"] = choices
    if kind in ("integer", "number", "integers"):
        entry |= _bounds(field.name, kind, default)
    return entry


def _bounds(name: str, kind: str, default: Any) -> dict[str, Any]:
    """Bounds that follow from what a field is called and defaults to; exceptions are in the facts."""
    if name.endswith("dropout"):
        return {"minimum": 0, "maximum": 0.99}
    if kind == "number":
        return {}
    if "seed" in name or name.endswith("_key"):
        return {"minimum": 0, "maximum": 2**31 - 1}
    return {"minimum": 0 if default == 0 or kind == "integers" else 1}


def _describe(hint: Any) -> tuple[str, list[Any], bool]:
    """The field type, its choices, and whether null is allowed, from a type annotation."""
    parts = list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    nullable = type(None) in parts
    parts = [part for part in parts if part is not type(None)]
    literals = [value for part in parts if typing.get_origin(part) is typing.Literal for value in typing.get_args(part)]
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
    nested = [part for part in parts if dataclasses.is_dataclass(part)]
    if literals or enums:
        values = [value for value in literals if "[" not in str(value)]
        values += [member.value for part in enums for member in part]
        return "choice", [True, False, *values] if bool in parts else values, nullable
    if nested:
        return "mapping", [], nullable
    origins = {typing.get_origin(part) or part for part in parts}
    arguments = {argument for part in parts for argument in typing.get_args(part)}
    if dict in origins and list not in origins:
        return "mapping", [], nullable
    if list in origins:
        return ("integers" if int in arguments else "texts"), [], nullable
    if float in origins:
        return "number", [], nullable
    if bool in origins:
        return "boolean", [], nullable
    return ("integer" if int in origins else "text"), [], nullable


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _first_sentence(text: str) -> str:
    text = re.sub(r"<[^>]+>|\s+", lambda found: " " if found.group().isspace() else "", text).strip()
    text = re.sub(r"\[([^\]]+)\]\(https?:[^)]*\)", r"\1", text)
    # A sentence ends at a full stop before a capital letter, but not after "e.g." and the like.
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<!etc)\.(?=\s+[A-Z`'\"]|[A-Z][a-z]+ )", text)
    return (text[: end.start()] if end else text).rstrip(". ")[:300]


def _write(path: Path, document: Any) -> None:
    path.write_text(to_text(document), encoding="utf-8")


def to_text(document: Any) -> str:
    """A catalog file's text: indented JSON with short lists of numbers on one line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return (
        re.sub(r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"
    )


def main() -> None:
    """Write all generated files."""
    for path in sorted(MODELS_FOLDER.glob("*.json")):
        _write(path, model_document(path))
    _write(ADAPTERS_FILE, adapter_documents())
    _write(MODEL_TYPES_FILE, model_types_document())


if __name__ == "__main__":
    main()
