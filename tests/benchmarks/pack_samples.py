"""Packs result documents into the sample data of the project: ``app/samples/runs.json.gz``.

    python -m tests.benchmarks.pack_samples DOCUMENTS.json[.gz]...

Takes what ``python -m engine measure`` and ``export`` print and ``bench_cases --documents`` keeps. Measures nothing
and changes no number. Leaves out runs that other processes disturbed where a spec has others; what belongs to the
machine's own database (uid, name, note, tags), so that the runs are sample data also where they were measured; and the
memory over time of all but the first run of each spec.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.widgets.samples import FILE
from db.documents import FORMAT
from db.files import documents
from db.transfer import check_file
from engine.cases import DISTURBED_SHARE
from engine.catalog.documents import document_spec

_OWN = ("uid", "name", "note", "tags")
_LARGEST_BYTES = 2**30


def packed(files: Iterable[bytes]) -> bytes:
    """All documents of these files as one compressed list, the same bytes for the same documents."""
    by_spec: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for data in files:
        for document, _ in documents(data, _LARGEST_BYTES):
            key = (document["spec_hash"], json.dumps(document["environment"], sort_keys=True))
            by_spec.setdefault(key, []).append(document)
    kept: list[dict[str, Any]] = []
    for same in by_spec.values():
        for place, document in enumerate([one for one in same if not is_disturbed(one)] or same):
            shown = {name: value for name, value in document.items() if name not in _OWN}
            kept.append({**shown, "format": FORMAT, "samples": [] if place else document["samples"]})
    return gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), mtime=0)


def is_disturbed(document: dict[str, Any]) -> bool:
    """Whether pages would mark the run as disturbed."""
    shares = [metric["value"] for metric in document["metrics"] if metric["name"] == "background_cpu_share"]
    return max(shares, default=0.0) > DISTURBED_SHARE


def main() -> None:
    """Pack the files named on the command line and say what came of it."""
    parser = argparse.ArgumentParser(description="Pack result documents into the project's sample data.")
    parser.add_argument("documents", type=Path, nargs="+")
    data = packed(path.read_bytes() for path in parser.parse_args().documents)
    runs = check_file(data, document_spec, largest_bytes=_LARGEST_BYTES)
    FILE.write_bytes(data)
    print(f"{len(runs)} runs, {len(data) / 2**20:.2f} MiB in {FILE}")


if __name__ == "__main__":
    main()
