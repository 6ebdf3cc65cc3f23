"""Typed job specs: everything that decides a measurement, validated, frozen and hashed.

Checks what can be known from the spec alone (types, bounds, fields that the adapter type has). What depends on the
machine or on the model's modules is checked by ``engine.catalog.requirements``. Imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine import catalog
from engine.catalog import folders
from engine.sentences import one_line

Kind = Literal["init", "merge", "train", "inference", "inspect", "predict", "plan", "merge_files"]
MEASURED_KINDS: tuple[str, ...] = ("init", "merge", "train", "inference")
REQUEST_KINDS: tuple[str, ...] = ("inspect", "predict", "plan", "merge_files")
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Task = Literal["causal_lm", "sequence_classification"]
Quantization = Literal["int8", "nf4"]
Optimizer = Literal["adamw", "sgd", "adafactor", "adamw_8bit"]
Variant = Literal["base", "adapter_disabled", "adapter", "merged"]
VARIANTS: tuple[Variant, ...] = ("base", "adapter_disabled", "adapter", "merged")
PREDICTOR_VERSION = 3
"""Goes up with every change after which a prediction may come out otherwise: stored ones are then made anew."""
#: What the patterns of fields ask for, in words.
_PATTERNS = {
    "device": "cpu, mps or cuda:N",
    "node": "a node's name (letters, digits, dots, hyphens and underscores)",
}
_NOT_PREDICTED_BY = {
    "repeats",
    "warmup",
    "seed",
    "threads",
    "timeout_s",
    "memory_limit_bytes",
    "node",
    "device_type",
    "weights",
}


class SpecError(ValueError):
    """A spec that cannot work. ``field`` names the part at fault; the text is one sentence starting with it."""

    def __init__(self, field: str, sentence: str) -> None:
        self.field = one_line(field)
        self.sentence = one_line(sentence)
        super().__init__(f"{self.field}: {self.sentence}")


class NotHere(SpecError):
    """A spec that works elsewhere: this machine lacks a package or a setting. It can be predicted all the same."""


class Frozen(BaseModel):
    """Common behaviour of every spec model: immutable, no unknown fields, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FreshAdapter(Frozen):
    """An adapter to create: its PEFT type, the fields every user knows, and the rest by PEFT's own names."""

    type: str = "lora"
    rank: int | None = Field(default=None, ge=1, le=65536)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    target_modules: str | tuple[str, ...] | None = "all-linear"
    adapter_dtype: Dtype = "float32"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_the_type(cls, data: Any) -> Any:
        """Resolve what was left out from the catalog, so that equal measurements have equal hashes."""
        if not isinstance(data, Mapping):
            return data
        try:
            adapter_type = catalog.adapter_type(data.get("type", "lora"))
        except catalog.UnknownEntry as error:
            raise SpecError("adapter.type", str(error)) from None
        filled = dict(data)
        for name, default in (("rank", 16), ("alpha", 32.0), ("dropout", 0.0)):
            peft_name = adapter_type.common_fields.get(name)
            if peft_name is None:
                if filled.get(name) is not None:
                    raise SpecError(f"adapter.{name}", f"{adapter_type.label} has no {name}; leave it out")
                filled[name] = None
            elif filled.get(name) is None:
                filled[name] = default
        if not adapter_type.targets_modules:
            if filled.get("target_modules") not in (None, "all-linear"):
                raise SpecError("adapter.target_modules", f"{adapter_type.label} adapts no modules; leave it out")
            filled["target_modules"] = None
        filled["options"] = catalog.check_options(adapter_type, filled.get("options") or {}, SpecError)
        return filled

    @field_validator("target_modules")
    @classmethod
    def _sorted_names(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is None:
            return None
        if not value or (not isinstance(value, str) and not all(value)):
            raise ValueError("give a preset, a regular expression, or at least one module name")
        return value if isinstance(value, str) else tuple(sorted(set(value)))


class SavedAdapter(Frozen):
    """An adapter saved by PEFT in a local folder; its type and fields are read from its ``adapter_config.json``."""

    path: str = Field(min_length=1)
    low_cpu_mem_usage: bool = False
    adapter_dtype: Dtype = "float32"

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(folders.resolved(value))


class MeasuredSpec(Frozen):
    """What every measured kind has: the model, where and how often it runs, and its limits."""

    task: Literal["causal_lm"] = "causal_lm"
    model: str = Field(min_length=1)
    weights: Literal["synthetic", "pretrained"] = "synthetic"
    dtype: Dtype = "bfloat16"
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda:\d{1,3})$")] = "cpu"
    node: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")] | None = None
    #: A device's name as the nodes list it, where any of that name will do. Left out of documents where it is not asked
    #: for: specs from before there was more than one machine keep their hashes.
    device_type: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    attention: Attention = "sdpa"
    quantization: None = None
    strategy: str = "stock"
    repeats: int = Field(default=5, ge=1, le=100)
    warmup: int = Field(default=1, ge=0, le=20)
    threads: int | None = Field(default=None, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)
    timeout_s: float = Field(default=3600, gt=0, le=7 * 86400)
    memory_limit_bytes: int | None = Field(default=None, ge=2**20)

    @field_validator("device", mode="before")
    @classmethod
    def _first_gpu(cls, value: Any) -> Any:
        return "cuda:0" if value == "cuda" else value

    @field_validator("adapter", mode="before", check_fields=False)
    @classmethod
    def _choose_adapter_model(cls, value: Any) -> Any:
        if isinstance(value, Frozen):
            return value
        if value is None and cls.may_be_bare():
            return None
        if not isinstance(value, Mapping):
            raise SpecError("adapter", f"must be an object with a type, or with the path of a saved one, not {value!r}")
        return SavedAdapter.model_validate(value) if "path" in value else FreshAdapter.model_validate(value)

    @classmethod
    def may_be_bare(cls) -> bool:
        """Whether ``adapter`` may be null: the kind then works on the bare model."""
        return False

    @model_validator(mode="after")
    def _strategy_exists(self) -> Self:
        adapter: FreshAdapter | SavedAdapter | None = self.adapter  # type: ignore[attr-defined]
        kind: str = self.kind  # type: ignore[attr-defined]
        try:
            catalog.strategy(kind, self.strategy)
        except catalog.UnknownEntry as error:
            raise SpecError("strategy", str(error)) from None
        if adapter is not None and adapter.adapter_dtype not in ("float32", self.dtype):
            raise SpecError(
                "adapter.adapter_dtype",
                f"must be float32 (PEFT's default) or the model's own dtype {self.dtype}, not {adapter.adapter_dtype}",
            )
        return self


class InitSpec(MeasuredSpec):
    """Attach an adapter to a model and measure how long it takes and how much memory it needs."""

    kind: Literal["init"] = "init"
    adapter: FreshAdapter | SavedAdapter = Field(default_factory=FreshAdapter)


class MergeSpec(MeasuredSpec):
    """Merge an adapter with noise in it into its base weights and measure time, memory and error."""

    kind: Literal["merge"] = "merge"
    adapter: FreshAdapter | SavedAdapter = Field(default_factory=FreshAdapter)


class TrainSection(Frozen):
    """One training step: what goes in, how it is optimised, and what saves memory."""

    context_length: int = Field(default=512, ge=2, le=2**20)
    batch_size: int = Field(default=1, ge=1, le=4096)
    accumulation: int = Field(default=1, ge=1, le=1024)
    optimizer: Optimizer = "adamw"
    gradient_checkpointing: bool = False
    loss_chunks: int = Field(default=1, ge=1, le=1024)
    sequence_tiles: int = Field(default=1, ge=1, le=1024)


class TrainSpec(MeasuredSpec):
    """Train for a few steps on random tokens and measure time and memory; without an adapter, full fine-tuning."""

    kind: Literal["train"] = "train"
    task: Task = "causal_lm"  # type: ignore[assignment]  # wider than the other kinds'
    quantization: Quantization | None = None  # type: ignore[assignment]
    adapter: FreshAdapter | SavedAdapter | None = Field(default_factory=FreshAdapter)
    train: TrainSection = Field(default_factory=TrainSection)

    @classmethod
    def may_be_bare(cls) -> bool:
        return True


class InferenceSection(Frozen):
    """One request: how long, how many at once, and in which forms of the model."""

    prompt_tokens: int = Field(default=512, ge=1, le=2**20)
    new_tokens: int = Field(default=64, ge=1, le=2**16)
    batch_size: int = Field(default=1, ge=1, le=4096)
    variants: tuple[Variant, ...] = VARIANTS
    adapters: int = Field(default=1, ge=1, le=64)

    @field_validator("variants")
    @classmethod
    def _in_one_order(cls, value: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if not value:
            raise ValueError(f"name at least one of {', '.join(VARIANTS)}")
        return tuple(name for name in VARIANTS if name in value)


class InferenceSpec(MeasuredSpec):
    """Read a prompt and write tokens, with and without the adapter, and measure the speed of both."""

    kind: Literal["inference"] = "inference"
    adapter: FreshAdapter | SavedAdapter | None = Field(default_factory=FreshAdapter)
    inference: InferenceSection = Field(default_factory=InferenceSection)

    @classmethod
    def may_be_bare(cls) -> bool:
        return True

    @model_validator(mode="before")
    @classmethod
    def _default_variants(cls, data: Any) -> Any:
        """Variants that were left out: the bare model has one, and merged needs a type that merges."""
        section = data.get("inference") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(section, Mapping | None) or "variants" in (section or {}):
            return data
        adapter = data.get("adapter", {})
        if adapter is None:
            return {**data, "inference": {"variants": ("base",), **(section or {})}}
        if isinstance(adapter, FreshAdapter):
            kind, options = adapter.type, dict(adapter.options)
        elif (
            isinstance(adapter, Mapping)
            and "path" not in adapter
            and isinstance(adapter.get("options"), Mapping | None)
        ):
            kind, options = adapter.get("type", "lora"), dict(adapter.get("options") or {})
        else:
            return data
        entry = catalog.adapter_types().get(kind) if isinstance(kind, str) else None
        # Whether the layers have biases is not known here, and where it matters most models' have none.
        unsure = {**options, "every_layer_has_bias": False}
        if entry is None or catalog.cannot(entry, unsure, "merge") is None:
            return data
        return {**data, "inference": {"variants": VARIANTS[:-1], **(section or {})}}

    @model_validator(mode="after")
    def _variants_fit_the_adapter(self) -> Self:
        if self.adapter is None:
            if self.inference.variants != ("base",):
                raise SpecError("inference.variants", "must be base alone where there is no adapter")
            if self.inference.adapters != 1:
                raise SpecError("inference.adapters", "must be 1 where there is no adapter")
            if self.strategy != "stock":
                raise SpecError("strategy", f"must be stock where there is no adapter, not {self.strategy}")
        return self


class InspectSpec(Frozen):
    """List a model's adaptable modules. A request: it goes through the queue and measures nothing."""

    kind: Literal["inspect"] = "inspect"
    model: str = Field(min_length=1)
    timeout_s: float = Field(default=300, gt=0, le=7 * 86400)
    memory_limit_bytes: None = None
    device: Literal["cpu"] = "cpu"


class MergeFilesSpec(Frozen):
    """Merge an adapter on disk into a model on disk, tensor by tensor. A request: it measures nothing."""

    kind: Literal["merge_files"] = "merge_files"
    base: str = Field(min_length=1)
    adapter: str = Field(min_length=1)
    out: str = Field(min_length=1)
    timeout_s: float = Field(default=6 * 3600, gt=0, le=7 * 86400)
    memory_limit_bytes: int | None = Field(default=None, ge=2**20)
    device: Literal["cpu"] = "cpu"

    @field_validator("base", "adapter", "out")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(folders.resolved(value))


Measured = InitSpec | MergeSpec | TrainSpec | InferenceSpec


class PredictSpec(Frozen):
    """Predict the peak memory of measured specs, one after another, on a card if one is named. Measures nothing."""

    kind: Literal["predict"] = "predict"
    of: tuple[Measured, ...] = Field(max_length=1000)
    card: str | None = None
    timeout_s: float = Field(default=3600, gt=0, le=7 * 86400)
    memory_limit_bytes: None = None
    device: Literal["cpu"] = "cpu"

    @field_validator("of", mode="before")
    @classmethod
    def _each_by_its_kind(cls, value: Any) -> Any:
        return tuple(_measured(item, number) for number, item in enumerate(_listed(value)))

    @field_validator("card")
    @classmethod
    def _card_exists(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                catalog.card(value)
            except catalog.UnknownEntry as error:
                raise SpecError("card", str(error)) from None
        return value


THIS_MACHINE = "this-machine"
"""What a plan calls the CPU and the memory that it is made on."""


class PlanSpec(Frozen):
    """Which of several ways to train a model fit on which cards, and how far each goes. A request: measures nothing.

    ``of`` holds one train spec for each way, all of one model and with the same batch; their devices are not looked at.
    ``places`` are ids of cards, and ``this-machine``.
    """

    kind: Literal["plan"] = "plan"
    of: tuple[TrainSpec, ...] = Field(max_length=12)
    places: tuple[str, ...] = Field(default=(THIS_MACHINE,), min_length=1, max_length=12)
    timeout_s: float = Field(default=3600, gt=0, le=7 * 86400)
    memory_limit_bytes: None = None
    device: Literal["cpu"] = "cpu"

    @field_validator("of", mode="before")
    @classmethod
    def _train_specs(cls, value: Any) -> Any:
        found = tuple(
            _measured({"kind": "train", **item} if isinstance(item, Mapping) else item, number)
            for number, item in enumerate(_listed(value))
        )
        for number, spec in enumerate(found):
            if not isinstance(spec, TrainSpec):
                raise SpecError(f"of.{number}.kind", "must be train: only training is planned")
            for field, wanted, given in (
                ("model", found[0].model, spec.model),
                ("task", found[0].task, spec.task),
                ("train.context_length", found[0].train.context_length, spec.train.context_length),
                ("train.batch_size", found[0].train.batch_size, spec.train.batch_size),
            ):
                if given != wanted:
                    raise SpecError(f"of.{number}.{field}", f"must be {wanted} as in the first, not {given}")
        return found

    @field_validator("places")
    @classmethod
    def _places_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, name in enumerate(value):
            try:
                if name != THIS_MACHINE:
                    catalog.card(name)
            except catalog.UnknownEntry as error:
                raise SpecError(f"places.{number}", f"{error}, or {THIS_MACHINE}") from None
        return tuple(dict.fromkeys(value))


def _listed(value: Any) -> Sequence[Any]:
    """The specs of a request, at least one."""
    if not isinstance(value, list | tuple):
        raise SpecError("of", f"must be a list of specs, not {_name_of(value)}")
    if not value:
        raise SpecError("of", "must hold at least one spec")
    return value


def _measured(item: Any, number: int) -> Any:
    """One of the specs to predict, by its own kind."""
    if not isinstance(item, Mapping):
        return item
    kind = item.get("kind", "init")
    if kind not in MEASURED_KINDS:
        raise SpecError(f"of.{number}.kind", f"must be one of {', '.join(MEASURED_KINDS)}, not {kind!r}")
    try:
        return parse_spec(item)
    except SpecError as error:
        raise SpecError(f"of.{number}.{error.field}", error.sentence) from None


Spec = Measured | InspectSpec | PredictSpec | PlanSpec | MergeFilesSpec
_UNION_ARMS = ("str", "tuple[str, ...]", "FreshAdapter", "SavedAdapter")
_KINDS: dict[str, type[Spec]] = {
    "init": InitSpec,
    "merge": MergeSpec,
    "train": TrainSpec,
    "inference": InferenceSpec,
    "inspect": InspectSpec,
    "predict": PredictSpec,
    "plan": PlanSpec,
    "merge_files": MergeFilesSpec,
}


def parse_spec(data: str | bytes | Mapping[str, Any]) -> Spec:
    """Turn JSON text or a mapping into a spec.

    Raises:
        SpecError: with one sentence that names the field at fault and what would be right.
    """
    if isinstance(data, str | bytes):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            detail = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            raise SpecError("spec", f"is not valid JSON{detail}") from None
    if not isinstance(data, Mapping):
        raise SpecError("spec", f"must be a JSON object, not {_name_of(data)}")
    kind = data.get("kind", "init")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise SpecError("kind", f"must be one of {', '.join(_KINDS)}, not {kind!r}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _first_problem(error) from None


def canonical_json(spec: Spec) -> str:
    """The one JSON text of a spec: every field present, keys sorted, no spaces."""
    return _canonical(spec.model_dump(mode="json"))


def spec_hash(spec: Spec) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits. Replicas share it."""
    return hash_of(spec.model_dump(mode="json"))


def prediction_key(spec: Measured, card: str | None = None) -> str:
    """SHA-256 of all that decides the prediction of a spec (on a card), as 64 hexadecimal digits.

    That is the spec but for how often and from which numbers it is measured, the configs of a model or an adapter in a
    local folder as they are now, the card, the installed versions, and the version of the predictor.
    """
    adapter = spec.adapter
    configs = [(spec.model, "config.json")]
    if isinstance(adapter, SavedAdapter):
        configs.append((adapter.path, "adapter_config.json"))
    return hash_of(
        {
            "spec": spec.model_dump(mode="json", exclude=_NOT_PREDICTED_BY),
            "configs": [_digest(folder, name) for folder, name in configs],
            "card": card,
            "versions": _versions(),
            "predictor": PREDICTOR_VERSION,
        }
    )


def _digest(folder: str, name: str) -> str | None:
    try:
        path = folders.inside(folder) / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except (OSError, folders.FolderError):
        return None


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}


def hash_of(document: Mapping[str, Any]) -> str:
    """The hash of a spec that is a document already, with every field present."""
    return hashlib.sha256(_canonical(document).encode()).hexdigest()


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _name_of(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _first_problem(error: ValidationError) -> SpecError:
    """The first of pydantic's findings as one sentence in our words."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, SpecError):
        return cause
    # The arms of a union are pydantic's own words, not fields.
    field = ".".join(str(part) for part in problem["loc"] if part not in _UNION_ARMS) or "spec"
    if isinstance(cause, folders.FolderError):
        return SpecError(field, str(cause))
    value = problem.get("input")
    shown = "null" if value is None else repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return SpecError(field, f"must be a finite number, not {value}")
    if problem["type"] == "extra_forbidden":
        return SpecError(field, "is not a field of this spec; remove it")
    if problem["type"] == "missing":
        return SpecError(field, "is missing")
    if problem["type"] == "string_pattern_mismatch":
        return SpecError(field, f"must be {_PATTERNS.get(field, _PATTERNS['device'])}, not {shown[:80]}")
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return SpecError(field, f"{text[0].lower()}{text[1:]} (got {shown[:80]})")
