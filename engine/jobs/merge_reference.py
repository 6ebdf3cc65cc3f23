"""What a merge should have given, in float64: rows of some weights, and the whole model's logits.

LoRA's and DoRA's are computed from their matrices directly. For other types PEFT's own merge runs in float64 on a few
layers, and the logits are those of the model with its adapter not merged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from engine.jobs import float64
from engine.jobs.merge_bench import MergeBench
from engine.strategies.merge import is_product, parameter_name, pieces
from engine.strategies.merge_blocks import Piece

_OUTPUTS = 64
_LAYERS_OF_A_SHAPE = 3
_EXPERTS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Some outputs of one weight: which they are, what they were, and what merging should make of them (float64)."""

    layer: Any
    name: str
    expert: int | None
    transposed: bool
    outputs: Tensor
    original: Tensor
    exact: Tensor

    def now(self) -> Tensor:
        """The same outputs as they are in the model now, merged or not."""
        # LN tuning puts another module in the adapted one's place.
        return _outputs_of(
            getattr(self.layer.get_base_layer(), self.name).data, self.expert, self.transposed, self.outputs
        )


@dataclasses.dataclass(frozen=True, slots=True)
class WeightError:
    """How far weights are from what they should be.

    ``relative`` is the distance over the adapter's own effect; ``gain`` how much of that effect is there (1 is right:
    rounding, which has no direction, hardly moves it); ``gain_noise`` what rounding alone may move it by.
    """

    relative: float
    gain: float
    gain_noise: float


def weight_error(samples: Sequence[Rows]) -> WeightError:
    """The error of the model's weights as they are now; all zero effect gives infinities."""
    distance = effect = along = 0.0
    count = 0
    for rows in samples:
        change, wanted = rows.now() - rows.original, rows.exact - rows.original
        distance += float((change - wanted).square().sum())
        effect += float(wanted.square().sum())
        along += float((change * wanted).sum())
        count += wanted.numel()
    if not effect > 0:
        return WeightError(float("inf"), float("inf"), 0.0)
    relative = (distance / effect) ** 0.5
    return WeightError(relative, along / effect, relative / count**0.5)


def drift(samples: Sequence[Rows]) -> float:
    """How far the weights are from their originals, over the adapter's own effect."""
    moved = sum(float((rows.now() - rows.original).square().sum()) for rows in samples)
    effect = sum(float((rows.exact - rows.original).square().sum()) for rows in samples)
    return (moved / effect) ** 0.5 if effect > 0 else float("inf")


def sample(bench: MergeBench) -> tuple[list[Rows], list[Any]]:
    """Outputs of a few layers of each shape, before anything is merged, and those layers."""
    layers = _some_layers(bench.layers)
    with torch.no_grad():
        if all(is_product(layer) for layer in layers):
            return [rows for layer in layers for rows in _lora_rows(layer)], layers
        return [rows for layer in layers for rows in _merged_in_float64(layer)], layers


class Logits:
    """The logits without the adapter, those that a merged model should give, and what gives a model's to compare.

    All are (tokens, vocabulary) in float64, and computed in it where the adapter's own code can be; elsewhere all are
    computed in the model's dtype, and ``in_float64`` says that they are not.
    """

    def __init__(self, bench: MergeBench) -> None:
        self._input_ids = bench.input_ids
        self.in_float64 = True
        try:
            self.reference = _reference_logits(bench)
        except RuntimeError:
            # Some types keep tensors that are no parameters, and so stay in the dtype they have.
            self.in_float64 = False
            self.reference = self.of(bench.root)
        with bench.peft.disable_adapter():
            self.base = self.of(bench.root)

    def of(self, model: nn.Module) -> Tensor:
        """A model's logits, as the reference's were computed."""
        if self.in_float64:
            return float64.logits(model, self._input_ids)
        with torch.inference_mode():
            result: Tensor = model(input_ids=self._input_ids, use_cache=False).logits
        return result[0].double().cpu()


def _reference_logits(bench: MergeBench) -> Tensor:
    if all(is_product(layer) for layer in bench.layers):
        with bench.peft.disable_adapter():
            return float64.logits(bench.root, bench.input_ids, _exact_weights(bench.layers))
    with _in_float64(bench.root, bench.base_ids):
        return float64.logits(bench.root, bench.input_ids)


def _some_layers(every: Iterable[Any]) -> list[Any]:
    """First, middle and last of the layers of each shape."""
    by_shape: dict[Any, list[Any]] = {}
    for layer in every:
        base = layer.get_base_layer()
        shapes = tuple((name, parameter.shape) for name, parameter in base.named_parameters())
        by_shape.setdefault((type(base), getattr(layer, "parameter_name", None), shapes), []).append(layer)
    chosen = []
    for layers in by_shape.values():
        places = sorted({0, len(layers) // 2, len(layers) - 1})
        chosen += [layers[place] for place in places]
    return chosen


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of ``range(count)``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _outputs_of(weight: Tensor, expert: int | None, transposed: bool, outputs: Tensor) -> Tensor:
    """(outputs, inputs) in float64 on the CPU."""
    matrix = weight if expert is None else weight[expert]
    chosen = matrix[:, outputs].T if transposed else matrix[outputs]
    return chosen.double().cpu()


# --- LoRA -------------------------------------------------------------------------------------------------------------


def _lora_rows(layer: Any) -> Iterator[Rows]:
    found = pieces(layer, _adapter(layer))
    fused = layer.get_base_layer()._parameters[parameter_name(layer)].ndim == 3
    for number in _evenly(len(found), _EXPERTS):
        piece = found[number]
        count = piece.weight.shape[1 if piece.transposed else 0]
        outputs = torch.tensor(_evenly(count, _OUTPUTS), device=piece.weight.device)
        exact = exact_sum(
            dataclasses.replace(
                piece,
                weight=(piece.weight[:, outputs] if piece.transposed else piece.weight[outputs]).double(),
                left=piece.left if piece.transposed else piece.left[outputs],
                right=piece.right[:, outputs] if piece.transposed else piece.right,
                magnitude=None if piece.magnitude is None else piece.magnitude[outputs],
            )
        )
        expert = number if fused else None
        yield Rows(
            layer=layer,
            name=parameter_name(layer),
            expert=expert,
            transposed=piece.transposed,
            outputs=outputs,
            original=_outputs_of(piece.weight, None, piece.transposed, outputs),
            exact=(exact.T if piece.transposed else exact).cpu(),
        )


def exact_sum(piece: Piece) -> Tensor:
    """What merging makes of a piece, in float64: as stored, in new memory."""
    total = piece.weight.double().addmm(piece.left.double(), piece.right.double(), alpha=piece.scaling)
    if piece.magnitude is None:
        return total
    along = 0 if piece.transposed else 1
    return total.mul_(
        piece.magnitude.double().unsqueeze(along) / torch.linalg.vector_norm(total, dim=along, keepdim=True)
    )


def _exact_weights(layers: Sequence[Any]) -> dict[int, float64.Exact]:
    """For each adapted module, by ``id``, what computes its merged weights."""
    by_base: dict[int, list[Any]] = {}
    for layer in layers:
        by_base.setdefault(id(layer.get_base_layer()), []).append(layer)

    def exact(wrappers: Sequence[Any], name: str, wide: Tensor) -> Tensor:
        for layer in wrappers:
            adapter = _adapter(layer)
            if name == parameter_name(layer):
                found = pieces(layer, adapter)
                parts = wide.unbind() if wide.ndim == 3 else (wide,)
                merged = [
                    exact_sum(dataclasses.replace(piece, weight=part)) for piece, part in zip(found, parts, strict=True)
                ]
                return torch.stack(merged) if wide.ndim == 3 else merged[0]
            if name == "bias" and layer.lora_bias.get(adapter, False):
                return wide + layer.lora_B[adapter].bias.double() * layer.scaling[adapter]
        return wide

    return {base: functools.partial(exact, wrappers) for base, wrappers in by_base.items()}


def _adapter(layer: Any) -> str:
    return next(name for name in layer.active_adapters if name in layer.scaling)


# --- other types ------------------------------------------------------------------------------------------------------


def _merged_in_float64(layer: Any) -> Iterator[Rows]:
    """PEFT's own merge of one layer in float64; the layer is left merged, for the caller to put back."""
    base = layer.get_base_layer()
    name, parameter = max(base.named_parameters(recurse=False), key=lambda pair: pair[1].numel())
    outputs = torch.tensor(_evenly(parameter.shape[0], _OUTPUTS), device=parameter.device)
    original = _outputs_of(parameter.data, None, False, outputs)
    with _in_float64(layer, set()):
        layer.merge()
        exact = _outputs_of(getattr(layer.get_base_layer(), name).data, None, False, outputs)
    yield Rows(layer, name, None, False, outputs, original, exact)


@contextlib.contextmanager
def _in_float64(module: nn.Module, spared: set[int]) -> Iterator[None]:
    """Have a module's parameters, other than those with these ids, and PEFT's buffers in float64 in the block."""
    kept = []
    for parameter in module.parameters():
        if parameter.is_floating_point() and id(parameter) not in spared:
            kept.append((parameter, parameter.data))
            parameter.data = parameter.data.double()
    buffers = []
    for part in module.modules():
        if isinstance(part, BaseTunerLayer | BufferDict):
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    buffers.append((part, name, buffer))
    for part, name, buffer in buffers:
        part._buffers[name] = buffer.double()
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
        for part, name, buffer in buffers:
            part._buffers[name] = buffer
