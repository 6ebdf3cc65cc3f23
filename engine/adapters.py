"""Build a PEFT config from a spec and attach it, and count what that added.

Attaching is plain PEFT; nothing here is faster or slower than PEFT itself (that is ``engine.strategies``).
Builds no model. What a model offers is listed by ``engine.module_groups``, and ``engine.snapshots`` puts it back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import PreTrainedModel

from engine import catalog
from engine.catalog import folders, targets
from engine.catalog.adapter_types import largest_fitting
from engine.catalog.modules import ModuleGroup
from engine.catalog.options import cpt_example
from engine.module_groups import list_groups as list_groups
from engine.peft_versions import needs_newer
from engine.snapshots import Snapshot as Snapshot
from engine.snapshots import snapshot as snapshot
from engine.spec import FreshAdapter, SavedAdapter, SpecError, Task

OnModule = Callable[[str], None]
_TASK_TYPES: Mapping[Task, TaskType] = {
    "causal_lm": TaskType.CAUSAL_LM,
    "sequence_classification": TaskType.SEQ_CLS,
}


# --- from a spec to PEFT's config -------------------------------------------------------------------------------------


def peft_config(
    adapter: FreshAdapter,
    groups: Sequence[ModuleGroup],
    runtime: Mapping[str, Any] | None = None,
    task: Task = "causal_lm",
) -> PeftConfig:
    """PEFT's config object for a fresh adapter on a model with these groups.

    ``runtime`` holds further fields of the config class that a strategy sets, such as ``runtime_config``. For the task
    ``sequence_classification`` PEFT also trains the classification head, where the type has ``modules_to_save``.

    Raises:
        SpecError: one sentence, when the targets cannot be resolved or PEFT refuses the fields.
    """
    entry = catalog.adapter_type(adapter.type)
    if entry.peft_type not in PeftType.__members__:
        raise SpecError("adapter.type", needs_newer(entry.label))
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(entry.peft_type)]
    values: dict[str, Any] = {"task_type": _TASK_TYPES[task], **entry.engine_defaults}
    common = {"rank": adapter.rank, "alpha": _whole(adapter.alpha), "dropout": adapter.dropout}
    values |= {peft_name: common[name] for name, peft_name in entry.common_fields.items()}
    if entry.targets_modules:
        chosen = resolve_targets(adapter, groups)
        values |= _target_fields(entry, groups, chosen)
        values |= {
            field.name: largest_fitting(field, chosen.groups)
            for field in entry.fields
            if field.fits and adapter.options.get(field.name) is None
        }
    hints = typing.get_type_hints(config_class)
    for name in adapter.options:
        if name not in hints:
            raise SpecError(f"adapter.options.{name}", needs_newer(f"this field of {entry.label}"))
    values |= {name: _as_peft_wants(value, hints[name]) for name, value in adapter.options.items()}
    if entry.id == "cpt":
        values |= cpt_example(len(values["cpt_token_ids"]))
    values |= runtime or {}
    try:
        return config_class(**values)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise SpecError("adapter.options", f"{entry.label} refuses these fields: {_one_line(error)}") from None


def _target_fields(
    entry: catalog.AdapterType, groups: Sequence[ModuleGroup], chosen: targets.Targets
) -> dict[str, Any]:
    values: dict[str, Any] = {"target_modules": list(chosen.names)}
    if chosen.parameters:
        if not entry.adapts("experts"):
            raise SpecError(
                "adapter.target_modules", f"{entry.label} cannot adapt fused experts ({chosen.parameters[0]})"
            )
        values["target_parameters"] = list(chosen.parameters)
    if entry.id == "ia3":
        # IA3 scales the input of feed-forward layers and the output of all others, and has to be told which is which.
        feed_forward = [group for group in chosen.groups if group.role == "mlp"]
        values["feedforward_modules"] = list(targets.names_of(groups, feed_forward).names)
    return values


def resolve_targets(
    adapter: FreshAdapter, groups: Sequence[ModuleGroup], model_label: str = "this model"
) -> targets.Targets:
    """The spec's target modules on a model with these groups, less what the adapter type cannot adapt under a preset.

    Raises:
        SpecError: one sentence on ``adapter.target_modules``.
    """
    try:
        return targets.resolve(groups, adapter.target_modules or (), model_label)
    except targets.TargetError as error:
        raise SpecError("adapter.target_modules", str(error)) from None


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and float(value).is_integer() else value


def _as_peft_wants(value: Any, hint: Any) -> Any:
    """A JSON value as the config field's type: mappings become the nested config class where the field has one."""
    if isinstance(value, Mapping):
        for candidate in (hint, *typing.get_args(hint)):
            if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
                return candidate(**value)
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


# --- attaching --------------------------------------------------------------------------------------------------------


def attach(
    model: PreTrainedModel,
    adapter: FreshAdapter | SavedAdapter,
    *,
    config: PeftConfig | None = None,
    on_module: OnModule | None = None,
) -> PeftModel:
    """Attach a fresh or a saved adapter with PEFT's own functions; the model is changed in place and wrapped.

    ``config`` replaces the one that :func:`peft_config` or the saved folder would give. ``on_module`` is called with
    the full name of each adapted module (for fused experts: of the parameter) as soon as PEFT has created it.

    Raises:
        SpecError: one sentence, when PEFT cannot attach this adapter to this model.
    """
    if config is None:
        groups = list_groups(model)
        config = peft_config(adapter, groups) if isinstance(adapter, FreshAdapter) else saved_config(adapter, groups)
    upcast = adapter.adapter_dtype == "float32"
    try:
        with _reporting(config, on_module), warnings.catch_warnings():
            # PEFT warns of what the spec asked for: Conv1D's layout, tied targets, and names that are not hub ids.
            warnings.simplefilter("ignore", UserWarning)
            if isinstance(adapter, SavedAdapter):
                return PeftModel.from_pretrained(
                    model,
                    adapter.path,
                    config=config,
                    autocast_adapter_dtype=upcast,
                    low_cpu_mem_usage=adapter.low_cpu_mem_usage,
                    torch_device=str(model.device),
                    local_files_only=True,
                )
            with _names_taken_as_they_are():
                return typing.cast(PeftModel, get_peft_model(model, config, autocast_adapter_dtype=upcast))
    except (ValueError, TypeError, NotImplementedError, AssertionError, KeyError, AttributeError) as error:
        label = catalog.adapter_type(str(PeftType(config.peft_type).value).lower()).label
        raise SpecError("adapter", f"PEFT cannot attach {label} to this model: {_one_line(error)}") from error


def saved_config(adapter: SavedAdapter, groups: Sequence[ModuleGroup]) -> PeftConfig:
    """The config of a saved adapter, with a regular expression for its targets turned into names.

    Raises:
        SpecError: one sentence, when the folder holds no adapter that can be loaded here.
    """
    try:
        folder = folders.inside(adapter.path)
    except folders.FolderError as error:
        raise SpecError("adapter.path", str(error)) from None
    # PEFT looks for what is missing on the hub, and takes pickled weights where there are no others.
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise SpecError("adapter.path", f"the folder {adapter.path} has no {name}")
    try:
        config = PeftConfig.from_pretrained(adapter.path)
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise SpecError(
            "adapter.path", f"{adapter.path} has no adapter_config.json that can be read ({_one_line(error)})"
        ) from None
    wanted = getattr(config, "target_modules", None)
    if isinstance(wanted, str) and wanted != "all-linear":
        try:
            config.target_modules = set(targets.resolve(groups, wanted).names)
        except targets.TargetError as error:
            raise SpecError("adapter.path", f"the saved target modules do not fit: {error}") from None
    return config


@contextlib.contextmanager
def _names_taken_as_they_are() -> Iterator[None]:
    """Keep PEFT from rewriting target names of mixture-of-experts models, for the time of the context.

    PEFT reads ``gate_proj``, ``up_proj`` and ``down_proj`` as transformers 4's names of experts, which have been fused
    since, and so cannot adapt layers that bear these names beside the experts (Qwen2-MoE's shared expert, dense first
    layers). The names given here are those of the model as it is.
    """
    try:
        from peft.utils import transformers_weight_conversion
    except ImportError:
        # PEFT 0.18 rewrites nothing.
        yield
        return
    original = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = original


@contextlib.contextmanager
def _reporting(config: PeftConfig, on_module: OnModule | None) -> Iterator[None]:
    """Report each module that the tuner of this config's type creates, for the time of the context."""
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(config.peft_type))
    original = getattr(tuner, "_create_and_replace", None)
    if on_module is None or tuner is None or original is None:
        yield
        return
    own = tuner.__dict__.get("_create_and_replace")

    @functools.wraps(original)
    def create_and_report(self: Any, *arguments: Any, **named: Any) -> Any:
        result = original(self, *arguments, **named)
        name = re.sub(r"\.base_layer\b", "", str(named.get("current_key", "")))
        parameter = named.get("parameter_name")
        on_module(f"{name}.{parameter}" if parameter and not name.endswith(f".{parameter}") else name)
        return result

    tuner._create_and_replace = create_and_report
    try:
        yield
    finally:
        if own is None:
            del tuner._create_and_replace
        else:
            tuner._create_and_replace = own


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:240].rstrip(".")


# --- counting ---------------------------------------------------------------------------------------------------------


def parameter_count(model: nn.Module) -> int:
    """All parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def trainable_parameters(model: nn.Module) -> int:
    """The parameters that training would change: an attached adapter's own."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def left_on_meta(model: nn.Module) -> list[str]:
    """Names of parameters and buffers that have no memory yet."""
    return [
        name
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.device == torch.device("meta")
    ]
