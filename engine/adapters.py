"""List what a model offers to adapt, build a PEFT config from a spec, attach it, and put the model back as it was.

Attaching is plain PEFT; nothing here is faster or slower than PEFT itself (that is ``engine.strategies``).
Builds no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import transformers_weight_conversion
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engine import catalog
from engine.catalog import targets
from engine.catalog.adapter_types import largest_fitting
from engine.catalog.modules import Kind, ModuleGroup
from engine.catalog.roles import role_of
from engine.spec import FreshAdapter, SavedAdapter, SpecError

OnModule = Callable[[str], None]


# --- what a model offers ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Found:
    """One adaptable module, before modules are grouped."""

    name: str
    kind: Kind
    in_features: int
    out_features: int
    experts: int
    tied: bool
    is_head: bool

    @property
    def template(self) -> str:
        """The name with its first two numeric parts replaced by "{}"."""
        return _template(self.name)

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.name.split(".") if part.isdecimal())[:2]


def _template(name: str) -> str:
    parts = name.split(".")
    for position in [place for place, part in enumerate(parts) if part.isdecimal()][:2]:
        parts[position] = "{}"
    return ".".join(parts)


def list_groups(model: PreTrainedModel) -> list[ModuleGroup]:
    """The model's adaptable modules, grouped by name and shape, in the order of the model's own modules.

    Linear, Conv1D and embedding layers, and the 3-D parameters of fused experts. Works on ``meta`` as on real weights.
    """
    by_key: dict[tuple[Any, ...], list[_Found]] = {}
    for module in _adaptable(model):
        key = (
            module.template,
            module.kind,
            module.in_features,
            module.out_features,
            module.experts,
            module.tied,
            module.is_head,
        )
        by_key.setdefault(key, []).append(module)
    every_template = {_template(name) for name, _ in model.named_modules()} | {key[0] for key in by_key}
    groups = []
    for modules in by_key.values():
        first = modules[0]
        name = _short_name(first.template, every_template, least_parts=2 if first.kind == "experts" else 1)
        role = "lm_head" if first.is_head else role_of(first.template, first.kind, first.out_features)
        for path, layers, inner in _index_sets(modules):
            groups.append(
                ModuleGroup(
                    name=name,
                    kind=first.kind,
                    role=role,
                    in_features=first.in_features,
                    out_features=first.out_features,
                    path=path,
                    layers=layers,
                    inner=inner,
                    experts=first.experts,
                    tied=first.tied,
                )
            )
    return groups


def _adaptable(model: PreTrainedModel) -> Iterator[_Found]:
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            tied = uses[id(module.weight)] > 1
            if isinstance(module, nn.Linear):
                kind, sizes = "Linear", (module.in_features, module.out_features)
            elif isinstance(module, nn.Embedding):
                kind, sizes = "Embedding", (module.num_embeddings, module.embedding_dim)
            else:
                kind, sizes = "Conv1D", (module.weight.shape[0], module.weight.shape[1])
            yield _Found(name, typing.cast(Kind, kind), *sizes, experts=1, tied=tied, is_head=module is head)
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    sizes = (parameter.shape[1], parameter.shape[2])
                    # As PEFT reads it: (experts, out, in) unless the module says that it is transposed.
                    if not getattr(module, "is_transposed", False):
                        sizes = sizes[::-1]
                    yield _Found(
                        f"{name}.{parameter_name}",
                        "experts",
                        *sizes,
                        experts=parameter.shape[0],
                        tied=False,
                        is_head=False,
                    )


def _short_name(template: str, every_template: set[str], least_parts: int) -> str:
    """The shortest ending without a layer index that no other module's name has, else the longest ending there is."""
    parts = template.split(".")
    usable = parts[max((place + 1 for place, part in enumerate(parts) if part == "{}"), default=0) :]
    for length in range(min(least_parts, len(usable)), len(usable) + 1):
        name = ".".join(usable[-length:])
        if not any(other != template and (other == name or other.endswith(f".{name}")) for other in every_template):
            return name
    return ".".join(usable)


def _index_sets(modules: Sequence[_Found]) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Path template, layers and inner indices such that each yield names exactly layers x inner."""
    depth = len(modules[0].indices)
    if depth == 0:
        yield modules[0].name, (), ()
    elif depth == 1:
        yield modules[0].template, tuple(module.indices[0] for module in modules), ()
    else:
        inner_of: dict[int, list[int]] = {}
        for module in modules:
            inner_of.setdefault(module.indices[0], []).append(module.indices[1])
        layers_of: dict[tuple[int, ...], list[int]] = {}
        for layer, inner in inner_of.items():
            layers_of.setdefault(tuple(inner), []).append(layer)
        for inner_indices, layers in layers_of.items():
            yield modules[0].template, tuple(layers), inner_indices


# --- from a spec to PEFT's config -------------------------------------------------------------------------------------


def peft_config(
    adapter: FreshAdapter, groups: Sequence[ModuleGroup], runtime: Mapping[str, Any] | None = None
) -> PeftConfig:
    """PEFT's config object for a fresh adapter on a model with these groups.

    ``runtime`` holds further fields of the config class that a strategy sets, such as ``runtime_config``.

    Raises:
        SpecError: one sentence, when the targets cannot be resolved or PEFT refuses the fields.
    """
    entry = catalog.adapter_type(adapter.type)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(entry.peft_type)]
    values: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM, **entry.engine_defaults}
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
    values |= {name: _as_peft_wants(value, hints[name]) for name, value in adapter.options.items()}
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
        config = PeftConfig.from_pretrained(adapter.path)
    except (ValueError, TypeError, KeyError, OSError) as error:
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


# --- putting the model back -------------------------------------------------------------------------------------------


class Snapshot:
    """A model's module tree, flags, hooks and configs as they were.

    No weight is copied, but each parameter's storage is kept alive, so that initialisations which replace a base weight
    (PiSSA) can be undone. Only where the adapter writes into the base weights themselves are they copied.
    """

    def __init__(self, model: PreTrainedModel, adapter: FreshAdapter | SavedAdapter | None = None) -> None:
        self._modules = [(module, _contents(module.__dict__)) for module in model.modules()]
        self._parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
        self._copies = (
            [parameter.data.clone() for parameter in model.parameters()] if _writes_into_weights(model, adapter) else []
        )
        configs: dict[int, PretrainedConfig] = {}
        for module in model.modules():
            _collect_configs(module.__dict__, configs)
        self._configs = [(config, _contents(config.__dict__)) for config in configs.values()]

    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for module, contents in self._modules:
            _put_back(module.__dict__, contents)
        for config, contents in self._configs:
            _put_back(config.__dict__, contents)
        for parameter, data, requires_grad in self._parameters:
            parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for (_, data, _), copy in zip(self._parameters, self._copies, strict=bool(self._copies)):
            data.copy_(copy)


def snapshot(model: PreTrainedModel, adapter: FreshAdapter | SavedAdapter | None = None) -> Snapshot:
    """Remember a model before ``adapter`` is attached; :meth:`Snapshot.restore` undoes the attaching."""
    return Snapshot(model, adapter)


def _writes_into_weights(model: PreTrainedModel, adapter: FreshAdapter | SavedAdapter | None) -> bool:
    """OLoRA subtracts its start from the weight itself where the weight is float32, and from a new tensor elsewhere."""
    if not isinstance(adapter, FreshAdapter) or model.dtype != torch.float32:
        return False
    return adapter.options.get("init_lora_weights") in ("olora", "orthogonal")


_Contents = dict[str, tuple[Any, Any]]


def _contents(attributes: Mapping[str, Any]) -> _Contents:
    """Each attribute with a shallow copy of it where it is a container that could be changed in place."""
    return {
        name: (value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    }


def _put_back(attributes: dict[str, Any], contents: _Contents) -> None:
    for name in attributes.keys() - contents.keys():
        del attributes[name]
    for name, (value, copy) in contents.items():
        attributes[name] = value
        if isinstance(value, list):
            value[:] = copy
        elif isinstance(value, dict | set):
            value.clear()
            value.update(copy)


def _collect_configs(attributes: Mapping[str, Any], found: dict[int, PretrainedConfig]) -> None:
    for value in attributes.values():
        if isinstance(value, PretrainedConfig) and id(value) not in found:
            found[id(value)] = value
            _collect_configs(value.__dict__, found)


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
