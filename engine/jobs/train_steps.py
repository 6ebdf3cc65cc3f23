"""A model, its optimizer and its data, and one real training step of them, as specified or as stock.

Builds and runs; measures nothing but the step it is asked to time. ``engine.jobs.train`` decides what is run when.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import torch
from peft import LNTuningModel, TaskType
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine import adapters
from engine.measure.timing import Laps, Timer
from engine.models import CLASSES, build_model
from engine.result import Progress
from engine.spec import FreshAdapter, Optimizer, SavedAdapter, SpecError, TrainSpec
from engine.strategies import losses
from engine.strategies import train as strategies

Report = Callable[[Progress], None]
LEARNING_RATE = 1e-4
_ADAPTER = "default"
_TASK_TYPES = {"causal_lm": TaskType.CAUSAL_LM, "sequence_classification": TaskType.SEQ_CLS}


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One way to run the step: as specified (``variant`` None), or PEFT as it comes (``stock``)."""

    variant: str | None
    strategy: str = "stock"
    gradient_checkpointing: bool = False
    loss_chunks: int = 1
    sequence_tiles: int = 1
    own_adapter_dtype: bool = False

    @property
    def words(self) -> str:
        """How the side is called in progress and in checks."""
        return self.variant or "as specified"


def sides_of(spec: TrainSpec) -> list[Side]:
    """The side that was asked for, and the stock side beside it where they differ."""
    section = spec.train
    narrow = spec.adapter is not None and spec.adapter.adapter_dtype != "float32"
    asked = Side(
        None, spec.strategy, section.gradient_checkpointing, section.loss_chunks, section.sequence_tiles, narrow
    )
    stock = Side("stock")
    return [asked] if dataclasses.replace(asked, variant="stock") == stock else [asked, stock]


def prepare(spec: TrainSpec, report: Report) -> Trainer:
    """The spec's model, built and with its adapter on, and all it needs to take steps.

    Raises:
        SpecError: if the model cannot be built, PEFT refuses the adapter, or nothing could be trained.
    """
    report(Progress("building model"))
    base = build_model(spec, report)
    base_ids = {id(parameter) for parameter in base.parameters()}
    report(Progress("attaching adapter"))
    return Trainer(spec, attached(base, spec), base_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step and of its parts, which add up to it but for the time between them."""

    step_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Random tokens (batch, context) and what to predict from them: the tokens themselves, or a class each."""

    input_ids: Tensor
    labels: Tensor


class Watch(Protocol):
    """What is told where a step is."""

    def begin(self, part: str) -> None:
        """A part of the step begins."""

    def forward_ended(self, loss: Tensor) -> None:
        """The loss is there, and all that the backward pass needs."""

    def backward_ended(self) -> None:
        """The gradients are there."""

    def optimizer_ended(self, optimizer: torch.optim.Optimizer) -> None:
        """The parameters are new, the gradients still there."""


class Trainer:
    """The model of a train spec with its adapter on, ready to take steps."""

    def __init__(self, spec: TrainSpec, model: nn.Module, base_ids: Collection[int] = ()) -> None:
        self.spec = spec
        self.device = torch.device(spec.device)
        self.model = model
        self.base_ids = base_ids
        self.batch = random_batch(self.model, spec, spec.train.batch_size, spec.train.context_length)
        self.optimizers: dict[bool, torch.optim.Optimizer] = {}
        self._compiled: Any = None
        self._configured: dict[Side, Configured] = {}

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def optimizer(self, side: Side) -> torch.optim.Optimizer:
        """The optimizer of a side. Sides share one unless they train in different dtypes."""
        if side.own_adapter_dtype not in self.optimizers:
            self.optimizers[side.own_adapter_dtype] = make_optimizer(self.spec.train.optimizer, self.trained)
        return self.optimizers[side.own_adapter_dtype]

    def step(self, side: Side) -> StepTimes:
        """One timed step of a side."""
        with self.active(side):
            return self.step_as_is(side)

    def step_as_is(self, side: Side, watch: Watch | None = None) -> StepTimes:
        """One step of a side that is active already: forward and backward for each part of the batch, then the update.

        With a ``watch``, which slows Python down, the seconds mean nothing. An error gets a note on where it arose.
        """
        laps, optimizer, part = Laps(self.device), self.optimizer(side), "forward"

        def begin(name: str) -> None:
            nonlocal part
            part = name
            laps.mark(name)
            if watch is not None:
                watch.begin(name)

        try:
            with Timer(self.device) as whole:
                for _ in range(self.spec.train.accumulation):
                    begin("forward")
                    loss = self.loss(side)
                    if watch is not None:
                        watch.forward_ended(loss)
                    begin("backward")
                    loss.backward()
                    del loss
                    if watch is not None:
                        watch.backward_ended()
                begin("optimizer")
                optimizer.step()
                if watch is not None:
                    watch.optimizer_ended(optimizer)
                optimizer.zero_grad(set_to_none=True)
                laps.mark("end")
        except Exception as error:
            error.add_note(f"in the {part} pass of a training step ({side.words})")
            raise
        seconds = laps.seconds()
        return StepTimes(whole.seconds, seconds["forward"], seconds["backward"], seconds["optimizer"])

    def loss(self, side: Side) -> Tensor:
        """The loss of one part of the batch, divided so that accumulated gradients are those of the whole."""
        model = self._model_of(side)
        output = model(input_ids=self.batch.input_ids, labels=self.batch.labels, use_cache=False)
        loss: Tensor = output.loss
        return loss if self.spec.train.accumulation == 1 else loss / self.spec.train.accumulation

    @contextlib.contextmanager
    def active(self, side: Side) -> Iterator[None]:
        """The model as this side has it, for the time of the block."""
        with contextlib.ExitStack() as stack:
            if self._is_narrow and not side.own_adapter_dtype:
                stack.enter_context(wide_adapter(self.model))
            if side not in self._configured:
                self._configured[side] = Configured(self.model, side)
            stack.enter_context(self._configured[side]())
            yield

    @property
    def _is_narrow(self) -> bool:
        return self.spec.adapter is not None and self.spec.adapter.adapter_dtype != "float32"

    def _model_of(self, side: Side) -> Any:
        if side.strategy != "compiled":
            return self.model
        if self._compiled is None:
            self._compiled = torch.compile(self.model)
        return self._compiled


class Configured:
    """A model with a side's strategy and memory savers on: ``with configured():``, any number of times."""

    def __init__(self, model: nn.Module, side: Side) -> None:
        self._changes: list[Callable[[], contextlib.AbstractContextManager[None]]] = []
        if side.strategy == "fused":
            self._changes.append(strategies.fused)
        if side.loss_chunks > 1:
            chunked = losses.ChunkedLoss(model, side.loss_chunks)
            self._changes.append(lambda: chunked)
        if side.sequence_tiles > 1:
            tiled = losses.TiledMlp(model, side.sequence_tiles)
            self._changes.append(lambda: tiled)
        if side.gradient_checkpointing:
            checkpointing = _Checkpointing(base_model(model))
            self._changes.append(lambda: checkpointing)

    def __call__(self) -> contextlib.ExitStack:
        """The context to enter."""
        with contextlib.ExitStack() as stack:
            for change in self._changes:
                stack.enter_context(change())
            return stack.pop_all()


class _Checkpointing(contextlib.AbstractContextManager[None]):
    """transformers' gradient checkpointing, switched on and off without making anything anew.

    Compiled code is valid only for the very functions and hooks that it was compiled with.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        modules = list(model.modules())
        hooks_before = {id(module): set(module._forward_hooks) for module in modules}
        model.activation_checkpointing_enable({"use_reentrant": False})
        self._flagged = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
        # The embeddings get a hook that has their output require a gradient.
        self._hooks = [
            (module._forward_hooks, number, hook)
            for module in modules
            for number, hook in module._forward_hooks.items()
            if number not in hooks_before[id(module)]
        ]
        self.__exit__()

    def __enter__(self) -> None:
        for module in self._flagged:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        for hooks, number, hook in self._hooks:
            hooks[number] = hook

    def __exit__(self, *_: object) -> None:
        for module in self._flagged:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        for hooks, number, _hook in self._hooks:
            del hooks[number]


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    found: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator, assignment]
    return found


def random_batch(model: nn.Module, spec: TrainSpec, batch_size: int, context_length: int) -> Batch:
    """Seeded random tokens and labels. Token 0 is left out of classifiers' input, which they take for padding.

    Tokens whose embeddings an adapter trains come first, because without them nothing would be trained.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    vocabulary = base_model(model).config.get_text_config().vocab_size
    lowest = 0 if spec.task == "causal_lm" else 1
    tokens = torch.randint(lowest, vocabulary, (batch_size, context_length), generator=generator).to(spec.device)
    if spec.task == "causal_lm":
        config = getattr(model, "peft_config", {}).get(_ADAPTER)
        trained = list(getattr(config, "token_indices", None) or [])[:context_length]
        tokens[:, : len(trained)] = torch.tensor(trained, dtype=tokens.dtype, device=tokens.device)
        return Batch(tokens, tokens.clone())
    return Batch(tokens, torch.randint(CLASSES, (batch_size,), generator=generator).to(spec.device))


def make_optimizer(name: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer, without state before its first step."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=LEARNING_RATE)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=LEARNING_RATE)
    return optimizer


def attached(model: PreTrainedModel, spec: TrainSpec) -> nn.Module:
    """The model in training mode with its adapter, or with every parameter trainable where there is none.

    Raises:
        SpecError: if PEFT refuses the adapter, nothing could be trained, or the model has no checkpointing.
    """
    if spec.train.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise SpecError("train.gradient_checkpointing", f"must be false: {spec.model} has none")
    return (model.requires_grad_(True) if spec.adapter is None else _with_adapter(model, spec, spec.adapter)).train()


def _with_adapter(model: PreTrainedModel, spec: TrainSpec, adapter: FreshAdapter | SavedAdapter) -> nn.Module:
    groups = adapters.list_groups(model)
    config = (
        adapters.peft_config(adapter, groups)
        if isinstance(adapter, FreshAdapter)
        else adapters.saved_config(adapter, groups)
    )
    config.task_type = _TASK_TYPES[spec.task]
    torch.manual_seed(spec.seed)
    found: Any = adapters.attach(model, adapter, config=config)
    if not isinstance(adapter, FreshAdapter):
        # PEFT freezes an adapter that it loads.
        if config.is_prompt_learning:
            found.prompt_encoder.requires_grad_(True)
        else:
            found.set_adapter(_ADAPTER)
    if not any(parameter.requires_grad for parameter in found.parameters()):
        raise SpecError("adapter", "leaves nothing to train")
    return found


@contextlib.contextmanager
def wide_adapter(model: nn.Module) -> Iterator[None]:
    """An adapter in float32, PEFT's own default, for the time of the block; then what it has learned in its dtype."""
    # LayerNorm tuning trains copies of whole layers, which PEFT leaves in the model's dtype.
    copies = isinstance(getattr(model, "base_model", None), LNTuningModel)
    kept = [] if copies else [(tensor, tensor.dtype) for tensor in _what_peft_widens(model)]
    try:
        for tensor, _ in kept:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in kept:
            tensor.data = tensor.data.to(dtype)


def _what_peft_widens(model: nn.Module) -> Iterator[Tensor]:
    """What ``cast_adapter_dtype`` of PEFT casts, which itself puts new parameters in the place of those it finds."""
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for holder in layer.modules():
            if isinstance(holder, nn.ModuleDict | nn.ParameterDict | BufferDict) and _ADAPTER in holder:
                found = holder[_ADAPTER]
                for tensor in [found] if isinstance(found, Tensor) else found.parameters():
                    if tensor.dtype in (torch.bfloat16, torch.float16):
                        yield tensor
