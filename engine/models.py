"""Build a causal language model, or one with a classification head, from the catalog, a local folder or a hub id.

Synthetic weights are tiles of one seeded block of normal numbers, written at memory speed; computed buffers (rotary
frequencies and the like) are the model's own. Attaches no adapter and measures nothing. Remote code and pickled weights
are never loaded.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from engine import catalog
from engine.catalog import sources
from engine.quantization import quantize
from engine.result import Progress
from engine.spec import Measured, SpecError, Task

# A prime number of elements: rows of a weight start at ever different places of the block, so no two rows are equal.
BLOCK_ELEMENTS = 4_194_301
# Modules that mix matrices and vectors get their own initialisation up to this size; it runs at generator speed.
_OWN_INIT_ELEMENTS = 2**24
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_HUGE_PAGE_BYTES = 2**21
_PAGE_THREADS = 2
CLASSES = 2
"""The classes of a model for sequence classification."""
_AUTO_CLASSES: dict[Task, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
}
_WHAT: dict[Task, str] = {
    "causal_lm": "causal language model",
    "sequence_classification": "model for sequence classification",
}


def model_config(name: str) -> PretrainedConfig:
    """The transformers config of a bundled model, a local folder or a hub id.

    Raises:
        SpecError: one sentence on ``model``, when there is no such model or its type is not supported.
    """
    if name in catalog.models():
        values = dict(catalog.model(name).config)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        folder = sources.config_folder(name)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except sources.SourceError as error:
        raise SpecError("model", str(error)) from None
    except Exception as error:  # what a broken config.json raises depends on the model's own code
        raise SpecError(
            "model", f"{name} has a config.json that transformers cannot read ({_one_line(error)})"
        ) from None


def build_meta(
    name: str,
    dtype: torch.dtype = torch.bfloat16,
    attention: str = "eager",
    config: PretrainedConfig | None = None,
    task: Task = "causal_lm",
) -> PreTrainedModel:
    """The model with its parameters on the ``meta`` device (ties kept) and its buffers computed for real.

    Raises:
        SpecError: one sentence, when the model or the attention implementation cannot be built.
    """
    config = config or model_config(name)
    if task == "sequence_classification":
        _make_classifier(config)
    try:
        with init_empty_weights(include_buffers=False):
            model = _AUTO_CLASSES[task].from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except ImportError as error:
        raise SpecError("attention", f"{attention} cannot be used here ({_one_line(error)})") from None
    except Exception as error:  # what impossible sizes raise depends on the model's own code
        if "attention implementation" in str(error):
            raise SpecError("attention", f"{name} has no {attention}; use eager") from None
        raise SpecError("model", f"{name} cannot be built as a {_WHAT[task]} ({_one_line(error)})") from None
    # init_empty_weights replaces parameters one by one, which parts tied ones.
    model.tie_weights()
    return model


def _make_classifier(config: PretrainedConfig) -> None:
    """Give a config what a classifier needs: the model finds each sequence's last token by the padding token."""
    config.num_labels = CLASSES
    text = config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = config.pad_token_id = 0


def supported_attention(model: PreTrainedModel) -> tuple[str, ...]:
    """The attention implementations that the model's code offers, whatever this machine has."""
    optional = (("sdpa", model._supports_sdpa), ("flash_attention_2", model._supports_flash_attn))
    return ("eager", *(name for name, supported in optional if supported))


def build_model(spec: Measured, report: Callable[[Progress], None] | None = None) -> PreTrainedModel:
    """The spec's base model in eval mode on its device, with synthetic or pretrained weights.

    Raises:
        SpecError: one sentence, when the model cannot be built.
    """
    if spec.weights == "pretrained":
        model = _load_pretrained(spec)
    else:
        model = build_meta(spec.model, getattr(torch, spec.dtype), spec.attention, task=spec.task)
        _fill(model, torch.device(spec.device), spec.seed, report)
    if spec.quantization is not None:
        quantize(model, spec.quantization)
    return model.eval()


def _load_pretrained(spec: Measured) -> PreTrainedModel:
    if spec.model in catalog.models():
        raise SpecError(
            "weights", f"{spec.model} is bundled without weights; use synthetic, or a local folder or hub id"
        )
    try:
        source, local = sources.weights_source(spec.model)
    except sources.SourceError as error:
        raise SpecError("model", str(error)) from None
    named = {}
    if spec.task == "sequence_classification":
        named["config"] = model_config(spec.model)
        _make_classifier(named["config"])
    try:
        model: PreTrainedModel = _AUTO_CLASSES[spec.task].from_pretrained(
            source,
            **named,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
        )
    except ImportError as error:
        raise SpecError("attention", f"{spec.attention} cannot be used here ({_one_line(error)})") from None
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise SpecError("model", f"{spec.model} cannot be loaded from safetensors ({_one_line(error)})") from None
    model.to(torch.device(spec.device))  # type: ignore[arg-type]  # its decorator hides `to` being a method
    return model


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:240].rstrip(".")


def _fill(model: PreTrainedModel, device: torch.device, seed: int, report: Callable[[Progress], None] | None) -> None:
    """Materialise every parameter on ``device`` and give it values; tied parameters stay tied."""
    if device.type != "cpu":
        _move_buffers(model, device)
    config = model.config.get_text_config()
    fill = BlockFill(float(getattr(config, "initializer_range", None) or 0.02), seed, device)
    empty = {id(parameter): parameter for parameter in model.parameters()}
    total = sum(parameter.numel() * parameter.element_size() for parameter in empty.values())
    done = 0
    # The kernel backs fresh memory on these threads, ahead of the one that writes to it.
    with torch.no_grad(), ThreadPoolExecutor(_PAGE_THREADS) as threads:
        made = {key: threads.submit(_materialise, parameter, device) for key, parameter in empty.items()}
        ready: dict[int, nn.Parameter] = {}
        for module in model.modules():
            fresh = []
            for name, old in list(_own_parameters(module)):
                if id(old) not in ready:
                    ready[id(old)] = made[id(old)].result()
                    fresh.append(ready[id(old)])
                    done += old.numel() * old.element_size()
                # Not setattr: a parameter that is already there under this name is replaced, never re-registered.
                module._parameters[name] = ready[id(old)]
            if fresh:
                _give_values(model, module, fresh, fill)
                if report is not None:
                    report(Progress("weights", done, total))


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module._parameters.items() if parameter is not None)


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _materialise(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    if device.type == "cpu":
        _prepare_pages(memory)
    return nn.Parameter(memory, requires_grad=parameter.requires_grad)


def _give_values(model: PreTrainedModel, module: nn.Module, fresh: list[nn.Parameter], fill: BlockFill) -> None:
    """Vectors as the model's own initialisation makes them, everything larger from the block."""
    vectors = [parameter for parameter in fresh if parameter.ndim < 2]
    matrices = [parameter for parameter in fresh if parameter.ndim >= 2]
    plain = isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    for vector in vectors:
        vector.zero_()
    if vectors and not plain and sum(parameter.numel() for parameter in matrices) <= _OWN_INIT_ELEMENTS:
        for matrix in matrices:
            matrix.zero_()
        model._init_weights(module)
    for matrix in matrices:
        fill(matrix)


class BlockFill:
    """Writes tiles of one seeded block of normal numbers, going on in the block where the last tensor ended."""

    def __init__(self, std: float, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._normal = torch.randn(BLOCK_ELEMENTS, generator=generator).mul_(std)
        self._device = device
        self._blocks: dict[torch.dtype, torch.Tensor] = {}
        self.position = 0

    def __call__(self, tensor: torch.Tensor) -> None:
        block = self._block(tensor.dtype)
        flat = tensor.view(-1)
        head = min(flat.numel(), BLOCK_ELEMENTS - self.position)
        flat[:head].copy_(block[self.position : self.position + head])
        rest = flat[head:]
        whole = rest.numel() // BLOCK_ELEMENTS
        if whole:
            rest[: whole * BLOCK_ELEMENTS].view(whole, BLOCK_ELEMENTS).copy_(block.expand(whole, -1))
        tail = rest[whole * BLOCK_ELEMENTS :]
        tail.copy_(block[: tail.numel()])
        self.position = (self.position + flat.numel()) % BLOCK_ELEMENTS

    def _block(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._blocks:
            self._blocks[dtype] = self._normal.to(device=self._device, dtype=dtype)
        return self._blocks[dtype]


def _prepare_pages(tensor: torch.Tensor) -> None:
    """Have the kernel back a tensor's memory at once, with 2 MiB pages where they fit, before the first write.

    Writing to fresh memory is bound by page faults, and one call for the whole range is several times faster than a
    fault for each page. Done for the weights only, not by a setting of the whole process: what is measured afterwards
    must allocate as it does elsewhere.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform != "linux" or length <= 0:
        return
    # A kernel that refuses either (2 MiB pages switched off, or older than 5.14) fills more slowly and to the same
    # effect, so the return values do not matter.
    if length >= 2 * _HUGE_PAGE_BYTES:
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_POPULATE_WRITE)


def copied_weight(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a weight in memory of the kind that weights are built in, so that it is read at the same speed."""
    copy = torch.empty_like(weight)
    if copy.device.type == "cpu":
        _prepare_pages(copy)
    return copy.copy_(weight)


_LIBC = ctypes.CDLL(None)
