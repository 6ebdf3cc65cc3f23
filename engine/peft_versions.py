"""What the installed PEFT has: the same engine measures with PEFT 0.18 and newer, so that versions can be compared.

Names that came with a later release are looked up here, and asking for one that is not there gives one sentence.
Does not say what a release does differently; that is what the measurements are for.
"""

from __future__ import annotations

import types
from typing import Any

import peft

OLDEST = (0, 18)
"""The oldest minor version in which attaching, merging, training and inference work (docs/comparing-versions.md)."""


class PeftTooOld(ImportError):
    """The installed PEFT lacks what was asked for; the text is one sentence that names its version."""


def require_oldest(version: str = peft.__version__) -> None:
    """Refuse a PEFT that is older than :data:`OLDEST`.

    Raises:
        PeftTooOld: naming the version that is installed and the one that is needed.
    """
    if _numbers(version) < OLDEST:
        raise PeftTooOld(f"peft: {version} is installed, PEFT Lab needs {'.'.join(map(str, OLDEST))} or newer")


def present(module: types.ModuleType, *names: str) -> tuple[Any, ...]:
    """Those of a module's attributes that this PEFT has."""
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


def needs_newer(what: str) -> str:
    """The sentence for something that this PEFT lacks."""
    return f"{what} needs a newer PEFT than {peft.__version__}, which is installed here"


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
