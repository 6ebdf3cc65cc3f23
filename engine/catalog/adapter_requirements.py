"""What keeps an adapter from working on a model: its type, its options, the model's layers, what it cannot do.

Part of :mod:`engine.catalog.requirements`, which knows the rest of the spec. Reads a saved adapter's config and nothing
else. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.catalog import folders
from engine.catalog.abilities import cannot, surroundings
from engine.catalog.adapter_types import AdapterType, adapter_type, adapter_types, fits, largest_fitting
from engine.catalog.choices import adapter_label
from engine.catalog.lookup import nearest
from engine.catalog.modules import ModuleGroup
from engine.catalog.saved_weights import first_mismatch
from engine.catalog.targets import TargetError, Targets, resolve
from engine.spec import FreshAdapter, InferenceSpec, Measured, SavedAdapter, SpecError, TrainSpec

# Forms of LoRA of which PEFT takes one at a time, and the only ones that its wrapper of fused experts lacks.
_FORMS = ("use_dora", "kasa_config", "velora_config", "monteclora_config", "alora_invocation_tokens")
_NOT_ON_EXPERTS = ("lora_bias", *_FORMS)
# What PEFT's layer for embeddings has not: it refuses the options, and silently starts otherwise than these inits say.
_NOT_ON_EMBEDDINGS = tuple(name for name in _NOT_ON_EXPERTS if name != "use_dora")
_INITS_NOT_ON_EMBEDDINGS = ("pissa", "olora", "orthogonal")
# How an adapter starts that changed the base weights by data, which loading it again needs: PEFT fails or, for LoRA-GA,
# silently puts the adapter on weights that it does not belong to.
_STARTED_BY_DATA = {"corda": "CorDA", "lora_ga": "LoRA-GA", "loftq": "LoftQ"}


class Described(Protocol):
    """What is known of a model without building it."""

    @property
    def label(self) -> str:
        """What people call it."""

    @property
    def model_type(self) -> str:
        """Transformers' name of its architecture."""


def adapter_problems(
    adapter: FreshAdapter | SavedAdapter,
    options: Mapping[str, Any],
    model: Described | None,
    groups: Sequence[ModuleGroup] | None,
) -> Iterator[SpecError]:
    """What keeps an adapter from being attached; ``options`` are a saved adapter's config."""
    if isinstance(adapter, FreshAdapter):
        yield from _fresh_problems(adapter, model, groups)
    else:
        yield from _saved_problems(adapter, options, model, groups)


def ability_problems(
    spec: Measured,
    field: str,
    entry: AdapterType,
    options: Mapping[str, Any],
    groups: Sequence[ModuleGroup] | None,
) -> Iterator[SpecError]:
    """What the spec asks of its adapter that the adapter cannot do; ``field`` is what names the adapter in the spec."""
    adapter = spec.adapter
    if adapter is None or entry.unavailable_reason is not None:
        return
    known = {**options, **surroundings(spec.dtype, adapter.adapter_dtype, _adapted(adapter, options, groups))}
    asked: list[tuple[str, str, str]] = [(spec.kind, field, f"cannot be used for {spec.kind}")]
    if adapter.adapter_dtype != "float32":
        asked.append(("half_precision", "adapter.adapter_dtype", "needs float32 here"))
    if isinstance(spec, TrainSpec):
        if spec.train.gradient_checkpointing:
            asked.append(("gradient_checkpointing", "train.gradient_checkpointing", "must be off"))
        if spec.task == "sequence_classification":
            asked.append(("sequence_classification", "task", "must be causal_lm"))
    if isinstance(spec, InferenceSpec):
        if spec.inference.adapters > 1:
            asked.append(("mixed_batch", "inference.adapters", "must be 1"))
        if "merged" in spec.inference.variants:
            asked.append(("merge", "inference.variants", "must not name merged"))
    label = adapter_label({"type": entry.id, "options": options})
    for what, place, must in asked:
        reason = cannot(entry, known, what)
        if reason is not None:
            text = f"{label} {must}" if place == field else f"{must} for {label}"
            yield SpecError(place, f"{text}: {reason}")


def _adapted(
    adapter: FreshAdapter | SavedAdapter, options: Mapping[str, Any], groups: Sequence[ModuleGroup] | None
) -> Sequence[ModuleGroup] | None:
    """The groups that the adapter targets, None where that cannot be told."""
    wanted = adapter.target_modules if isinstance(adapter, FreshAdapter) else options.get("target_modules")
    if groups is None or not wanted:
        return None
    try:
        return resolve(groups, wanted if isinstance(wanted, str) else tuple(wanted)).groups
    except TargetError:
        return None


# --- fresh adapters ---------------------------------------------------------------------------------------------------


def _fresh_problems(
    adapter: FreshAdapter, model: Described | None, groups: Sequence[ModuleGroup] | None
) -> Iterator[SpecError]:
    entry = adapter_type(adapter.type)
    yield from _type_problems("adapter.type", entry, model)
    for field in entry.fields:
        value = adapter.options.get(field.name, field.default)
        if field.divides_rank and value and adapter.rank is not None and adapter.rank % value:
            yield SpecError("adapter.rank", f"{adapter.rank} must be a multiple of {field.name} ({value})")
    if entry.id == "lora":
        yield from _form_problems(adapter)
    if not entry.targets_modules or groups is None or adapter.target_modules is None:
        return
    try:
        chosen = resolve(groups, adapter.target_modules, model.label if model else "this model")
    except TargetError as error:
        yield SpecError("adapter.target_modules", str(error))
        return
    yield from _kind_problems(adapter, entry, chosen)
    yield from _size_problems(adapter, entry, chosen)


def _form_problems(adapter: FreshAdapter) -> Iterator[SpecError]:
    """Options of LoRA that PEFT does not take together."""
    options = adapter.options
    init = options.get("init_lora_weights", True)
    forms = [name for name in _FORMS if options.get(name) not in (None, False)]
    if forms and init == "mica":
        forms.append("init_lora_weights")
    if len(forms) > 1:
        yield SpecError(f"adapter.options.{forms[1]}", f"cannot be combined with {forms[0]}")
    if options.get("lora_bias") and (forms or init not in (True, False)):
        yield SpecError("adapter.options.lora_bias", f"cannot be combined with {(*forms, 'init_lora_weights')[0]}")
    if init == "orthogonal" and adapter.rank is not None and adapter.rank % 2:
        yield SpecError("adapter.rank", f"must be even for init_lora_weights 'orthogonal', not {adapter.rank}")


def _type_problems(field: str, entry: AdapterType, model: Described | None) -> Iterator[SpecError]:
    if entry.unavailable_reason:
        yield SpecError(field, f"{entry.label} cannot be measured here: it {entry.unavailable_reason}")
    elif model is not None and entry.model_types and model.model_type not in entry.model_types:
        known = ", ".join(entry.model_types)
        yield SpecError(field, f"PEFT has {entry.label} for the model types {known}, not for {model.model_type}")


def _kind_problems(adapter: FreshAdapter, entry: AdapterType, chosen: Targets) -> Iterator[SpecError]:
    misfits = [group for group in chosen.groups if not entry.adapts(group.kind)]
    if misfits:
        names = ", ".join(group.name for group in misfits)
        what = "fused experts" if misfits[0].kind == "experts" else f"{misfits[0].kind} layers"
        yield SpecError("adapter.target_modules", f"{entry.label} cannot adapt {what} ({names})")
        return
    embeddings = ", ".join(group.name for group in chosen.groups if group.kind == "Embedding")
    if embeddings and entry.id == "lora":
        yield from _embedding_problems(adapter, embeddings)
    experts = ", ".join(group.name for group in chosen.groups if group.kind == "experts")
    if not experts:
        return
    if adapter.options.get("use_dora"):
        yield SpecError(
            "adapter.options.use_dora", f"DoRA cannot adapt fused experts ({experts}); target other modules"
        )
    if adapter.dropout:
        yield SpecError("adapter.dropout", f"must be 0 where fused experts are adapted ({experts})")
    for option in _NOT_ON_EXPERTS:
        if option != "use_dora" and adapter.options.get(option) not in (None, False):
            yield SpecError(
                f"adapter.options.{option}", f"does not work on fused experts ({experts}); target other modules"
            )


def _embedding_problems(adapter: FreshAdapter, names: str) -> Iterator[SpecError]:
    for option in _NOT_ON_EMBEDDINGS:
        if adapter.options.get(option) not in (None, False):
            yield SpecError(f"adapter.options.{option}", f"does not work on embeddings ({names}); target other modules")
    init = str(adapter.options.get("init_lora_weights"))
    if init.startswith(_INITS_NOT_ON_EMBEDDINGS):
        yield SpecError(
            "adapter.options.init_lora_weights",
            f"{init!r} does not work on embeddings, which PEFT starts as plain LoRA ({names}); target other modules",
        )


def _size_problems(adapter: FreshAdapter, entry: AdapterType, chosen: Targets) -> Iterator[SpecError]:
    smallest = min(chosen.groups, key=lambda group: min(group.in_features, group.out_features))
    limit = min(smallest.in_features, smallest.out_features)
    if adapter.rank is not None and entry.rank_bounded and adapter.rank > limit:
        yield SpecError(
            "adapter.rank",
            f"{adapter.rank} is larger than the smallest matched layer "
            f"({smallest.name}, {smallest.out_features} x {smallest.in_features}); at most {limit}",
        )
    for field in entry.fields:
        value = adapter.options.get(field.name)
        if not field.fits or not isinstance(value, int):
            continue
        misfit = next((group for group in chosen.groups if not fits(field, value, group)), None)
        if misfit is not None:
            must = "exceeds the weight of" if field.fits == "elements" else "does not divide"
            best = largest_fitting(dataclasses.replace(field, fits_up_to=value), chosen.groups)
            yield SpecError(
                f"adapter.options.{field.name}",
                f"{value} {must} {misfit.name} ({misfit.out_features} x {misfit.in_features}); {best} would fit",
            )


# --- saved adapters ---------------------------------------------------------------------------------------------------


def saved_options(adapter: SavedAdapter) -> tuple[dict[str, Any], list[SpecError]]:
    """The config of a saved adapter, and what keeps it from being read (nothing, or one sentence)."""
    try:
        return _read_saved(folders.inside(adapter.path)), []
    except folders.FolderError as error:
        return {}, [SpecError("adapter.path", str(error))]
    except SpecError as error:
        return {}, [error]


def _read_saved(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise SpecError("adapter.path", f"{folder} is not a folder")
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise SpecError("adapter.path", f"the folder {folder} has no adapter_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(
            "adapter.path", f"the adapter_config.json in {folder} cannot be read ({str(error)[:120]})"
        ) from None
    if not isinstance(config, dict):
        raise SpecError("adapter.path", f"the adapter_config.json in {folder} is not a JSON object")
    wanted = config.get("target_modules")
    if not isinstance(wanted, str | None) and not (
        isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)
    ):
        raise SpecError("adapter.path", f"the adapter_config.json in {folder} has target_modules that are no names")
    return config


def _saved_problems(
    adapter: SavedAdapter,
    config: Mapping[str, Any],
    model: Described | None,
    groups: Sequence[ModuleGroup] | None,
) -> Iterator[SpecError]:
    kind = str(config.get("peft_type") or "").lower()
    entry = adapter_types().get(kind)
    if entry is None:
        guess = nearest(kind, adapter_types()) if kind else "LORA"
        yield SpecError(
            "adapter.path", f"{adapter.path} has the adapter type {kind.upper() or 'none'}; PEFT's nearest is {guess}"
        )
        return
    yield from _type_problems("adapter.path", entry, model)
    has_weights = (Path(adapter.path) / "adapter_model.safetensors").is_file()
    if not has_weights:
        yield SpecError("adapter.path", f"the folder {adapter.path} has no adapter_model.safetensors")
    if config.get("tokenizer_kwargs"):
        yield SpecError("adapter.path", f"the adapter in {adapter.path} asks for a tokenizer with settings of its own")
    started = _STARTED_BY_DATA.get(str(config.get("init_lora_weights")))
    if started is not None:
        yield SpecError(
            "adapter.path",
            f"the adapter in {adapter.path} was started by {started}, which changed the base weights by data "
            "that is not here; save it again with path_initial_model_for_weight_conversion",
        )
    if config.get("shadow_model", "mirror") != "mirror":
        yield SpecError("adapter.path", f"the adapter in {adapter.path} loads a shadow model from elsewhere")
    wanted = config.get("target_modules")
    if groups is None or not wanted or not entry.targets_modules:
        return
    try:
        # PEFT takes what matches of a saved list and ignores the rest, so one match is enough.
        names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
        alternatives = [wanted] if isinstance(wanted, str) else [(name,) for name in names]
        if not any(_matches(groups, alternative) for alternative in alternatives):
            resolve(groups, alternatives[0], model.label if model else "this model")
    except TargetError as error:
        yield SpecError("adapter.path", f"the saved adapter does not fit: {error}")
        return
    mismatch = first_mismatch(adapter.path, groups) if entry.id == "lora" and has_weights else None
    if mismatch is not None:
        yield SpecError("adapter.path", f"the adapter in {adapter.path} does not belong to this model: {mismatch}")


def _matches(groups: Sequence[ModuleGroup], wanted: str | tuple[str, ...]) -> bool:
    try:
        return bool(resolve(groups, wanted).groups)
    except TargetError:
        return False
