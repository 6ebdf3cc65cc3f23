"""Runs as the supervisor would have stored them, for tests of the pages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from app.widgets.launching import new_run
from db import nodes, queue
from db.nodes import NodeRow
from db.session import Database
from engine.spec import parse_spec

GIB = 2**30
CPU = {
    "id": "cpu",
    "kind": "cpu",
    "name": "Test CPU, 2 cores",
    "memory_bytes": 16 * GIB,
    "dtypes": ["float32", "bfloat16", "float16"],
    "driver": None,
}
ENVIRONMENT = {
    "cpu": "Test CPU",
    "cores": 2,
    "memory_bytes": 16 * GIB,
    "packages": {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"},
    "commit": "0123abc",
}


def init_document(
    model: str = "tinyllama-1.1b", dora: bool = False, strategy: str = "stock", **fields: Any
) -> dict[str, Any]:
    """A valid init spec as a document."""
    adapter = {"options": {"use_dora": True} if dora else {}}
    return {"kind": "init", "model": model, "strategy": strategy, "adapter": adapter, **fields}


def document(kind: str, model: str = "tinyllama-1.1b", dora: bool = False, **fields: Any) -> dict[str, Any]:
    """A valid spec of any measured kind as a document; ``adapter=None`` for the bare model."""
    adapter = {"options": {"use_dora": True} if dora else {}}
    return {"kind": kind, "model": model, "adapter": adapter, **fields}


def metric(
    name: str, unit: str, value: float, repeat: int = 0, variant: str | None = None, x: float | None = None
) -> dict[str, Any]:
    """One metric of a result document."""
    return {"name": name, "unit": unit, "variant": variant, "x": x, "repeat": repeat, "value": value}


def repeated(name: str, unit: str, values: list[float], variant: str | None = None) -> list[dict[str, Any]]:
    """One metric with its repeats."""
    return [metric(name, unit, value, repeat, variant) for repeat, value in enumerate(values)]


def result(seconds: list[float], *, peak_bytes: int = 200 * 2**20, failed_check: bool = False) -> dict[str, Any]:
    """A result document with everything that an init run has."""
    base, top = 2 * GIB, peak_bytes
    tensors = [
        {"source": "tensors", "time_s": step * 0.01, "phase": "attach", "category": category, "bytes": value}
        for step in range(40)
        for category, value in (
            ("base parameters", base),
            ("adapter parameters", step * 2**20),
            ("temporary", top if step % 4 == 2 else 0),
        )
    ]
    process = [
        {"source": "process", "time_s": step * 0.1, "phase": "load", "category": category, "bytes": value}
        for step in range(30)
        for category, value in (("anonymous", GIB // 2 + min(step, 12) * GIB // 6), ("file-backed", GIB // 3))
    ]
    return {
        "state": "succeeded",
        "metrics": [
            *(metric("init_time_s", "s", value, repeat) for repeat, value in enumerate(seconds)),
            metric("first_attach_time_s", "s", seconds[0] * 1.6),
            metric("init_peak_extra_bytes", "bytes", peak_bytes),
            metric("init_peak_extra_rss_bytes", "bytes", peak_bytes * 1.1),
            metric("adapter_parameters", "count", 12_615_680),
            metric("adapted_modules", "count", 154),
            metric("background_cpu_share", "share", 0.012),
        ],
        "checks": [
            {"name": "magnitude_equals_stock", "passed": not failed_check, "detail": "largest relative error 0.0031"},
            {"name": "logits_equal_stock", "passed": True, "detail": "0.92 of stock's own error"},
        ],
        "samples": tensors + process,
        "environment": ENVIRONMENT,
        "error": None,
    }


def succeeded(metrics: list[dict[str, Any]], samples: list[dict[str, Any]], check: str) -> dict[str, Any]:
    """A result document of a run whose one check passed."""
    return {
        "state": "succeeded",
        "metrics": [*metrics, metric("background_cpu_share", "share", 0.011)],
        "checks": [{"name": check, "passed": True, "detail": "0.97 of stock's own error"}],
        "samples": samples + process_samples(),
        "environment": ENVIRONMENT,
        "error": None,
    }


def process_samples() -> list[dict[str, Any]]:
    """The process as seen from outside."""
    return [
        {"source": "process", "time_s": step * 0.1, "phase": "load", "category": category, "bytes": value}
        for step in range(30)
        for category, value in (("anonymous", GIB // 2 + min(step, 12) * GIB // 6), ("file-backed", GIB // 3))
    ]


def tensor_samples(phase: str, categories: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Live tensors by category, one value per moment."""
    return [
        {"source": "tensors", "time_s": moment * 0.02, "phase": phase, "category": category, "bytes": value}
        for category, values in categories.items()
        for moment, value in enumerate(values)
    ]


def merge_result(seconds: list[float], *, peak_weights: float, retained_weights: float = 0.0) -> dict[str, Any]:
    """What a merge run has; W is 23 MB."""
    weight = 2048 * 5632 * 2
    peak = int(peak_weights * weight)
    wave = {"base parameters": [2 * GIB] * 24, "temporary": [0, peak, peak // 2] * 8}
    metrics = [
        *repeated("merge_time_s", "s", seconds),
        *repeated("unmerge_time_s", "s", [value * 0.9 for value in seconds]),
        metric("merge_peak_extra_bytes", "bytes", peak),
        metric("merge_peak_extra_rss_bytes", "bytes", peak * 1.1),
        metric("merge_peak_extra_weights", "W", peak_weights),
        metric("merge_retained_extra_bytes", "bytes", retained_weights * weight),
        metric("largest_weight_bytes", "bytes", weight),
        metric("relative_weight_error", "ratio", 0.0312),
        metric("relative_logit_error", "ratio", 0.0121),
        *(metric("merge_drift", "ratio", 0.031 * (1 + step / 8), x=step + 1.0) for step in range(10)),
    ]
    return succeeded(metrics, tensor_samples("merge", wave), "weights_equal_stock")


def train_result(
    seconds: list[float],
    *,
    trainable: int,
    activations: int = 900 * 2**20,
    beside_stock: bool = False,
    total: int = 1_100_048_384,
) -> dict[str, Any]:
    """What a train run has; beside stock it is 20 % faster than that and keeps half of its activations."""

    def side(variant: str | None, factor: float, kept: int) -> list[dict[str, Any]]:
        at_peak = {
            "parameters_bytes": total * 2 + (trainable * 4 if trainable < total else 0),
            "buffers_bytes": 2**20,
            "gradients_bytes": trainable * 4,
            "optimizer_state_bytes": trainable * 8,
            "activations_bytes": kept,
            "temporary_bytes": 65 * 2**20,
        }
        return [
            *repeated("step_time_s", "s", [value * factor for value in seconds], variant),
            *repeated("forward_time_s", "s", [value * factor * 0.36 for value in seconds], variant),
            *repeated("backward_time_s", "s", [value * factor * 0.57 for value in seconds], variant),
            *repeated("optimizer_time_s", "s", [value * factor * 0.06 for value in seconds], variant),
            *repeated("train_tokens_per_s", "tokens/s", [512 / (value * factor) for value in seconds], variant),
            *(metric(name, "bytes", value, variant=variant) for name, value in at_peak.items()),
            metric("peak_bytes", "bytes", sum(at_peak.values()), variant=variant),
            metric("peak_rss_bytes", "bytes", sum(at_peak.values()) * 1.12, variant=variant),
        ]

    wave = {
        "parameters": [total * 2] * 40,
        "optimizer state": [trainable * 8] * 40,
        "gradients": [0] * 10 + [trainable * 4 * min(step, 10) // 10 for step in range(30)],
        "activations": [activations * step // 10 for step in range(10)]
        + [activations * (20 - step) // 20 for step in range(20)]
        + [0] * 10,
    }
    metrics = side(None, 1.0, activations)
    metrics += side("stock", 1.25, activations * 2) if beside_stock else []
    metrics += [
        metric("trainable_parameters", "parameters", trainable),
        metric("total_parameters", "parameters", total + (trainable if trainable < total else 0)),
    ]
    return succeeded(metrics, tensor_samples("memory", wave), "gradients_equal_stock")


def inference_result(speeds: dict[str, float], *, repeats: int = 5) -> dict[str, Any]:
    """What an inference run has: decoding speed by variant, and the rest that follows from it."""
    metrics = []
    base = speeds.get("base")
    for variant, speed in speeds.items():
        values = [speed * (1 + 0.01 * ((repeat * 7) % 5 - 2)) for repeat in range(repeats)]
        metrics += repeated("decode_tokens_per_s", "tokens/s", values, variant)
        metrics += repeated("decode_token_time_s", "s", [1 / value for value in values], variant)
        metrics += repeated("prefill_time_s", "s", [12 / value for value in values], variant)
        metrics += repeated("request_time_s", "s", [(12 + 64) / value for value in values], variant)
        metrics.append(metric("peak_bytes", "bytes", 2.3 * GIB, variant=variant))
        metrics.append(metric("weight_bytes_per_token", "bytes", 2.2 * GIB, variant=variant))
        if base and variant != "base":
            metrics += repeated("overhead_ratio", "ratio", [base / value for value in values], variant)
    return succeeded(metrics, [], "logits_equal_stock")


VARIANT_SPEEDS = {"base": 13.1, "adapter_disabled": 12.9, "adapter": 9.2, "merged": 13.0}


def one_of_each_kind(database: Database, model: str = "tinyllama-1.1b") -> dict[str, list[int]]:
    """Runs of the other kinds as people compare them, by kind."""
    merges = [
        (False, "stock", [2.31, 2.28, 2.40], 2.0),
        (False, "addmm", [0.11, 0.10, 0.10], 0.0),
        (False, "row_blocks", [0.31, 0.30, 0.33], 0.03),
        (True, "stock", [6.9, 7.1, 7.0], 6.02),
        (True, "row_blocks", [0.52, 0.55, 0.51], 0.06),
    ]
    found = {
        "merge": [
            store(
                database,
                document("merge", model, dora, strategy=strategy, repeats=3),
                merge_result(seconds, peak_weights=peak),
            )
            for dora, strategy, seconds, peak in merges
        ]
    }
    trains: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"adapter": None}, train_result([9.1, 9.3, 9.2], trainable=1_100_048_384)),
        ({}, train_result([7.4, 7.2, 7.3], trainable=12_615_680, activations=1300 * 2**20)),
        (
            {"train": {"gradient_checkpointing": True}},
            train_result([9.4, 9.5, 9.7], trainable=12_615_680, activations=120 * 2**20, beside_stock=True),
        ),
        ({"dora": True}, train_result([11.0, 11.2, 10.9], trainable=13_000_000, activations=1700 * 2**20)),
    ]
    found["train"] = [store(database, document("train", model, **fields), outcome) for fields, outcome in trains]
    found["inference"] = [
        store(database, document("inference", model), inference_result(VARIANT_SPEEDS)),
        store(
            database,
            document("inference", model, strategy="fused"),
            inference_result({**VARIANT_SPEEDS, "fused": 11.6}),
        ),
    ]
    return found


def failure(state: str, text: str) -> dict[str, Any]:
    """A result document of a run that has no result."""
    return {"state": state, "metrics": [], "checks": [], "samples": [], "error": {"kind": state, "text": text}}


def store(
    database: Database,
    document: dict[str, Any],
    outcome: dict[str, Any] | None,
    *,
    sweep: str | None = None,
    folder: Path | None = None,
    progress: dict[str, Any] | None = None,
) -> int:
    """Queue a spec and take it as far as given: to its result, or only to running where ``outcome`` is None."""
    with database.writing() as session:
        (run_id,) = queue.enqueue(session, [new_run(parse_spec(document))], sweep)
    with database.writing() as session:
        claimed = queue.claim(session, supervisor="1@1", devices=["cpu"], node=document.get("node"))
        assert claimed is not None
        assert claimed.id == run_id, "store runs before queueing others"
        queue.started(session, run_id, 1, 1.0, str(folder or "/nonexistent"))
        if progress:
            queue.progress(session, run_id, progress)
        if outcome is not None:
            queue.finish(session, run_id, outcome)
    return run_id


def queued(database: Database, *documents: dict[str, Any], sweep: str | None = None) -> list[int]:
    """Queue specs and leave them waiting."""
    with database.writing() as session:
        return queue.enqueue(session, [new_run(parse_spec(document)) for document in documents], sweep)


def lora_and_dora(database: Database, model: str = "tinyllama-1.1b") -> list[int]:
    """LoRA, stock DoRA and two faster strategies, as the Overview's button measures them."""
    variants = [
        (False, "stock", [0.21, 0.20, 0.22], 48),
        (True, "stock", [1.52, 1.49, 1.61], 210),
        (True, "zero_b_norm", [0.27, 0.26, 0.29], 50),
        (True, "factored_norm", [0.61, 0.66, 0.63], 55),
    ]
    return [
        store(
            database,
            init_document(model, dora, strategy, repeats=3),
            result(seconds, peak_bytes=peak * 2**20),
            sweep=None,
        )
        for dora, strategy, seconds, peak in variants
    ]


def node(name: str = "here", **fields: Any) -> NodeRow:
    """A ready node with one CPU, as a supervisor describes it; keywords replace fields."""
    versions = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
    ready: dict[str, Any] = {"is_head": name == "here", "state": "ready", "versions": versions, "devices": (CPU,)}
    return NodeRow(name=name, seen_at=time.time(), **{**ready, **fields})


def devices(database: Database, *more: NodeRow) -> None:
    """This machine and its device as the supervisor stores them, and other nodes."""
    with database.writing() as session:
        nodes.store(session, [node(), *more])
