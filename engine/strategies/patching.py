"""Change PEFT for the time of a ``with`` block and put it back. Knows nothing of any particular strategy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

Inject = Callable[..., None]


@contextlib.contextmanager
def replaced(owner: type | ModuleType, name: str, replacement: Any) -> Iterator[Any]:
    """Set an attribute of a class or module for the time of the block; yields what was there, inherited or its own."""
    original = getattr(owner, name)
    was_own = name in vars(owner)
    setattr(owner, name, replacement)
    try:
        yield original
    finally:
        if was_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def injection(around: Callable[[Inject, BaseTuner, nn.Module, str], None]) -> Iterator[None]:
    """Have ``around(inject, tuner, model, adapter_name)`` run in place of each injection of an adapter into a model.

    ``inject()`` is PEFT's own injection with the arguments it was called with. It may be called several times. PEFT
    casts adapters to float32 and loads saved ones only after the injection, so they see what ``around`` leaves behind.
    """
    original = BaseTuner.inject_adapter

    @functools.wraps(original)
    def inject_adapter(self: BaseTuner, model: nn.Module, adapter_name: str, *arguments: Any, **named: Any) -> None:
        around(lambda: original(self, model, adapter_name, *arguments, **named), self, model, adapter_name)

    with replaced(BaseTuner, "inject_adapter", inject_adapter):
        yield
