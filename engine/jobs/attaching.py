"""A base model that adapters are attached to and taken off again, with progress. Measures nothing itself."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator

import torch
from peft import PeftModel, PeftType
from torch import Tensor

from engine import adapters
from engine.models import build_model
from engine.result import Progress
from engine.spec import FreshAdapter, InitSpec
from engine.strategies import init as strategies

Report = Callable[[Progress], None]
FORWARD_TOKENS = 8
_REPORT_INTERVAL_S = 0.1


class Bench:
    """The model of an init spec and the one adapter config that is attached to it again and again."""

    def __init__(self, spec: InitSpec, report: Report, attaches: int) -> None:
        report(Progress("building model"))
        self.spec = spec
        self.device = torch.device(spec.device)
        self.model = build_model(spec, report)
        self.base = {id(parameter) for parameter in self.model.parameters()}
        self.stages: list[strategies.Stage] = []
        self.module_names: list[str] = []
        groups = adapters.list_groups(self.model)
        adapter = spec.adapter
        self._config = (
            adapters.peft_config(adapter, groups)
            if isinstance(adapter, FreshAdapter)
            else adapters.saved_config(adapter, groups)
        )
        self._snapshot = adapters.snapshot(self.model, spec.adapter)
        self._report = report
        self._attaches_left = attaches
        self._attach_s: list[float] = []

    @property
    def is_lora(self) -> bool:
        """Whether the adapter is of LoRA's family (DoRA, PiSSA, ... are)."""
        return self._config.peft_type == PeftType.LORA

    @property
    def input_ids(self) -> Tensor:
        """The same few random tokens for every forward pass, (1, FORWARD_TOKENS)."""
        generator = torch.Generator().manual_seed(self.spec.seed)
        vocabulary = self.model.config.get_text_config().vocab_size
        return torch.randint(vocabulary, (1, FORWARD_TOKENS), generator=generator).to(self.device)

    @contextlib.contextmanager
    def attached(
        self,
        phase: str,
        strategy: str | None = None,
        around: contextlib.AbstractContextManager[object] | None = None,
    ) -> Iterator[PeftModel]:
        """The model with its adapter on; the model is put back when the block ends.

        Uses the spec's strategy unless another is named. ``around`` is entered just for the attaching, to measure it.
        """
        config = copy.deepcopy(self._config)
        on_module = self._announce(phase)
        self.stages = []
        torch.manual_seed(self.spec.seed)
        start = time.perf_counter()
        try:
            with (
                around or contextlib.nullcontext(),
                strategies.apply(strategy or self.spec.strategy, self.stages.append),
            ):
                model = adapters.attach(self.model, self.spec.adapter, config=config, on_module=on_module)
            self._attach_s.append(time.perf_counter() - start)
            self._attaches_left -= 1
            yield model
        finally:
            self._snapshot.restore()

    def report(self, phase: str) -> None:
        """Say what goes on now that is not attaching."""
        self._report(Progress(phase, eta_s=self._seconds_left(0.0)))

    def _announce(self, phase: str) -> Callable[[str], None]:
        """Report the phase, and return what counts and reports its modules at most ten times a second."""
        total = len(self.module_names)
        self._report(Progress(phase, 0, total, self._seconds_left(0.0)))
        start = last = time.perf_counter()
        done = self.module_names = []

        def on_module(name: str) -> None:
            nonlocal last
            done.append(name)
            now = time.perf_counter()
            if now - last >= _REPORT_INTERVAL_S:
                last = now
                self._report(Progress(phase, len(done), total, self._seconds_left(now - start)))

        return on_module

    def _seconds_left(self, elapsed_s: float) -> float | None:
        """The attaches still to come, each as long as the mean so far; ``None`` before there was one."""
        if not self._attach_s:
            return None
        mean_s = sum(self._attach_s) / len(self._attach_s)
        return max(0.0, mean_s * self._attaches_left - elapsed_s)
