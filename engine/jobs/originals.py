"""Put a model's weights back exactly after each merge, without keeping a second model in memory where that can be.

Synthetic matrices are written again from their seeded block; others come back from a copy, in memory where there is
room for it and else in a temporary file. Does not undo changes to the module tree (``engine.snapshots`` does).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.models import BLOCK_ELEMENTS, BlockFill
from engine.spec import MergeSpec

# Of the memory that is free, a copy may take this share: the rest is for what is measured.
_MEMORY_SHARE = 0.4


class SeededWeights:
    """Where each matrix of a synthetic model lies in the seeded block; made before an adapter is attached."""

    def __init__(self, spec: MergeSpec, model: PreTrainedModel) -> None:
        self._places: dict[int, int] = {}
        position = 0
        # Each module's own parameters in turn, tied ones once: the order in which the model was filled.
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                self._places[id(parameter)] = position
                position = (position + parameter.numel()) % BLOCK_ELEMENTS
        self._sums = {id(parameter): _checksum(parameter.data) for parameter in model.parameters()}
        std = getattr(model.config.get_text_config(), "initializer_range", None)
        self._fill = BlockFill(float(std or 0.02), spec.seed, torch.device(spec.device))

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter still has the values of the block: some initialisations change base weights."""
        return id(parameter) in self._places and self._sums[id(parameter)] == _checksum(parameter.data)

    def write(self, parameter: nn.Parameter) -> None:
        """Write the block's values into the parameter's memory."""
        self._fill.position = self._places[id(parameter)]
        self._fill(parameter.data)


class Originals:
    """The values of some parameters, to be put back any number of times."""

    def __init__(self, parameters: Sequence[nn.Parameter], seeded: SeededWeights | None) -> None:
        self._seeded = seeded
        self._formats = [(parameter, parameter.dtype, parameter.shape) for parameter in parameters]
        self._from_seed = [parameter for parameter in parameters if seeded is not None and seeded.holds(parameter)]
        known = {id(parameter) for parameter in self._from_seed}
        rest = [parameter for parameter in parameters if id(parameter) not in known]
        size = sum(parameter.nbytes for parameter in rest)
        in_memory = size <= _MEMORY_SHARE * psutil.virtual_memory().available
        self._copy: _MemoryCopy | _FileCopy = _MemoryCopy(rest) if in_memory else _FileCopy(rest, size)

    def restore(self) -> None:
        """Give every parameter its dtype and values; its memory is kept where it can hold them."""
        for parameter, dtype, shape in self._formats:
            data = parameter.data
            if data.dtype != dtype or data.shape != shape or not data.is_contiguous():
                parameter.data = torch.empty(shape, dtype=dtype, device=data.device)
        if self._seeded is not None:
            for parameter in self._from_seed:
                self._seeded.write(parameter)
        self._copy.restore()


class _MemoryCopy:
    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._copies = [(parameter, parameter.detach().clone()) for parameter in parameters]

    def restore(self) -> None:
        for parameter, copy in self._copies:
            parameter.data.copy_(copy)


class _FileCopy:
    """Raw bytes in a nameless temporary file, which the system removes with the process."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: int) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size > free:
            raise MemoryError(
                f"out of memory: putting the weights back after each merge needs {size} bytes, more than is free in "
                f"memory or in the temporary folder ({free} bytes)"
            )
        self._parameters = parameters
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # lives as long as this object
        for parameter in parameters:
            view = _bytes(parameter.detach().contiguous().cpu())
            while view:
                view = view[self._file.write(view) :]

    def restore(self) -> None:
        self._file.seek(0)
        for parameter in self._parameters:
            on_cpu = parameter.device.type == "cpu"
            target = parameter.data if on_cpu else torch.empty_like(parameter.data, device="cpu")
            view = _bytes(target)
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise OSError("the temporary copy of the weights has become shorter")
                view = view[count:]
            if not on_cpu:
                parameter.data.copy_(target)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


def _checksum(tensor: Tensor) -> int:
    """A sum over the bits of a tensor: one read, wrong with a chance of nothing for values that were changed."""
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat = tensor.detach().contiguous().view(-1)
    whole = flat.numel() * flat.element_size() // 8 * 8 // flat.element_size()
    # Summed as words of 64 bits, which is the fastest reduction there is; wraps around.
    head = int(flat[:whole].view(torch.int64).sum()) if whole else 0
    return head + int(flat[whole:].view(size).sum())
