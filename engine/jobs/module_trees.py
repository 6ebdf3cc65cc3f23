"""Several forms of one model in memory at once, whose weights exist once: copies of a module tree that share storage.

A tree can be adapted, patched or compiled without the others seeing it. Measures nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

Tree = TypeVar("Tree", bound=nn.Module)
Convert = Callable[[Tensor], Tensor]


def sharing_copy(model: Tree, convert: Convert | None = None) -> Tree:
    """A copy of all modules and configs, with parameters of its own over the same storage; ties are kept.

    Replacing a parameter's ``data`` in one tree does not show in the other; writing into it does. ``convert`` turns
    each floating-point tensor into another one, which then is the copy's own.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        data = parameter.data if convert is None else _converted(parameter.data, convert)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer if convert is None else _converted(buffer, convert)
    return copy.deepcopy(model, memo)


def _converted(tensor: Tensor, convert: Convert) -> Tensor:
    return convert(tensor) if tensor.is_floating_point() else tensor


def widened(model: Tree) -> Tree:
    """A copy in float32 throughout; what is float32 already is shared."""
    return sharing_copy(model, Tensor.float)


def truncated(model: Tree, config: Any, blocks: int) -> Tree:
    """A sharing copy that ends after so many blocks; ``config`` is the config of the transformers model in it.

    Raises:
        ValueError: if the model is not a row of blocks.
    """
    short = sharing_copy(model)
    rows = block_lists(short, config)
    if not rows:
        raise ValueError("the model has no list of blocks")
    for row in rows:
        del row[blocks:]
    for module in short.modules():
        own = getattr(module, "config", None)
        if own is not None and hasattr(own, "get_text_config"):
            text = own.get_text_config()
            text.num_hidden_layers = blocks
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:blocks]
    return short


def block_lists(model: nn.Module, config: Any) -> list[nn.ModuleList]:
    """The model's repeating blocks: its lists of as many modules as its config has layers."""
    depth = config.get_text_config().num_hidden_layers
    return [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]


def own_adapted_weights(model: nn.Module, copied: Convert) -> None:
    """Give the adapted layers of this tree copies of their base weights, so that a merge writes into no other tree."""
    for parameter in adapted_parameters(model):
        parameter.data = copied(parameter.data)


def adapted_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The base parameters of the layers that an adapter changes, each once."""
    seen = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for parameter in module.get_base_layer().parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter


def tensor_bytes(tensors: Iterator[Any]) -> int:
    """Bytes of tensors that do not share storage."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weight_bytes_per_token(model: nn.Module, batch_size: int, experts_per_token: int | None) -> float:
    """Bytes of weights that a decoding step reads, over the batch; the least that any implementation has to read.

    Of an embedding only a row is read, of fused experts at most those that the batch's tokens choose. A tied head
    counts once.
    """
    read: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.endswith(".lora_embedding_A"):
            continue
        # Some types (VeRA) multiply by fixed matrices, which PEFT keeps as buffers.
        buffers = module.buffers(recurse=False) if isinstance(module, BufferDict) else ()
        read |= {id(tensor): tensor for tensor in (*module.parameters(recurse=False), *buffers)}
    total = 0.0
    for tensor in read.values():
        share = 1.0
        if tensor.ndim == 3 and experts_per_token is not None:
            share = min(1.0, batch_size * experts_per_token / tensor.shape[0])
        total += tensor.numel() * tensor.element_size() * share
    return total / batch_size
