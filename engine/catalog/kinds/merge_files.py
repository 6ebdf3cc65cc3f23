"""Merging files: what keeps a ``merge_files`` request from running."""

from __future__ import annotations

from collections.abc import Iterator

from engine.spec import MergeFilesSpec, SpecError


def problems(spec: MergeFilesSpec) -> Iterator[SpecError]:
    """What is wrong with the folders, before anything is read or written at length."""
    yield from ()
