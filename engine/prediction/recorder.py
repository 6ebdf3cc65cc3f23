"""Records a job's history of memory: the tracker of measured runs, told which module a tensor was made in."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from engine.measure.breakdown import BUFFERS, StepTracker
from engine.measure.tensors import TEMPORARY
from engine.prediction.fake import origins
from engine.prediction.stream import Change, Part, Stream


@contextlib.contextmanager
def no_chance_collection() -> Iterator[None]:
    """Keep Python from collecting garbage at moments that depend on what ran before, in the block.

    What is there before is set apart, garbage too: a collection that goes over all the libraries takes as long as a
    prediction.
    """
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Recorder(StepTracker):
    """Follows a job on one model; ``parts`` is what it saw, with the module in which each storage was first seen."""

    def __init__(self, model: nn.Module) -> None:
        self._origin_of = origins(model)
        self._names = {id(module): self._origin_of(name) for name, module in model.named_modules()}
        self._inside: list[str] = [""]
        self._owners = {
            id(tensor): self._origin_of(name) for name, tensor in (*_plain_tensors(model), *_registered(model))
        }
        super().__init__(model)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            # PyTorch asks for a tensor's device more often than it runs operations, each time through all modes.
            return args[0].fake_device
        return super().__torch_dispatch__(func, types, args, kwargs)

    def begin(self, phase: str) -> None:
        """Say that a part begins now. What only reference cycles still held is gone by then."""
        gc.collect()
        super().begin(phase)

    @contextlib.contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know which module runs, for as long as the block lasts."""
        handles = []
        for module in self._model.modules():
            handles.append(module.register_forward_pre_hook(self._entering(self._names[id(module)])))
            handles.append(module.register_forward_hook(self._leaving(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def origin(self, tensor: Tensor) -> str:
        """The parameter's own name, or the module that runs when the storage is first seen; "" outside of all."""
        return self._owners.get(id(tensor)) or self._inside[-1]

    def seen_in(self, tensor: Tensor) -> str:
        """The origin under which a tensor's storage was first seen."""
        return self._storages[tensor.untyped_storage()._cdata].origin

    def claim(self, model: nn.Module, category: str) -> None:
        """Say that what came into the model meanwhile is ``category``, or buffers, each under its own name."""
        origin_of = origins(model)
        for tensors, kind in ((model.named_parameters(), category), (model.named_buffers(), BUFFERS)):
            for name, tensor in tensors:
                storage = self._see(tensor, kind)
                if storage is not None and storage.category in (TEMPORARY, kind) and not storage.origin:
                    storage.category, storage.origin = kind, origin_of(name)

    def parts(self) -> Stream:
        """Everything since the recorder was made: a part before the first that was begun, then one for each."""
        changes = [Change(storage.category, storage.origin, change) for _, storage, change in self._events]
        starts = [0, *(first for first, _, _ in self._phases)]
        ends = [*starts[1:], len(changes)]
        names = ["before", *(name for _, _, name in self._phases)]
        return tuple(
            Part(name, tuple(changes[start:end])) for name, start, end in zip(names, starts, ends, strict=True)
        )

    def _entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self._inside.append(name)

    def _leaving(self) -> Callable[..., None]:
        def leave(*_: object) -> None:
            self._inside.pop()

        return leave


def _registered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are neither parameters nor buffers, such as the scales of quantised weights, as their module's."""
    for name, module in model.named_modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                yield name, value
