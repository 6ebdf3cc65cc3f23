"""The folder that is written: beside its place under another name until it is whole, with a journal of what is done.

``OUT.partial`` holds the finished shards and a journal, which names what they were made from. A shard is written
under another name, brought to the disk, renamed, and only then put in the journal; config.json comes last; the folder
gets its name in one step. Whenever the process is killed, ``OUT`` does not exist or is whole. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.merging.adapter_folder import AdapterFolder
from engine.merging.base_folder import BaseFolder
from engine.spec import MergeFilesSpec, SpecError

# Hidden files of the base are not copied, so this is none of them.
JOURNAL = ".peft-lab-merge.json"
_VERSION = 1
_UNFINISHED = ".unfinished"


def partial_folder(out: Path) -> Path:
    """Where OUT is made: beside it, so that renaming is one step."""
    return out.with_name(f"{out.name}.partial")


def place_problems(spec: MergeFilesSpec) -> Iterator[SpecError]:
    """What is wrong with the place of OUT; looks at folders only."""
    out, base, adapter = Path(spec.out), Path(spec.base), Path(spec.adapter)
    for folder, name in ((base, "base"), (adapter, "adapter")):
        if out == folder or folder in out.parents:
            yield SpecError("out", f"{out} is inside the {name} folder; choose another place")
            return
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not _is_ours(out):
        yield SpecError("out", f"{out} exists and is not an empty folder")
        return
    partial = partial_folder(out)
    if partial.exists() and not _is_ours(partial):
        yield SpecError("out", f"{partial} exists and was not made by an earlier merge; remove it")
        return
    parent = _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield SpecError("out", f"{parent} cannot be written to")


def space_problem(out: Path, needed_bytes: int) -> SpecError | None:
    """A sentence when the disk of OUT has less free space than what is still to be written."""
    free_bytes = shutil.disk_usage(_existing_parent(out)).free
    if needed_bytes <= free_bytes:
        return None
    return SpecError("out", f"{out.parent} has {_gib(free_bytes)} free and {_gib(needed_bytes)} will be written")


def fingerprint(base: BaseFolder, adapter: AdapterFolder) -> str:
    """A name for what is merged: files by size and time of change, configs by content, as 64 hexadecimal digits."""
    files = [shard.path for shard in base.shards] + [adapter.weights.path]
    known = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    document = [_VERSION, str(base.path), known, dict(base.config), dict(adapter.config)]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class OutputFolder:
    """OUT while it is made, as a context manager that holds a lock: two merges never write the same folder."""

    def __init__(self, out: Path, made_from: str) -> None:
        self.out = out
        self.partial = partial_folder(out)
        self._made_from = made_from
        self._done: dict[str, int] = {}
        self._descriptor = -1

    def __enter__(self) -> OutputFolder:
        self.partial.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise SpecError("out", f"another merge is writing {self.partial}") from None
        self._resume_or_clean()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def is_done(self, name: str, size_bytes: int) -> bool:
        """Whether an earlier run left this shard whole."""
        path = self.partial / name
        return self._done.get(name) == size_bytes and path.is_file() and path.stat().st_size == size_bytes

    def unfinished(self, name: str) -> Path:
        """Under which name a file is written before it is whole."""
        return self.partial / f"{name}{_UNFINISHED}"

    def finish_shard(self, name: str) -> None:
        """Give a shard that is whole and on the disk its name, and remember it."""
        self.unfinished(name).replace(self.partial / name)
        self._done[name] = (self.partial / name).stat().st_size
        self._write_journal()

    def write_file(self, name: Path, content: bytes) -> None:
        """Write a small file whole."""
        path = self.partial / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{path.name}{_UNFINISHED}")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def publish(self) -> None:
        """Give the folder its name. After this it is OUT and whole; the journal goes last."""
        _sync_folder(self.partial)
        # An empty OUT is replaced in the same step.
        self.partial.replace(self.out)
        _sync_folder(self.out.parent)
        (self.out / JOURNAL).unlink()

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier run left something."""
        return bool(self._done)

    def discard(self) -> None:
        """Remove everything: what was asked for cannot be made, so there is nothing to resume."""
        shutil.rmtree(self.partial)

    def _resume_or_clean(self) -> None:
        journal = _read_journal(self.partial)
        if journal.get("made_from") == self._made_from:
            self._done = {str(name): int(size) for name, size in (journal.get("shards") or {}).items()}
            return
        for path in self.partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._write_journal()

    def _write_journal(self) -> None:
        document = {"version": _VERSION, "made_from": self._made_from, "shards": self._done}
        self.write_file(Path(JOURNAL), json.dumps(document, indent=1).encode())
        _sync_folder(self.partial)


def finished_before(out: Path, made_from: str) -> bool:
    """Whether OUT is whole already and only its journal was left, by a kill between the last two steps; removes it."""
    if not out.is_dir() or _read_journal(out).get("made_from") != made_from:
        return False
    (out / JOURNAL).unlink()
    return True


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    # Killed before the journal had its name.
    return (JOURNAL in names and bool(_read_journal(folder))) or names <= {f"{JOURNAL}{_UNFINISHED}"}


def _read_journal(folder: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        journal = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
        if isinstance(journal, dict) and isinstance(journal.get("made_from"), str):
            return journal
    return {}


def _existing_parent(path: Path) -> Path:
    return next((parent for parent in path.parents if parent.exists()), Path(path.anchor))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
