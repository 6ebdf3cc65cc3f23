"""Where a model's config and weights are found: a local folder, or a hub id by way of the local hub cache.

Reads config.json as plain JSON and downloads at most that file. Builds nothing and imports no torch.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from engine.catalog import folders
from engine.catalog.architectures import models
from engine.catalog.lookup import nearest

HUB_TIMEOUT_S = 5.0
# A page asks again with every keystroke.
_REMEMBER_S = 60
_HUB_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(f"{_HUB_NAME}/{_HUB_NAME}", re.ASCII)


class SourceError(ValueError):
    """A model name behind which no usable model is; the text is one sentence."""


def local_folder(name: str) -> Path | None:
    """The folder that ``name`` means, or None where it is a bundled id or reads as a hub id.

    Raises:
        SourceError: one sentence, when it is a folder that models may not be read from.
    """
    if not _means_folder(name):
        return None
    try:
        return folders.inside(name)
    except folders.FolderError as error:
        raise SourceError(str(error)) from None


def _means_folder(name: str) -> bool:
    if name in models():
        return False
    # A relative name that is no folder here, or cannot be one, may be a hub id.
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..") or os.path.isdir(name)


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form owner/name as the hub takes it, and is not a folder here."""
    is_of_its_form = _HUB_ID.fullmatch(name) is not None and "--" not in name and ".." not in name
    return is_of_its_form and not name.endswith(".git") and not _means_folder(name)


def config_folder(name: str) -> Path:
    """The local folder that holds config.json of a model folder or a hub id, downloading that file if need be.

    Raises:
        SourceError: one sentence.
    """
    folder = local_folder(name)
    if folder is not None:
        if not folder.is_dir():
            raise SourceError(f"{name} is not a folder")
        if not (folder / "config.json").is_file():
            raise SourceError(f"the folder {name} has no config.json")
        return folder
    if not is_hub_id(name):
        guess = nearest(name, models())
        raise SourceError(
            f"unknown model {name[:80]!r}; the nearest is {guess}, or give a folder, or a hub id owner/name"
        )
    return _hub_file(name, "config.json").parent


def read_config(name: str) -> dict[str, Any]:
    """The config.json of a model folder or hub id, as JSON.

    Raises:
        SourceError: one sentence.
    """
    path = config_folder(name) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"the config.json of {name} cannot be read ({str(error)[:120]})") from None
    if not isinstance(config, dict):
        raise SourceError(f"the config.json of {name} is not a JSON object")
    return config


def weights_source(name: str) -> tuple[str, bool]:
    """What transformers loads the weights from, and whether it must stay off the network.

    Raises:
        SourceError: one sentence.
    """
    folder = local_folder(name)
    if folder is None and not is_hub_id(name):
        raise SourceError(f"{name[:80]!r} is neither a folder nor a hub id owner/name")
    return (str(folder), True) if folder is not None else (name, False)


def has_safetensors(name: str) -> bool:
    """Whether a model folder or hub id has weights as safetensors; asks the hub what its local cache does not hold."""
    folder = local_folder(name)
    if folder is not None:
        return any(folder.glob("*.safetensors"))
    files = ("model.safetensors", "model.safetensors.index.json")
    if any(_cached_hub_file(name, file) for file in files):
        return True
    return any(_why_not_reachable(name, file, int(time.monotonic() // _REMEMBER_S)) is None for file in files)


def _hub_file(name: str, file: str) -> Path:
    cached = _cached_hub_file(name, file)
    return cached if cached is not None else _download(name, file)


def _cached_hub_file(name: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _download(name: str, file: str) -> Path:
    sentence = _why_not_reachable(name, file, int(time.monotonic() // _REMEMBER_S))
    if sentence:
        raise SourceError(sentence)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # any failure of the network or the disk means the same to the reader
        raise SourceError(f"{file} of {name} cannot be downloaded ({type(error).__name__})") from None


@functools.lru_cache(maxsize=256)
def _why_not_reachable(name: str, file: str, period: int) -> str | None:
    """One sentence when the hub does not hand out this file, remembered for a while (``period`` counts them).

    Asked once and with a short time limit: the hub library itself tries five times, for half a minute.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    unreachable = f"{name} is not in the local hub cache and the hub cannot be reached"
    if constants.HF_HUB_OFFLINE:
        return unreachable
    try:
        answer = get_session().head(hf_hub_url(name, file), headers=build_hf_headers(), timeout=HUB_TIMEOUT_S)
    except Exception:  # any failure of the network means the same to the reader
        return unreachable
    if answer.status_code < 400:
        return None
    if answer.headers.get("X-Error-Code") == "GatedRepo":
        return f"the hub repository {name} is gated; accept its licence there and log in with `hf auth login`"
    if answer.headers.get("X-Error-Code") == "EntryNotFound":
        return f"the hub repository {name} has no {file}"
    if answer.status_code in (401, 403, 404):
        return f"the hub has no repository {name} that can be read without logging in"
    return f"{name} is not in the local hub cache and the hub answers with status {answer.status_code}"
