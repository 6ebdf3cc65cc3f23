"""Which folders of this machine may hold models, adapters and what is merged of them: those below the roots.

Looks at paths with every link followed, and opens no file. Says nothing of what is in a folder. Imports no torch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from engine.sentences import one_line

ROOTS_VARIABLE = "PEFT_LAB_MODEL_ROOTS"
_SHOWN = 120


class FolderError(ValueError):
    """A folder that is not looked into; the text is one sentence that begins with it."""


def roots() -> tuple[Path, ...]:
    """The folders that ``PEFT_LAB_MODEL_ROOTS`` names, else the user's home folder and the folder for temporary files.

    Raises:
        FolderError: when the variable holds something else than whole paths.
    """
    given = os.environ.get(ROOTS_VARIABLE)
    if not given:
        found = [*_home(), Path(tempfile.gettempdir())]
    else:
        found = [Path(expanded(part)) for part in given.split(os.pathsep) if part]
        wrong = next((path for path in found if not path.is_absolute()), None)
        if wrong is not None:
            raise FolderError(f"{ROOTS_VARIABLE} must hold whole paths with {os.pathsep!r} between them, not {wrong}")
    return tuple(dict.fromkeys(path.resolve() for path in found))


def _home() -> list[Path]:
    """The user's home folder, where the account has one: some have none, or the whole file system."""
    try:
        home = Path.home().resolve()
    except RuntimeError:
        return []
    return [] if home == Path(home.anchor) else [home]


def expanded(text: str) -> str:
    """What a person typed, with ``~`` as the home folder where there is one of that name; all else as it is."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        return text


def resolved(text: str) -> Path:
    """The whole path that is meant: ``~``, ``..`` and links followed, relative to the working folder.

    Raises:
        FolderError: when it can be no path here.
    """
    try:
        return Path(text).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise FolderError(f"{_shown(text)} is no path here ({_reason(error)})") from None


def inside(text: str) -> Path:
    """The path that is meant, which is below a root, like whatever a link in that folder leads to.

    It need not exist. Of what is outside nothing is told, not even whether it is there.

    Raises:
        FolderError: when it is outside, can be no path, or may not be looked at.
    """
    path, allowed = resolved(text), roots()
    if not _is_below(path, allowed):
        names = " and ".join(map(str, allowed))
        raise FolderError(f"{_shown(text)} is outside of the model folders {names}; {ROOTS_VARIABLE} can name others")
    try:
        link = next((entry.name for entry in os.scandir(path) if _leads_out(entry, allowed)), None)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as error:
        raise FolderError(f"{_shown(text)} cannot be looked at ({_reason(error)})") from None
    if link is not None:
        raise FolderError(f"{_shown(text)} has a link out of the model folders ({_shown(link)}); copy it there")
    return path


def _leads_out(entry: os.DirEntry[str], allowed: tuple[Path, ...]) -> bool:
    if not entry.is_symlink():
        return False
    try:
        return not _is_below(Path(entry.path).resolve(), allowed)
    except (RuntimeError, OSError):
        return True


def _is_below(path: Path, allowed: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(root) for root in allowed)


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__).lower() if isinstance(error, OSError) else str(error).rstrip(".")


def _shown(text: str) -> str:
    return one_line(text, _SHOWN)
