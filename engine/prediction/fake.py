"""Models without memory: parameters and buffers that have shapes, dtypes and a device, and no bytes.

Every tensor of a model on ``meta`` is replaced by a fake one that says it is on the device to predict for. What the
real code decides by a tensor's values is answered here as the values of a job would. Attaches no adapter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig, PreTrainedModel, masking_utils

from engine.spec import FreshAdapter, InitSpec, Measured, MergeSpec, TrainSpec
from engine.strategies.blocks import block_list
from engine.strategies.patching import replaced

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
_ANY = (torch.ops.aten.any.default, torch.ops.aten.any.dim, torch.ops.aten.any.out)


def fake_(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Give every parameter and buffer of a model a fake tensor in its place; what was tied stays tied."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            # What quantised weights say of themselves.
            vars(made[id(tensor)]).update(vars(tensor))
        return made[id(tensor)]

    kept_alive = []
    for module in model.modules():
        # Some adapters keep tensors of indices in plain dictionaries.
        plain: list[dict[str, Any]] = [value for value in vars(module).values() if type(value) is dict]
        for tensors in (vars(module), *plain):
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor):
                    kept_alive.append(tensor)
                    tensors[name] = fake(tensor)


class OneMode(FakeTensorMode):
    """A fake mode that is not copied with the layers that PEFT copies: fake tensors of two do not mix."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OneMode:
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """How many elements a mask picks, and how many different values a tensor has."""

    picked: Callable[[Tensor], int]
    distinct: Callable[[Tensor], int]


class Numbers(TorchDispatchMode):
    """Answers a number that is read from a tensor without values with one, a yes-or-no with yes, ``any`` with no.

    Optimizers read sizes of steps, which decide no memory; LoKr and LoHa whether a random number exceeds the module
    dropout, which it does where there is none; VB-LoRA whether any number is infinite. How many elements a mask picks,
    or how many values differ, is answered only where it is ``counted``. Products of fused experts in other dtypes than
    bfloat16 are answered here, because PyTorch's fake kernel knows that one alone. Products of two dtypes fail, as the
    real ones do.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare each operation a detour through PyTorch's compiler, which nothing here uses."""
        return False

    def __init__(self, counted: Counted | None = None) -> None:
        super().__init__()
        self._counted = counted
        self._any: Callable[[], Tensor | None] = lambda: None

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if args[0] is self._any():
                return False
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            return _grouped_product(*args)
        if self._counted is not None:
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], [place for index in args[1] for place in _places(index, self._counted)])
            elif func is torch.ops.aten.nonzero.default:
                number = self._counted.picked(args[0])
                return torch.empty(number, args[0].ndim, dtype=torch.long, device=args[0].device)
            elif func is torch.ops.aten._unique2.default:
                nothing = torch.empty(0, dtype=torch.long, device=args[0].device)
                return args[0].new_empty(self._counted.distinct(args[0])), nothing, nothing.clone()
        if func in _PRODUCTS:
            _check_dtypes(args)
        result = func(*args, **(kwargs or {}))
        if func in _ANY:
            # Weakly: it must not live longer for being looked at.
            self._any = weakref.ref(result)
        return result


def _check_dtypes(factors: Sequence[Any]) -> None:
    """Fail where the real product fails; the fake one takes factors of different dtypes."""
    left, right = factors[-2:]
    if left.dtype != right.dtype:
        names = [str(factor.dtype).removeprefix("torch.") for factor in (left, right)]
        raise RuntimeError(f"a product of {names[0]} and {names[1]} fails in PyTorch")


def _grouped_product(left: Tensor, right: Tensor, offsets: Tensor | None = None, *_: Any) -> Tensor:
    """The empty result of a product by groups: rows are aligned to 16 bytes, as the real kernel has them."""
    groups: tuple[int, ...] = ()
    if left.ndim == right.ndim:
        groups = (len(left),) if offsets is None else (len(offsets),)
    size = (*groups, left.shape[-2], right.shape[-1])
    aligned = 16 // left.itemsize
    row = -(-size[-1] // aligned) * aligned
    return left.new_empty_strided(size, (size[-2] * row, row, 1)[-len(size) :])


@contextlib.contextmanager
def moved_in_place() -> Iterator[None]:
    """Have ``Module.to`` give fake parameters new data, as it gives real ones; it would swap them, and fail."""

    def swap(parameter: Tensor, moved: Tensor) -> None:
        parameter.data = moved.data

    with replaced(torch.utils, "swap_tensors", swap):
        yield


def _places(index: Tensor | None, counted: Counted) -> Sequence[Tensor | None]:
    """The places that a mask picks, an index for each of its dimensions; any other index as it is."""
    if index is None or index.dtype != torch.bool:
        return [index]
    number = counted.picked(index)
    return [torch.empty(number, dtype=torch.long, device=index.device) for _ in range(index.ndim)]


def counted(spec: Measured) -> Counted | None:
    """What is known of the masks in an adapter's code without their values; None where nothing is."""
    if isinstance(spec, InitSpec | MergeSpec) and spec.strategy != "stock":
        # Our strategies look for rows in which a sum cancels, and compute these again: next to none.
        return Counted(lambda mask: 0, Tensor.numel)
    kind = spec.adapter.type if isinstance(spec.adapter, FreshAdapter) else None
    if kind == "waveft":
        # It looks which of its places lie within the weight, and all do.
        return Counted(Tensor.numel, Tensor.numel)
    if kind == "cpt" and isinstance(spec, TrainSpec):
        # All tokens of the batch are labels, and the last of the virtual ones (``cpt_example``), of another kind.
        length = spec.train.context_length
        return Counted(
            picked=lambda mask: mask.numel() // mask.shape[-1] * min(mask.shape[-1], length + 1),
            distinct=lambda labels: 2 if labels.numel() > length else 1,
        )
    return None


@contextlib.contextmanager
def decided() -> Iterator[None]:
    """What transformers finds out by looking at values, answered for the jobs' batches: no packed sequences in them.

    Under fake tensors it would build a mask for what might be there, which takes memory and another attention kernel.
    """
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def with_depth(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """A copy of a config with that many blocks; lists with an entry for each block are cut to their first entries."""
    shallow: PretrainedConfig = type(config).from_dict(config.to_dict())
    text = shallow.get_text_config()
    full = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == full:
            setattr(text, name, value[:blocks])
    text.num_hidden_layers = blocks
    return shallow


def block_kinds(model: PreTrainedModel) -> list[tuple[object, ...]]:
    """What each of a model's blocks is, as values that are equal where the blocks do the same."""
    return [
        tuple(
            (name, type(module).__name__, _plain_settings(module), _shapes(module))
            for name, module in block.named_modules()
        )
        for block in block_list(model)[1]
    ]


def _plain_settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """A module's own numbers, words and switches, but not its number."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, str | int | float | bool | type(None)) and name not in ("layer_idx", "training")
    )


def _shapes(module: nn.Module) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in module.named_parameters(recurse=False))


def origins(model: nn.Module) -> Callable[[str], str]:
    """How a module's or parameter's name is written so that those of all blocks are one: ``model.layers.*.mlp``."""
    path, _ = block_list(model)
    prefix = f"{path}."

    def origin(name: str) -> str:
        if not path or not name.startswith(prefix):
            return name
        _, _, rest = name.removeprefix(prefix).partition(".")
        return f"{prefix}*.{rest}" if rest else f"{prefix}*"

    return origin
