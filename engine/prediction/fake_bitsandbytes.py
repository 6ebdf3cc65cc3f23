"""bitsandbytes without values: its layers' and optimizer's layouts, and the memory that its operations take.

Stands in for the library while something is predicted, so that PEFT's own code for quantised layers runs, whether the
library is installed or not. Written after bitsandbytes 0.50. Computes nothing.

Not modelled: columns of int8's input beyond the threshold (taken for none), and the kernel that multiplies a few tokens
by 4-bit weights on a GPU as they are (the dequantised weight is counted).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from engine.spec import TrainSpec
from engine.strategies.patching import replaced

_NAME = "bitsandbytes"
_BLOCK = 64
_STATE_BLOCK = 256
_LEAST_STATE_IN_8_BITS = 4096
_on_gpu = False


@contextlib.contextmanager
def standing_in(spec: TrainSpec, on_gpu: bool) -> Iterator[None]:
    """Have code that imports bitsandbytes find this module in the block, if the spec needs that library."""
    global _on_gpu
    if spec.quantization is None and spec.train.optimizer != "adamw_8bit":
        yield
        return
    with contextlib.ExitStack() as stack:
        before, was_on_gpu = dict(sys.modules), _on_gpu
        stack.callback(lambda: _put_back(before))
        sys.modules[_NAME], _on_gpu = _library(), on_gpu
        for name, module in before.items():
            if name.startswith("peft."):
                for known, answer in _ANSWERS.items():
                    if known in vars(module):
                        stack.enter_context(replaced(module, known, answer))
        sys.modules.update(_peft_layers())
        try:
            yield
        finally:
            _on_gpu = was_on_gpu


def scales(model: nn.Module) -> Iterator[Tensor]:
    """The scales and code books of quantised weights, which are neither parameters nor buffers."""
    for module in model.modules():
        if isinstance(module, _Quantised):
            yield from (value for value in (module.scales, module.code) if value is not None)


# --- layers -----------------------------------------------------------------------------------------------------------


class _Quantised(nn.Linear):
    """A linear layer whose weight is packed; ``code`` is its book of values, if it has one."""

    scales: Tensor
    code: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, bias: bool, device: str) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device)


class Linear8bitLt(_Quantised):
    """LLM.int8(): a byte for each number, a scale for each row."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, has_fp16_weights: bool, threshold: float, device: str
    ) -> None:
        super().__init__(inputs, outputs, bias, device)
        self.state = SimpleNamespace(has_fp16_weights=has_fp16_weights, threshold=threshold, SCB="of the layer")
        self.index = None
        self.scales = torch.empty(outputs, dtype=torch.float32, device=device)

    def forward(self, input: Tensor) -> Tensor:
        way = _Int8OnGpu if _on_gpu else _Int8OnCpu
        result: Tensor = way.apply(input, self.weight, self.scales, self.bias)
        return result


class Linear4bit(_Quantised):
    """nf4: half a byte for each number, a scale for each block of 64, and the 16 values."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, compute_dtype: torch.dtype, quant_type: str, device: str
    ) -> None:
        super().__init__(inputs, outputs, bias, device)
        self.compute_dtype = compute_dtype
        self.scales = torch.empty(-(-inputs * outputs // _BLOCK), dtype=torch.float32, device=device)
        self.code = torch.empty(16, dtype=torch.float32, device=device)

    def forward(self, input: Tensor) -> Tensor:
        bias = self.bias if self.bias is None else self.bias.to(self.compute_dtype)
        x = input.to(self.compute_dtype)
        result: Tensor = _Nf4.apply(x, self.weight, (self.out_features, self.in_features), bias)
        return result.to(input.dtype)


def Params4bit(data: Tensor, quant_type: str, compress_statistics: bool, **_: Any) -> nn.Parameter:
    """The packed weight of a layer: two numbers in a byte."""
    packed: Any = nn.Parameter(data.new_empty(((data.numel() + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    packed.quant_type, packed.compress_statistics = quant_type, compress_statistics
    packed.quant_state = SimpleNamespace(shape=tuple(data.shape), dtype=data.dtype)
    return packed


def Int8Params(data: Tensor, **_: Any) -> nn.Parameter:
    """The weight of a layer in bytes."""
    return nn.Parameter(data.new_empty(data.shape, dtype=torch.int8), requires_grad=False)


class _Int8OnCpu(torch.autograd.Function):
    """The weight is dequantised for each product, forward and backward; the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        wide = weight.to(x.dtype).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))
        output = nn.functional.linear(x, wide, bias)
        # Not saved for autograd, so that checkpointing cannot drop it: as the library does.
        ctx.x, ctx.weight, ctx.scales = x, weight, scales
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _int8_gradient(ctx, grad), None, None, None


class _Int8OnGpu(torch.autograd.Function):
    """The input is quantised by rows and multiplied in 8 bits; backward as on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        half = rows.to(torch.float16)
        row_scales = half.new_empty(len(rows), dtype=torch.float32)
        quantised = half.new_empty(rows.shape, dtype=torch.int8)
        # It looks for numbers beyond the threshold.
        half.abs().to(torch.bool)
        del half
        product = quantised.new_empty((len(rows), len(weight)), dtype=torch.int32)
        output = product.new_empty(product.shape, dtype=torch.float16)
        if bias is not None and bias.dtype != torch.float16:
            output.add_(bias)
        output = output.to(x.dtype)
        del product, quantised, row_scales
        ctx.x, ctx.weight, ctx.scales = rows, weight, scales
        ctx.shape = x.shape
        return output.reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _int8_gradient(ctx, grad).view(ctx.shape), None, None, None


def _int8_gradient(ctx: Any, grad: Tensor) -> Tensor:
    rows = grad.reshape(-1, grad.shape[-1]).contiguous()
    wide = ctx.weight.to(ctx.x.dtype, copy=True).mul_(ctx.scales.unsqueeze(1).mul(1.0 / 127.0))
    return torch.matmul(rows.to(ctx.x.dtype), wide).view(ctx.x.shape)


class _Nf4(torch.autograd.Function):
    """The weight is dequantised for each product: on a CPU inside one operation, where no tracker sees it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.shape = weight, shape
        if not _on_gpu:
            return x.new_empty(*x.shape[:-1], shape[0])
        return nn.functional.linear(x, _dequantised(weight, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return torch.matmul(grad, _dequantised(ctx.weight, ctx.shape, grad.dtype)), None, None, None


def _dequantised(weight: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return weight.new_empty(shape, dtype=dtype)


# --- optimizer --------------------------------------------------------------------------------------------------------


class AdamW8bit(torch.optim.Optimizer):
    """States of a byte each with a scale for each block; small parameters' are float32. An update takes nothing."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.name2qmap = {name: torch.empty(256, dtype=torch.float32) for name in ("dynamic", "udynamic")}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make the states where there are none yet."""
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            state = self.state[parameter]
            if parameter.grad is None or state:
                continue
            small = parameter.numel() < _LEAST_STATE_IN_8_BITS
            for number in ("1", "2"):
                state[f"state{number}"] = torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8)
                if not small:
                    blocks = -(-parameter.numel() // _STATE_BLOCK)
                    state[f"absmax{number}"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)


# --- in the place of the library --------------------------------------------------------------------------------------


@functools.cache
def _library() -> ModuleType:
    found: Any = ModuleType(_NAME)
    found.__spec__ = ModuleSpec(_NAME, None)
    layers = (Linear8bitLt, Linear4bit, Params4bit, Int8Params)
    found.nn = SimpleNamespace(**{layer.__name__: layer for layer in layers})
    found.optim = SimpleNamespace(AdamW8bit=AdamW8bit)
    return found


def _dequantize_module_weight(module: Any) -> Tensor:
    if isinstance(module, Linear4bit):
        # DoRA makes a copy of the layer, whose weight has lost what it said of itself.
        return _dequantised(module.weight, (module.out_features, module.in_features), module.compute_dtype)
    if isinstance(module, Linear8bitLt):
        return _dequantize_weight(module.weight)
    weight: Tensor = module.dequantize() if hasattr(module, "W_q") else module.weight
    return weight


def _dequantize_weight(weight: Tensor, state: Any = None) -> Tensor:
    packed = getattr(weight, "quant_state", None)
    if packed is None:
        return weight.new_empty(weight.shape, dtype=torch.float32)
    return _dequantised(weight, packed.shape, packed.dtype)


_ANSWERS = {
    "is_bnb_available": lambda: True,
    "is_bnb_4bit_available": lambda: True,
    "dequantize_module_weight": _dequantize_module_weight,
    "dequantize_bnb_weight": _dequantize_weight,
}


@functools.cache
def _peft_layers() -> dict[str, ModuleType]:
    """PEFT's modules of quantised layers, which are empty where the library is not installed, read anew."""
    found = {}
    for name in [name for name in sys.modules if re.fullmatch(r"peft\.tuners\.\w+", name)]:
        spec = importlib.util.find_spec(f"{name}.bnb") if hasattr(sys.modules[name], "__path__") else None
        if spec is not None and spec.loader is not None:
            found[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found[spec.name])
    return found


def _put_back(before: dict[str, ModuleType]) -> None:
    for name in (_NAME, *_peft_layers()):
        if name in before:
            sys.modules[name] = before[name]
        else:
            sys.modules.pop(name, None)
