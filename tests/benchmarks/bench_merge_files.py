"""Print time and memory of merging files against `merge_and_unload` plus `save_pretrained`, each in a fresh process.

Run by `make bench-merge-files`, or `python -m tests.benchmarks.bench_merge_files --models tinyllama-1.1b`. Base and
adapter (LoRA and DoRA, r = 16, all-linear, float32 factors with noise) are made of synthetic values in a temporary
folder, which needs three times the model's size and is deleted at the end. Imports are not part of either side's time.
Ours brings everything to the disk before it ends; the other side leaves that to the system, so the time of a following
`sync` is given for both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.table import HEADER, machine_line, row, save

RANK = 16
SHARD_BYTES = 5 * 10**9
ROOT = Path(__file__).resolve().parents[2]
SIDES = ("files", "stock")
LIMIT_BYTES = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tinyllama-1.1b,mistral-7b", help="catalog ids, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each side (default 3)")
    parser.add_argument("--adapters", default="lora,dora", help="lora, dora or both (default)")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made (default: the system's)")
    parser.add_argument("--side", nargs=4, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.side:
        print(json.dumps(run_side(*arguments.side)))
        return
    from engine.measure.environment import environment

    facts = environment()
    print(machine_line(facts), f"\nbfloat16, all-linear, r = {RANK}")
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory(prefix="merge-files-", dir=arguments.folder) as folder:
            figures = bench(model, Path(folder), arguments.rounds, arguments.adapters.split(","))
        print(f"\nwritten to {save(f'merge_files-{model}', facts, figures)}")


def bench(model: str, folder: Path, rounds: int, adapters: list[str]) -> dict[str, Any]:
    """Both sides of one model, interleaved, with what differs in their results."""
    start_s = time.perf_counter()
    size_bytes = make_base(model, folder / "base")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 2.2 * size_bytes:
        raise SystemExit(
            f"{folder} has {free_bytes / 1e9:.0f} GB free; two outputs of {size_bytes / 1e9:.1f} GB needed"
        )
    print(f"\n{model}: {size_bytes / 1e9:.2f} GB of synthetic weights written in {time.perf_counter() - start_s:.0f} s")
    found: dict[str, Any] = {"size_bytes": size_bytes}
    for adapter in adapters:
        make_adapter(model, folder / adapter, use_dora=adapter == "dora")
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                shutil.rmtree(folder / side, ignore_errors=True)
                runs[side].append(in_fresh_process(side, folder / "base", folder / adapter, folder / side))
        found[adapter] = {**runs, "difference": differences(folder / "files", folder / "stock")}
        print_runs(adapter, found[adapter])
    return found


def print_runs(adapter: str, found: dict[str, Any]) -> None:
    names = {"files": "files", "stock": "merge_and_unload + save_pretrained"}
    print(f"\n{adapter}\n{HEADER}")
    for side in SIDES:
        runs = found[side]
        print(row(f"{names[side]}: s", [run["seconds"] for run in runs]))
        print(row("  sync afterwards: s", [run["sync_s"] for run in runs]))
        limit = LIMIT_BYTES / 1e9 if side == "files" else None
        print(row("  anonymous peak: GB", [run["peak_extra_bytes"] / 1e9 for run in runs], limit))
        print(row("  resident peak with file pages: GB", [run["peak_extra_rss_bytes"] / 1e9 for run in runs]))
    largest = found["files"][0]["largest_tensor_bytes"]
    peaks = [run["peak_extra_bytes"] / largest for run in found["files"]]
    print(row(f"files: anonymous peak / largest tensor ({largest / 1e6:.0f} MB)", peaks, 2.5))
    share, error = found["difference"]["share"], found["difference"]["relative_error"]
    print(f"  {share * 100:.4f} % of the weights differ between the two; norm of the difference / norm: {error:.2e}")


def in_fresh_process(side: str, base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.bench_merge_files",
        "--side",
        side,
        str(base),
        str(adapter),
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_side(side: str, base: str, adapter: str, out: str) -> dict[str, Any]:
    """One side in this process, measured from when everything is imported."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    from engine.jobs.merge_files import merge
    from engine.measure.process_memory import PeakIncrease
    from engine.spec import MergeFilesSpec

    extra: dict[str, Any] = {}

    def files() -> None:
        done = merge(MergeFilesSpec(base=base, adapter=adapter, out=out), lambda progress: None)
        extra["largest_tensor_bytes"] = done["largest_tensor_bytes"]

    def stock() -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.save_pretrained(out, max_shard_size=SHARD_BYTES)

    work: Callable[[], None] = files if side == "files" else stock
    with PeakIncrease() as memory:
        start_s = time.perf_counter()
        work()
        seconds = time.perf_counter() - start_s
    start_s = time.perf_counter()
    os.sync()
    return {
        "seconds": seconds,
        "sync_s": time.perf_counter() - start_s,
        "peak_extra_bytes": memory.rss_anon_bytes,
        "peak_extra_rss_bytes": memory.rss_bytes,
        **extra,
    }


# --- what is merged -----------------------------------------------------------------------------------------------


def make_base(model: str, folder: Path) -> int:
    """Write a bundled model with synthetic bfloat16 weights in shards, without building it; returns its bytes."""
    from engine.merging.base_folder import INDEX
    from engine.merging.weight_file import TensorEntry, WeightFileWriter
    from engine.models import build_meta

    meta = build_meta(model)
    meta.config.dtype = "bfloat16"
    meta.config.save_pretrained(folder)
    entries = [
        TensorEntry(name, "BF16", tuple(value.shape), 0, value.numel() * 2) for name, value in meta.named_parameters()
    ]
    shards: list[list[TensorEntry]] = [[]]
    for entry in entries:
        if sum(other.size_bytes for other in shards[-1]) + entry.size_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    values = noise()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with WeightFileWriter(folder / name, shard, {"format": "pt"}) as writer:
            for entry in shard:
                for block in tiles(values, entry.size_bytes):
                    writer.write(block)
        weight_map |= {entry.name: name for entry in shard}
    total = sum(entry.size_bytes for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return total


def noise() -> memoryview:
    """A block of seeded normal numbers with a standard deviation of 0.02 in bfloat16; its length is odd."""
    import torch

    from engine.merging.tensors import memory_of

    block = torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    return memory_of(block.to(torch.bfloat16))


def tiles(block: memoryview, size_bytes: int) -> Iterator[memoryview]:
    while size_bytes > 0:
        part = block[: min(len(block), size_bytes)]
        yield part
        size_bytes -= len(part)


def make_adapter(model: str, folder: Path, use_dora: bool) -> None:
    """Save an adapter on every linear layer but the head, with noise in it, as PEFT saves it."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from torch import nn

    from engine.models import build_meta

    meta = build_meta(model)
    modules = {
        n: m for n, m in meta.named_modules() if isinstance(m, nn.Linear) and m is not meta.get_output_embeddings()
    }
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in modules.items():
        prefix = f"base_model.model.{name}"
        inputs, outputs = module.in_features, module.out_features
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.02
        if use_dora:
            sizes = 0.02 * inputs**0.5 * (1 + 0.1 * torch.randn(outputs, generator=generator))
            tensors[f"{prefix}.lora_magnitude_vector"] = sizes
    targets = sorted({name.rpartition(".")[2] for name in modules})
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=targets, use_dora=use_dora, task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")


def differences(ours: Path, theirs: Path) -> dict[str, float]:
    """The share of values that differ between two models on disk, and the norm of what differs over the norm."""
    from safetensors import safe_open

    from engine.merging.base_folder import open_base

    held = {name: shard.path for shard in open_base(theirs).shards for name in shard.tensors}
    different = total = 0
    squares = {"difference": 0.0, "value": 0.0}
    for shard in open_base(ours).shards:
        with safe_open(shard.path, "pt") as file:
            for name in shard.tensors:
                with safe_open(held[name], "pt") as other:
                    pair = [source.get_tensor(name).flatten() for source in (file, other)]
                for a, b in zip(*(values.split(2**24) for values in pair), strict=True):
                    total += a.numel()
                    different += int((a != b).count_nonzero())
                    squares["difference"] += float((a.float() - b.float()).norm()) ** 2
                    squares["value"] += float(b.float().norm()) ** 2
    return {"share": different / total, "relative_error": (squares["difference"] / squares["value"]) ** 0.5}


if __name__ == "__main__":
    main()
