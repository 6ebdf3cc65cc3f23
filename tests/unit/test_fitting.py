"""What fits into a memory, and what a process takes beside its tensors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from engine.catalog.fitting import Fit, fit, process_bytes

GIB = 2**30
MIB = 2**20
SAMPLES = Path(__file__).parents[2] / "app" / "samples" / "runs.json.gz"


@pytest.mark.parametrize(
    ("needed_bytes", "word"),
    [(0, "fits"), (9 * GIB, "fits"), (9 * GIB + 1, "tight"), (10 * GIB, "tight"), (10 * GIB + 1, "will not fit")],
)
def test_up_to_nine_tenths_of_the_memory_fit_and_up_to_all_of_it_are_tight(needed_bytes: int, word: Fit) -> None:
    assert fit(needed_bytes, 10 * GIB) == word


def test_a_larger_job_never_takes_a_smaller_process() -> None:
    sizes = [process_bytes(tensors) for tensors in range(0, 20 * GIB, 37 * MIB)]
    assert sizes == sorted(sizes)


def test_no_training_run_among_the_sample_data_took_more_than_a_process_is_said_to() -> None:
    runs = [run for run in json.loads(gzip.decompress(SAMPLES.read_bytes())) if run["spec"]["kind"] == "train"]
    seen = [{metric["name"]: metric["value"] for metric in run["metrics"] if metric["variant"] is None} for run in runs]
    both = [peaks for peaks in seen if {"peak_bytes", "peak_rss_bytes"} <= peaks.keys()]
    assert len(both) > 20
    for peaks in both:
        assert peaks["peak_rss_bytes"] <= process_bytes(int(peaks["peak_bytes"]))
        assert process_bytes(int(peaks["peak_bytes"])) < 1.5 * peaks["peak_bytes"] + 200 * MIB
