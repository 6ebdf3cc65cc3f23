"""A base model's linear layers in 8 or 4 bits, by bitsandbytes. Attaches no adapter and measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.spec import Quantization


def quantize(model: PreTrainedModel, quantization: Quantization) -> None:
    """Replace every linear layer but the output head by its quantised counterpart, one at a time.

    nf4 is QLoRA's format without double quantisation and computes in the model's dtype; int8 is LLM.int8() with
    bitsandbytes' own threshold 6.0 for outliers. Embeddings, norms and the head stay as they are.
    """
    import bitsandbytes

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    dtype = model.dtype
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not head and name != "score":
                parent._modules[name] = _quantised(bitsandbytes.nn, layer, quantization, dtype)
    # What PEFT looks at when it chooses its layers.
    flags: Any = model
    flags.is_quantized = True
    flags.is_loaded_in_4bit = quantization == "nf4"
    flags.is_loaded_in_8bit = quantization == "int8"


def scales(model: nn.Module) -> Iterator[Tensor]:
    """The scales and code books of quantised weights, which are neither parameters nor buffers."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for value in (getattr(parameter, "SCB", None), getattr(state, "absmax", None), getattr(state, "code", None)):
            if isinstance(value, Tensor):
                yield value


def _quantised(bnb: Any, layer: nn.Linear, quantization: Quantization, dtype: torch.dtype) -> nn.Module:
    sizes = (layer.in_features, layer.out_features)
    device, bias = layer.weight.device, layer.bias
    quantised: nn.Module
    if quantization == "nf4":
        quantised = bnb.Linear4bit(*sizes, bias=bias is not None, compute_dtype=dtype, quant_type="nf4", device="meta")
        # The source is float16 or wider; the library quantises when the weight is moved to its device.
        quantised.weight = bnb.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False, module=quantised
        )
    else:
        quantised = bnb.Linear8bitLt(
            *sizes, bias=bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
        )
        # The library quantises on the way from the CPU to a device, or to the CPU itself.
        weight = layer.weight.data if layer.weight.is_meta else layer.weight.data.cpu()
        quantised.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    quantised.bias = bias
    return quantised.to(device)
