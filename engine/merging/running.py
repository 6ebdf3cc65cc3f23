"""Carry out a plan: shard by shard and tensor by tensor, with a block of a tensor and its factors in memory.

Decides nothing (``plan`` did) and measures nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from engine.merging.adapter_folder import AdapterFolder
from engine.merging.arithmetic import Addition, NotFiniteError, merged_slabs
from engine.merging.base_folder import CONFIG, INDEX, BaseFolder
from engine.merging.output_folder import OutputFolder
from engine.merging.plan import Change, LowRank, OutputShard, OutputTensor, Plan
from engine.merging.tensors import DTYPES, memory_of, read_float32, read_rows
from engine.merging.weight_file import TensorEntry, WeightFileWriter, header_bytes, read_into
from engine.result import Progress
from engine.spec import SpecError

Report = Callable[[Progress], None]
_COPY_BYTES = 4 * 2**20
# Consecutive checkpoint tensors of one layer's experts share two pairs of factors.
_KEPT_FACTORS = 4


@dataclass(frozen=True)
class Written:
    """What a run wrote, in bytes and files; a resumed run writes less."""

    bytes_written: int
    shards: int
    resumed_shards: int


def shard_size(shard: OutputShard) -> int:
    """The bytes of a shard's file."""
    header = header_bytes((tensor.entry for tensor in shard.tensors), shard.metadata)
    return len(header) + sum(tensor.entry.size_bytes for tensor in shard.tensors)


def remaining_bytes(plan: Plan, output: OutputFolder, base: BaseFolder) -> int:
    """What is still to be written."""
    shards = (shard_size(shard) for shard in plan.shards if not output.is_done(shard.name, shard_size(shard)))
    return sum(shards) + sum((base.path / name).stat().st_size for name in base.other_files)


def write_model(plan: Plan, base: BaseFolder, adapter: AdapterFolder, output: OutputFolder, report: Report) -> Written:
    """Write every shard that is not there yet, then everything else, and give the folder its name.

    Raises:
        SpecError: when merged values are not finite; what was finished before stays for the next run.
    """
    todo = [shard for shard in plan.shards if not output.is_done(shard.name, shard_size(shard))]
    progress = _Progress(report, plan, todo)
    written = 0
    with adapter.weights.path.open("rb", buffering=0) as adapter_file:
        factors = _Factors(adapter_file)
        for shard in todo:
            _write_shard(shard, base, factors, output, progress)
            written += shard_size(shard)
    for name in base.other_files:
        output.write_file(name, (base.path / name).read_bytes())
    if plan.index is not None:
        output.write_file(Path(INDEX), _json(plan.index))
    # Without its config the folder is no model; so it comes last.
    config = (base.path / CONFIG).read_bytes() if plan.config is None else _json(plan.config)
    output.write_file(Path(CONFIG), config)
    output.publish()
    return Written(written, len(plan.shards), len(plan.shards) - len(todo))


def _write_shard(
    shard: OutputShard, base: BaseFolder, factors: _Factors, output: OutputFolder, progress: _Progress
) -> None:
    path = output.unfinished(shard.name)
    entries = [tensor.entry for tensor in shard.tensors]
    with (
        (base.path / shard.name).open("rb", buffering=0) as base_file,
        WeightFileWriter(path, entries, shard.metadata) as writer,
    ):
        for tensor in shard.tensors:
            file = factors.file if tensor.file.path == factors.path else base_file
            for block in _blocks(tensor, file, factors):
                writer.write(block)
                progress.add(len(block))
            progress.finish_tensor()
    output.finish_shard(shard.name)


def _blocks(tensor: OutputTensor, file: FileIO, factors: _Factors) -> Iterator[memoryview]:
    """The bytes of one tensor of the output."""
    entry, source = tensor.entry, tensor.source
    if tensor.change is None and source.dtype == entry.dtype:
        buffer = memoryview(bytearray(min(_COPY_BYTES, source.size_bytes)))
        for position in range(0, source.size_bytes, _COPY_BYTES):
            block = buffer[: min(_COPY_BYTES, source.size_bytes - position)]
            read_into(file, source.start + position, block)
            yield block
        return
    columns = entry.shape[-1] if entry.shape else 1
    rows = entry.shape[-2] if len(entry.shape) > 1 else 1
    for matrix in range(math.prod(entry.shape[:-2])):
        addition = factors.addition(tensor.change, matrix, rows)

        def read(first: int, block: Tensor, matrix: int = matrix) -> None:
            read_rows(file, source, matrix * rows + first, block)

        try:
            for merged in merged_slabs(read, rows, columns, DTYPES[entry.dtype], addition):
                yield memory_of(merged)
        except NotFiniteError:
            raise SpecError(
                "adapter", f"merging it into {entry.name} gives values that are not finite; adapter or base is broken"
            ) from None


class _Factors:
    """The adapter's file, and its tensors as what is added to a matrix."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.path = Path(str(file.name))
        # Where the experts' factors lie in one tensor, many matrices in a row need it.
        self._whole = lru_cache(_KEPT_FACTORS)(lambda entry: read_float32(file, entry))

    def addition(self, change: Change | None, matrix: int, rows: int) -> Addition | None:
        """What is added to one matrix of a tensor (a tensor of experts has several)."""
        if change is None:
            return None
        if change.low_rank is None:
            assert change.bias is not None
            return Addition(torch.ones(1, 1), self._read(change.bias)[None], change.bias_scaling)
        low_rank = change.low_rank
        expert = matrix if change.expert is None else change.expert
        a, b = self._factors(low_rank, expert)
        left, right = (a.T, b.T) if low_rank.by_columns else (b, a)
        magnitude = None if low_rank.magnitude is None else self._read(low_rank.magnitude)
        left = left[change.first_row : change.first_row + rows]
        return Addition(left, right, low_rank.scaling, magnitude, low_rank.by_columns)

    def _factors(self, low_rank: LowRank, expert: int) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank)."""
        if low_rank.experts is None:
            return self._read(low_rank.a), self._read(low_rank.b)
        rank = low_rank.a.shape[0] // low_rank.experts
        a = read_float32(self.file, low_rank.a, expert * rank, rank)
        b = self._whole(low_rank.b).view(low_rank.b.shape[0], rank, low_rank.experts)[:, :, expert]
        return a, b.contiguous()

    def _read(self, entry: TensorEntry) -> Tensor:
        return read_float32(self.file, entry)


class _Progress:
    """Counts tensors and bytes, and guesses the time left from the bytes."""

    def __init__(self, report: Report, plan: Plan, todo: list[OutputShard]) -> None:
        self._report = report
        self._total = sum(1 for _ in plan.tensors)
        self._done = self._total - sum(len(shard.tensors) for shard in todo)
        self._bytes_left = sum(tensor.entry.size_bytes for shard in todo for tensor in shard.tensors)
        self._bytes_done = 0
        self._start_s = time.monotonic()
        self._tell()

    def add(self, size_bytes: int) -> None:
        """Some bytes of a tensor were written."""
        self._bytes_done += size_bytes
        self._bytes_left -= size_bytes
        self._tell()

    def finish_tensor(self) -> None:
        """A tensor was written."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        elapsed_s = time.monotonic() - self._start_s
        eta_s = elapsed_s / self._bytes_done * self._bytes_left if self._bytes_done and elapsed_s > 1 else None
        self._report(Progress("merging", self._done, self._total, eta_s))


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
