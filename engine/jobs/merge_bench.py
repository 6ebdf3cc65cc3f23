"""A model with a perturbed adapter on it, to be merged and put back again and again. Measures nothing itself."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine import adapters, catalog
from engine.jobs.originals import Originals, SeededWeights
from engine.models import build_model
from engine.result import Progress
from engine.snapshots import Snapshot
from engine.spec import FreshAdapter, MergeSpec, SavedAdapter, SpecError
from engine.strategies import init as init_strategies
from engine.strategies import merge as strategies
from engine.strategies import proof
from engine.strategies.patching import replaced

Report = Callable[[Progress], None]
PROMPT_TOKENS = 8
# How far DoRA's magnitudes are moved from the norms they start at.
_MAGNITUDE_NOISE = 0.1
# The size of LoRA's change beside the weight's own.
_CHANGE = 0.1
_REFUSALS = (ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError, AssertionError)


class MergeBench:
    """The model of a merge spec with its adapter attached and perturbed.

    ``root`` is the base model with adapted modules in it, ``base_ids`` and ``adapter_ids`` the ids of its own
    parameters and of the adapter's, ``layers`` PEFT's layers, which hold the adapted modules.
    """

    def __init__(self, spec: MergeSpec, report: Report) -> None:
        report(Progress("building model"))
        self.spec = spec
        self.device = torch.device(spec.device)
        self._report = report
        model = build_model(spec, report)
        self.base_ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        seeded = SeededWeights(spec, model) if spec.weights == "synthetic" else None
        self.root = model
        report(Progress("attaching adapter"))
        self.peft = attached(model, spec)
        self.adapter_ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())} - self.base_ids
        # Merging takes them off the model.
        self._configs = dict(self.peft.peft_config)
        self._perturb()
        self.layers = layers_of(self.root)
        vectors = [weight for weight in self.root.parameters() if weight.ndim < 2 and id(weight) in self.base_ids]
        unique = {id(weight): weight for weight in (*self.weights(), *vectors)}
        self._originals = Originals(list(unique.values()), seeded)
        self._snapshot = Snapshot(self.root, keep_weights=False)

    @property
    def tuner(self) -> BaseTuner:
        """PEFT's tuner: what merges."""
        tuner = self.peft.base_model
        assert isinstance(tuner, BaseTuner)
        return tuner

    @property
    def largest_weight_bytes(self) -> int:
        """The size of the largest adapted weight in its own dtype: the unit W."""
        return max(weight.nbytes for weight in self.weights())

    @property
    def input_ids(self) -> Tensor:
        """The same few random tokens for every forward pass, (1, PROMPT_TOKENS)."""
        generator = torch.Generator().manual_seed(self.spec.seed)
        vocabulary = self.root.config.get_text_config().vocab_size
        tokens = torch.randint(vocabulary, (1, PROMPT_TOKENS), generator=generator)
        # An adapter of some tokens alone changes nothing for others.
        chosen = getattr(next(iter(self._configs.values())), "token_indices", None) or []
        tokens[0, : len(chosen)] = torch.tensor(chosen[:PROMPT_TOKENS], dtype=tokens.dtype)
        return tokens.to(self.device)

    def weights(self) -> list[nn.Parameter]:
        """The parameters that the adapter changes when it is merged, as they are now, each once."""
        return adapted_weights(self.layers)

    @property
    def can_unmerge(self) -> bool:
        """Whether PEFT offers unmerging for this adapter's type."""
        config = next(iter(self._configs.values()))
        return "unmerge" not in catalog.adapter_type(str(PeftType(config.peft_type).value).lower()).cannot

    def report(self, phase: str) -> None:
        """Say what goes on now."""
        self._report(Progress(phase))

    @contextlib.contextmanager
    def put_back(self, phase: str) -> Iterator[None]:
        """Report the phase; after the block the adapter is on the model again, and every weight as it was."""
        self._report(Progress(phase))
        try:
            yield
        finally:
            self._snapshot.restore()
            self._originals.restore()

    def merge_and_unload(self, strategy: str, around: contextlib.AbstractContextManager[object]) -> PreTrainedModel:
        """Merge by a strategy into a model without an adapter; ``around`` is entered just for that, to measure it.

        Raises:
            SpecError: one sentence, when this adapter cannot be merged, or not by this strategy.
        """
        return merged(self.peft, strategy, around)

    def merge_adapter(self, strategy: str) -> None:
        """Merge and keep the adapter, so that it can be unmerged."""
        with _refusals("merge"), strategies.apply(strategy):
            self.tuner.merge_adapter(safe_merge=strategy == "safe")

    def unmerge_adapter(self, strategy: str, around: contextlib.AbstractContextManager[object]) -> None:
        """Take a merged adapter out of the weights again.

        Raises:
            SpecError: one sentence, when this type cannot be unmerged.
        """
        with _refusals("unmerge"), strategies.apply(strategy), around:
            self.tuner.unmerge_adapter()

    @contextlib.contextmanager
    def merging(self, strategy: str) -> Iterator[None]:
        """Have single layers merged by a strategy in the block, tied weights untied as it would."""
        with _refusals("merge"), strategies.apply(strategy):
            if strategy not in ("stock", "safe"):
                strategies.untie(self.root)
            yield

    def _perturb(self) -> None:
        """Noise in every matrix of a fresh adapter, and DoRA's magnitudes moved away from their norms.

        A saved adapter is taken as it is, unless a matrix of it is zero, as all B are before training.
        """
        if isinstance(self.spec.adapter, SavedAdapter) and all(
            bool(parameter.any())
            for parameter in self.root.parameters()
            if id(parameter) not in self.base_ids and parameter.ndim >= 2
        ):
            return
        proof.perturb(self.root, self.base_ids, self.spec.seed)
        for layer in self.root.modules():
            if strategies.is_product(layer):
                _scale_change(layer)
        with torch.no_grad():
            for name, parameter in self.root.named_parameters():
                if "lora_magnitude_vector" in name:
                    digest = hashlib.sha256(f"{self.spec.seed}/{name}".encode()).digest()
                    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                    parameter.mul_(1 + _MAGNITUDE_NOISE * noise.to(parameter.dtype))


def attached(model: PreTrainedModel, spec: MergeSpec) -> PeftModel:
    """The model with the spec's adapter on it, as PEFT initialises or loads it.

    Raises:
        SpecError: one sentence, when PEFT refuses the adapter, or the adapter changes no weights.
    """
    adapter = spec.adapter
    groups = adapters.list_groups(model)
    config: Any = (
        adapters.peft_config(adapter, groups)
        if isinstance(adapter, FreshAdapter)
        else adapters.saved_config(adapter, groups)
    )
    torch.manual_seed(spec.seed)
    # What attaching costs is the init kind's to measure; here it only has to be over soon.
    with init_strategies.apply("factored_norm" if getattr(config, "use_dora", False) else "stock"):
        found = adapters.attach(model, adapter, config=config)
    if not isinstance(found.base_model, BaseTuner):
        raise SpecError("adapter", f"{config.peft_type.value} adapts no weights, so there is nothing to merge")
    return found.eval()


def merged(peft: PeftModel, strategy: str, around: contextlib.AbstractContextManager[object]) -> PreTrainedModel:
    """Merge by a strategy into a model without an adapter; ``around`` is entered just for that.

    Raises:
        SpecError: one sentence, when this adapter cannot be merged, or not by this strategy.
    """
    with _refusals("merge"), strategies.apply(strategy), _freeing(peft.base_model), around:
        result: PreTrainedModel = peft.merge_and_unload(safe_merge=strategy == "safe")
    return result


def layers_of(model: nn.Module) -> list[Any]:
    """PEFT's layers, which hold the adapted modules."""
    return [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


def adapted_weights(layers: Sequence[Any]) -> list[nn.Parameter]:
    """The parameters that an adapter changes when it is merged, as they are now, each once.

    Of a layer of LoRA's the one that it adapts; of others the matrices, or everything where there is no matrix.
    """
    found: dict[int, nn.Parameter] = {}
    for layer in layers:
        own = {name: weight for name, weight in layer.get_base_layer()._parameters.items() if weight is not None}
        chosen = [weight for weight in own.values() if weight.ndim >= 2] or list(own.values())
        if strategies.is_product(layer):
            chosen = [own[strategies.parameter_name(layer)]]
        found |= {id(weight): weight for weight in chosen}
    return list(found.values())


@contextlib.contextmanager
def _freeing(tuner: nn.Module) -> Iterator[None]:
    """Empty the caches of layers that are taken off the model: they would be freed there, but are put back here."""

    def replace_module(tuner: Any, parent: Any, name: str, new: Any, layer: Any) -> None:
        original(tuner, parent, name, new, layer)
        getattr(layer, "_caches", {}).clear()

    with replaced(type(tuner), "_replace_module", replace_module) as original:
        yield


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT warns of a tied weight, which a check of the result speaks of.
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        except _REFUSALS as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise
            text = (" ".join(str(error).split()) or type(error).__name__)[:240].rstrip(".")
            raise SpecError("adapter", f"PEFT cannot {what} this adapter: {text}") from error


def _scale_change(layer: Any) -> None:
    """Scale B so that ``s·B·A`` is ``_CHANGE`` of the weight: about what training does, whatever the layer's size."""
    for adapter in layer.active_adapters:
        found = strategies.pieces(layer, adapter) if adapter in layer.scaling else []
        change = math.sqrt(sum(_product_square(piece.left, piece.right) * piece.scaling**2 for piece in found))
        if not change:
            continue
        size = math.sqrt(sum(float(torch.linalg.vector_norm(piece.weight)) ** 2 for piece in found))
        embedded = adapter in layer.lora_embedding_B
        b = layer.lora_embedding_B[adapter] if embedded else layer.lora_B[adapter].weight
        b.data.mul_(_CHANGE * size / change)


def _product_square(left: Tensor, right: Tensor) -> float:
    """The squared Frobenius norm of a product of narrow matrices, from rank-sized products."""
    left, right = left.double(), right.double()
    return float(((left.T @ left) * (right @ right.T)).sum())
