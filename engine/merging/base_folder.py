"""A model's folder as transformers saves it: its config, its safetensors shards, and the small files beside them.

Reads headers and JSON only, never a tensor, never pickled weights. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.merging.weight_file import TensorEntry, WeightFile, WeightFileError, read_header
from engine.spec import SpecError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
# What belongs to a model beside its weights: configs, tokenizers, chat templates and licences.
_COPIED_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_COPIED_NAMES = ("LICENSE", "NOTICE")
_COPIED_FOLDERS = ("additional_chat_templates",)
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class BaseFolder:
    """A model on disk; ``shards`` in the order of their names, ``index`` None where the weights are in one file."""

    path: Path
    config: Mapping[str, Any]
    shards: tuple[WeightFile, ...]
    index: Mapping[str, Any] | None

    @property
    def tensors(self) -> dict[str, tuple[WeightFile, TensorEntry]]:
        """Every tensor with the shard that holds it."""
        return {name: (shard, entry) for shard in self.shards for name, entry in shard.tensors.items()}

    @property
    def other_files(self) -> list[Path]:
        """The files, relative to the folder, that a copy of the model needs beside weights, index and config."""
        found = [path for path in sorted(self.path.iterdir()) if _is_copied(path)]
        for folder in _COPIED_FOLDERS:
            found += sorted(path for path in (self.path / folder).glob("*") if path.suffix in _COPIED_SUFFIXES)
        return [path.relative_to(self.path) for path in found if path.is_file()]


def open_base(path: Path) -> BaseFolder:
    """Read what a model's folder holds.

    Raises:
        SpecError: one sentence on ``base``, when it is no whole model in safetensors.
    """
    if not path.is_dir():
        raise SpecError("base", f"{path} is not a folder")
    config = read_json(path / CONFIG, "base")
    if config.get("quantization_config"):
        raise SpecError("base", f"{path} is quantised, and merging needs float32, bfloat16 or float16 weights")
    # Where there are both, transformers takes the one file.
    if (path / SINGLE).is_file():
        return BaseFolder(path, config, (_header("base", path / SINGLE),), None)
    if (path / INDEX).is_file():
        return _open_sharded(path, config)
    if any(found for pattern in _PICKLED for found in path.glob(pattern)):
        raise SpecError("base", f"{path} has pickled weights only, which are never read; save it as safetensors")
    raise SpecError("base", f"{path} has neither {SINGLE} nor {INDEX}")


def read_json(path: Path, field: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        SpecError: one sentence on ``field``.
    """
    if not path.is_file():
        raise SpecError(field, f"the folder {path.parent} has no {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(field, f"the {path.name} in {path.parent} cannot be read ({str(error)[:120]})") from None
    if not isinstance(value, dict):
        raise SpecError(field, f"the {path.name} in {path.parent} is not a JSON object")
    return value


def _open_sharded(path: Path, config: Mapping[str, Any]) -> BaseFolder:
    index = read_json(path / INDEX, "base")
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise SpecError("base", f"the {INDEX} in {path} has no weight_map from tensors to files")
    shards = []
    for file in sorted(set(names.values())):
        if Path(file).name != file:
            raise SpecError("base", f"the {INDEX} in {path} names {file[:80]!r}, which is not a file of this folder")
        if not (path / file).is_file():
            raise SpecError("base", f"the shard {file} is missing in {path}")
        shards.append(_header("base", path / file))
    held = {name: shard.path.name for shard in shards for name in shard.tensors}
    for name, file in names.items():
        if held.get(name) != file:
            raise SpecError("base", f"the {INDEX} says that {name} is in {file}, which does not hold it")
    unlisted = next((name for name in held if name not in names), None)
    if unlisted is not None:
        raise SpecError("base", f"{held[unlisted]} holds {unlisted}, which the {INDEX} does not name")
    return BaseFolder(path, config, tuple(shards), index)


def _header(field: str, path: Path) -> WeightFile:
    try:
        return read_header(path)
    except WeightFileError as error:
        raise SpecError(field, str(error)) from None


def _is_copied(path: Path) -> bool:
    if path.name in (CONFIG, INDEX) or path.name.endswith(".index.json") or path.name.startswith("."):
        return False
    return path.suffix in _COPIED_SUFFIXES or path.name.startswith(_COPIED_NAMES)
