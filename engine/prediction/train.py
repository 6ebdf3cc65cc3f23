"""The history of a training step's memory, recorded from the real step under fake tensors.

Forward and backward run once; the update runs twice, because optimizers make their state in the first, and the peak of
training is that of a later step. What the state takes is there from the beginning of the step that is given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import _default_to_fused_or_foreach
from transformers import PretrainedConfig

from engine.jobs.train_steps import Trainer, attached, sides_of
from engine.measure.breakdown import OPTIMIZER_STATE, PARAMETERS
from engine.models import build_meta
from engine.prediction import fake_bitsandbytes
from engine.prediction.attaching import attaching
from engine.prediction.fake import Numbers, counted, decided, fake_
from engine.prediction.recorder import Recorder, no_chance_collection
from engine.prediction.stream import Part, Stream, net
from engine.quantization import quantize
from engine.spec import TrainSpec

Update = tuple[str, bool, bool, tuple[object, ...]]
# Half of a step's operations are the optimizer's, and the same at each context length.
_SEEN: dict[Update, Stream] = {}
_MOST_SEEN = 32


def record(spec: TrainSpec, config: PretrainedConfig, on_gpu: bool = False) -> tuple[Part, Stream]:
    """What is alive before a training step (from the second on), and the step's parts; quantised layers as on a GPU.

    Raises:
        SpecError: one sentence, when the model cannot be built or PEFT refuses the adapter.
    """
    with fake_bitsandbytes.standing_in(spec, on_gpu):
        before, *parts = _recorded(spec, config, on_gpu)
    state = [change for part in parts if part.name == "first update" for change in part.changes]
    kept = net("before", [before, Part("state", tuple(c for c in state if c.category == OPTIMIZER_STATE))])
    return kept, tuple(part for part in parts if part.name != "first update")


def _recorded(spec: TrainSpec, config: PretrainedConfig, on_gpu: bool) -> Stream:
    """The parts of a first step, and of the update that follows the one which makes the optimizer's state."""
    device = torch.device(spec.device)
    base = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, config, spec.task)
    if spec.quantization is not None:
        quantize(base, spec.quantization)
    with attaching():
        model = attached(base, spec)
    mode = FakeTensorMode()
    fake_(model, mode, device)
    side = sides_of(spec)[0]
    with no_chance_collection(), decided(), mode, Numbers(counted(spec)):
        trainer = Trainer(spec, model)
        with trainer.active(side):
            recorder = Recorder(model)
            recorder.watch(fake_bitsandbytes.scales(model), PARAMETERS)
            with recorder, recorder.watching_recomputation(), recorder.following_modules():
                for _ in range(spec.train.accumulation):
                    recorder.begin("forward")
                    loss = trainer.loss(side)
                    recorder.forward_ended()
                    recorder.begin("backward")
                    loss.backward()
                    del loss
                    recorder.backward_ended()
                recorder.begin("first update")
                update = _update(spec.train.optimizer, on_gpu, model, recorder)
                if update in _SEEN:
                    *step, _ = recorder.parts()
                    return (*step, *_SEEN[update])
                optimizer = trainer.optimizer(side)
                optimizer.step()
                recorder.optimizer_ended(optimizer)
                recorder.begin("optimizer")
                optimizer.step()
                recorder.begin("release")
                optimizer.zero_grad(set_to_none=True)
        # Here, as the trainer's end gives all of it back.
        parts = recorder.parts()
        if len(_SEEN) == _MOST_SEEN:
            _SEEN.clear()
        _SEEN[update] = parts[-3:]
        return parts


def _update(optimizer: str, on_gpu: bool, model: nn.Module, recorder: Recorder) -> Update:
    """What decides the update's history: the trained parameters and their gradients, and where these were made."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    tensors = tuple((name, p.shape, p.stride(), p.dtype, _gradient(p.grad, recorder)) for name, p in trained)
    _, all_at_once = _default_to_fused_or_foreach([p for _, p in trained], differentiable=False)
    return optimizer, on_gpu, all_at_once, tensors


def _gradient(gradient: Tensor | None, recorder: Recorder) -> object:
    return None if gradient is None else (gradient.stride(), gradient.dtype, recorder.seen_in(gradient))
