"""Merging files: what keeps a ``merge_files`` request from running, as far as folders and headers tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.catalog import folders
from engine.merging.adapter_folder import open_adapter
from engine.merging.base_folder import open_base
from engine.merging.output_folder import partial_folder, place_problems, space_problem
from engine.spec import MergeFilesSpec, SpecError


def problems(spec: MergeFilesSpec) -> Iterator[SpecError]:
    """What is wrong with the folders, before anything is read or written at length."""
    outside = list(_outside(spec))
    if outside:
        yield from outside
        return
    size_bytes = 0
    try:
        size_bytes = sum(shard.size_bytes for shard in open_base(Path(spec.base)).shards)
    except SpecError as error:
        yield error
    try:
        open_adapter(Path(spec.adapter))
    except SpecError as error:
        yield error
    place = list(place_problems(spec))
    yield from place
    if not place:
        # What an interrupted run left is not written again, or removed first.
        left = partial_folder(Path(spec.out))
        left_bytes = sum(path.stat().st_size for path in left.glob("*")) if left.is_dir() else 0
        problem = space_problem(Path(spec.out), size_bytes - left_bytes)
        if problem is not None:
            yield problem


def _outside(spec: MergeFilesSpec) -> Iterator[SpecError]:
    for field in ("base", "adapter", "out"):
        try:
            folders.inside(getattr(spec, field))
        except folders.FolderError as error:
            yield SpecError(field, str(error))
