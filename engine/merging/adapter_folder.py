"""A LoRA or DoRA adapter's folder as PEFT saves it: which module each tensor belongs to, and its scaling.

Reads the config and the header of the weights only. Refuses what is more than ``W + s·B·A`` with DoRA's row scaling,
rather than merge it wrongly. Does not know the base model. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.merging.base_folder import read_json
from engine.merging.weight_file import TensorEntry, WeightFile, WeightFileError, read_header
from engine.spec import SpecError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FLOATS = ("F64", "F32", "BF16", "F16")
_PREFIX = "base_model.model."
# PEFT's other initialisations change the base weights when the adapter is attached or loaded.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}


@dataclass
class AdaptedModule:
    """The tensors of one adapted module, by PEFT's name of it (``base_layer`` parts included)."""

    name: str
    a: TensorEntry | None = None
    b: TensorEntry | None = None
    bias: TensorEntry | None = None
    magnitude: TensorEntry | None = None


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk.

    ``modules`` are those with low-rank factors, in the file's order; ``replaced`` are whole tensors that take a base
    tensor's place (``modules_to_save``, ``bias``, saved embeddings), by their name in the base model.
    """

    path: Path
    config: Mapping[str, Any]
    weights: WeightFile
    modules: Mapping[str, AdaptedModule] = field(default_factory=dict)
    replaced: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def is_dora(self) -> bool:
        """Whether rows are scaled to a magnitude."""
        return bool(self.config.get("use_dora"))

    def alpha(self, target: str) -> float:
        """``lora_alpha`` for a module or parameter of the base model, by PEFT's rule for ``alpha_pattern``."""
        try:
            for pattern, value in (self.config.get("alpha_pattern") or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", target):
                    return float(value)
            return float(self.config["lora_alpha"])
        except (AttributeError, KeyError, TypeError, ValueError, re.error):
            raise SpecError("adapter", f"{CONFIG} has no usable lora_alpha or alpha_pattern") from None

    def scaling(self, target: str, rank: int) -> float:
        """The factor of B·A: alpha over the rank, or over its square root with rsLoRA."""
        return self.alpha(target) / (rank**0.5 if self.config.get("use_rslora") else rank)


def open_adapter(path: Path) -> AdapterFolder:
    """Read what an adapter's folder holds.

    Raises:
        SpecError: one sentence on ``adapter``, when it is no LoRA that can be merged by its weights alone.
    """
    if not path.is_dir():
        raise SpecError("adapter", f"{path} is not a folder")
    config = read_json(path / CONFIG, "adapter")
    _refuse_other_kinds(path, config)
    if not (path / WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").is_file()
        why = (
            "has pickled weights only, which are never read; save it as safetensors" if pickled else f"has no {WEIGHTS}"
        )
        raise SpecError("adapter", f"the folder {path} {why}")
    try:
        weights = read_header(path / WEIGHTS)
    except WeightFileError as error:
        raise SpecError("adapter", str(error)) from None
    modules: dict[str, AdaptedModule] = {}
    replaced: dict[str, TensorEntry] = {}
    for key, entry in sorted(weights.tensors.items()):
        if entry.dtype not in FLOATS:
            raise SpecError("adapter", f"{key[:120]} is {entry.dtype}, which is no dtype of an adapter")
        if not key.startswith(_PREFIX):
            raise SpecError("adapter", f"{WEIGHTS} has a tensor {key[:120]}, which PEFT does not save for LoRA")
        name = key.removeprefix(_PREFIX)
        module, separator, part = name.rpartition(".lora_")
        if not separator:
            replaced[name.replace(".base_layer.", ".")] = entry
        elif f"lora_{part}" not in _PARTS:
            raise SpecError(
                "adapter", f"{module} has lora_{part[:60]}, which is more than LoRA or DoRA; merge it with PEFT"
            )
        else:
            setattr(modules.setdefault(module, AdaptedModule(module)), _PARTS[f"lora_{part}"], entry)
    found = AdapterFolder(path, config, weights, modules, replaced)
    _refuse_incomplete(found)
    return found


def _refuse_other_kinds(path: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type") or "none").upper()
    if kind != "LORA":
        raise SpecError("adapter", f"{path} has the adapter type {kind}; only LoRA and DoRA can be merged file by file")
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        raise SpecError(
            "adapter",
            f"it was initialised with {init}, for which PEFT changes the base weights too; save it again with "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    variant = next((name for name in _VARIANTS if config.get(name)), None)
    if variant is not None:
        raise SpecError("adapter", f"it uses {variant}, which is more than LoRA or DoRA; merge it with PEFT")


def _refuse_incomplete(adapter: AdapterFolder) -> None:
    if not adapter.modules and not adapter.replaced:
        raise SpecError("adapter", f"{WEIGHTS} in {adapter.path} holds no tensor")
    for module in adapter.modules.values():
        for part, entry in (("A", module.a), ("B", module.b)):
            if entry is None:
                raise SpecError("adapter", f"{module.name} has no lora_{part} in {WEIGHTS}")
        if adapter.is_dora and module.magnitude is None:
            raise SpecError(
                "adapter", f"{module.name} has no lora_magnitude_vector in {WEIGHTS}, though use_dora is set"
            )
        if module.magnitude is not None and not adapter.is_dora:
            raise SpecError(
                "adapter", f"{module.name} has a lora_magnitude_vector in {WEIGHTS}, though use_dora is not set"
            )
