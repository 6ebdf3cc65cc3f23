"""Read and write safetensors files tensor by tensor, without torch and without mapping them into memory.

The library writes a whole dictionary of tensors at once; here the header comes first and each tensor's bytes follow
as they are made. The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes with the header's length
as an unsigned little-endian integer; the header, a JSON object of ``name -> {dtype, shape, data_offsets}`` with
offsets relative to the byte after it, and optionally ``__metadata__``, a map from text to text; then the data,
row-major and little-endian, which the offsets cover without gaps. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.sentences import one_line

_LENGTH_BYTES = 8
# The library's own limit.
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
# The library aligns the data to this.
_ALIGNMENT = 8
DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}


class WeightFileError(ValueError):
    """A file that is no whole safetensors file; the text is one sentence without the file's name as subject."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its dtype as the format names it, its shape, and where its bytes are in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WeightFile:
    """What a safetensors file's header says; ``tensors`` are in the order of their data."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    size_bytes: int


def read_header(path: Path) -> WeightFile:
    """Read and check a file's header against the file's length; reads no tensor.

    Raises:
        WeightFileError: when it is missing, truncated or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size_bytes < _LENGTH_BYTES or not 2 <= length <= _MAX_HEADER_BYTES:
                raise WeightFileError(f"{path.name} is not a safetensors file")
            if _LENGTH_BYTES + length > size_bytes:
                raise WeightFileError(f"{path.name} is truncated: it ends inside its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise WeightFileError(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise WeightFileError(f"{path.name} has a damaged header") from None
    if not isinstance(header, dict):
        raise WeightFileError(f"{path.name} has a damaged header")
    metadata = header.pop(_METADATA, None) or {}
    data_start = _LENGTH_BYTES + length
    entries = sorted((_entry(path, name, value, data_start) for name, value in header.items()), key=_position)
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise WeightFileError(f"{path.name} has a damaged header: {entry.name} does not follow the tensor before")
        position += entry.size_bytes
    if position != size_bytes:
        what = "is truncated" if position > size_bytes else "is longer than its header says"
        raise WeightFileError(f"{path.name} {what}: it has {size_bytes} bytes and its header tells of {position}")
    return WeightFile(path, {entry.name: entry for entry in entries}, metadata, size_bytes)


def read_into(file: FileIO, position: int, buffer: memoryview) -> None:
    """Fill ``buffer`` with the bytes of an unbuffered file from ``position`` on.

    Raises:
        WeightFileError: when the file ends before.
    """
    file.seek(position)
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise WeightFileError(f"{Path(str(file.name)).name} became shorter while it was read")
        done += count


def header_bytes(tensors: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file with these tensors in this order; their ``start`` is not looked at."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.size_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


class WeightFileWriter:
    """Writes a file's header at once and its tensors' bytes as they come; leaving the block makes sure that all came.

    The bytes are on the disk, not only handed to the system, when the block has ended without an error.
    """

    def __init__(self, path: Path, tensors: Iterable[TensorEntry], metadata: Mapping[str, str]) -> None:
        self._path = path
        tensors = list(tensors)
        self._header = header_bytes(tensors, metadata)
        self._size_bytes = len(self._header) + sum(tensor.size_bytes for tensor in tensors)
        self._written = 0

    def __enter__(self) -> Self:
        # Unbuffered: blocks are large, and a buffer would be one more copy.
        self._file = self._path.open("wb", buffering=0)
        self.write(memoryview(self._header))
        return self

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        done = 0
        while done < len(data):
            done += self._file.write(data[done:]) or 0
        self._written += done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._written == self._size_bytes, f"{self._written} bytes of {self._size_bytes} were written"
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _position(entry: TensorEntry) -> tuple[int, int]:
    # An empty tensor starts where the next one does.
    return entry.start, entry.size_bytes


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape, (start, end) = str(value["dtype"]), tuple(map(int, value["shape"])), value["data_offsets"]
        size_bytes = int(end) - int(start)
        fits = min(shape, default=0) >= 0 and 0 <= int(start) <= int(end)
    except (KeyError, TypeError, ValueError):
        raise WeightFileError(f"{path.name} has a damaged header: {name[:80]} is not described") from None
    if not fits or (dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != size_bytes):
        raise WeightFileError(f"{path.name} has a damaged header: {name[:80]} does not have the size of its shape")
    return TensorEntry(name, dtype, shape, data_start + int(start), size_bytes)
