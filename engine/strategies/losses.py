"""Memory for time in a training step: the loss over slices of the logits, the MLP over slices of the sequence.

Context managers for anyone's code: ``with ChunkedLoss(model, 8): loss = model(**batch, labels=labels).loss``. Each
changes the given model for the time of the block only, and may be entered again. The proof that gradients are the same
is in ``engine.jobs.train_proof``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

IGNORED = -100


# --- the loss over slices of the logits -------------------------------------------------------------------------------


class ChunkedLoss(contextlib.AbstractContextManager[None]):
    """Have a causal language model compute its loss over ``chunks`` slices of all positions, one at a time.

    No more than one slice of the logits exists at any time: each slice's gradient with respect to the hidden states is
    taken at once, while its logits are there, and kept in their place (a hidden state is much smaller than its logits).
    So nothing is computed twice. What the model returns as ``logits`` are then the hidden states.

    Raises:
        ValueError: one sentence, if the model has no output head.
    """

    def __init__(self, model: nn.Module, chunks: int) -> None:
        self._model = _causal_model(model)
        self._head = self._model.get_output_embeddings()
        self._config = self._model.config.get_text_config()
        self._cap = getattr(self._config, "final_logit_softcapping", None)
        self._chunks = chunks
        self._head_forward = self._head.forward
        # Made once: compiled code is valid only for the very functions that it was compiled with.
        self._replacements = (_pass_on, torch._dynamo.disable(self._loss))

    def __enter__(self) -> None:
        self._head.forward, self._model.loss_function = self._replacements
        if self._cap is not None:
            self._config.final_logit_softcapping = None

    def __exit__(self, *_: object) -> None:
        del self._head.forward, self._model._loss_function
        if self._cap is not None:
            self._config.final_logit_softcapping = self._cap

    def _loss(self, logits: Tensor, labels: Tensor, vocab_size: int | None = None, **_: Any) -> Tensor:
        # What arrives here as logits are the hidden states: the head passed them on.
        shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1).to(logits.device)
        trained = [parameter for parameter in self._head.parameters() if parameter.requires_grad]
        hidden = logits.reshape(-1, logits.shape[-1])
        loss: Tensor = _ChunkedLoss.apply(self._logits, self._chunks, hidden, shifted, *trained)
        return loss

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head_forward(hidden)
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


def _pass_on(hidden: Tensor) -> Tensor:
    return hidden


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross entropy of ``head(hidden)``; hidden (tokens, features), labels (tokens,), -100 where ignored."""

    @staticmethod
    def forward(
        ctx: Any, head: Callable[[Tensor], Tensor], chunks: int, hidden: Tensor, labels: Tensor, *trained: Tensor
    ) -> Tensor:
        needs_hidden, needs_head = ctx.needs_input_grad[2], any(ctx.needs_input_grad[4:])
        count = (labels != IGNORED).sum()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        # In float32: a sum of many slices in half precision would lose what stock's one product keeps.
        head_gradients = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained] if needs_head else []
        size = -(-hidden.shape[0] // chunks)
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            with torch.enable_grad():
                piece = hidden[part].detach().requires_grad_(needs_hidden)
                logits = head(piece).float()
                loss = nn.functional.cross_entropy(logits, labels[part], ignore_index=IGNORED, reduction="sum") / count
                del logits
            total += loss.detach()
            wanted = [piece] * needs_hidden + [*trained] * needs_head
            if wanted:
                gradients = list(torch.autograd.grad(loss, wanted))
                if hidden_gradient is not None:
                    hidden_gradient[part] = gradients.pop(0)
                for kept, gradient in zip(head_gradients, gradients, strict=True):
                    kept += gradient
        # Not among autograd's saved tensors: the backward pass scales them where they are, and so only once.
        ctx.kept, ctx.dtypes = (hidden_gradient, head_gradients), [weight.dtype for weight in trained]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("a chunked loss can be differentiated only once")
        hidden, of_head = ctx.kept
        ctx.kept = None
        of_hidden = None if hidden is None else hidden.mul_(gradient)
        of_weights = [kept.mul_(gradient).to(dtype) for kept, dtype in zip(of_head, ctx.dtypes, strict=False)]
        return None, None, of_hidden, None, *(of_weights or [None] * len(ctx.dtypes))


def _causal_model(model: nn.Module) -> Any:
    causal: Any = model
    if hasattr(causal, "get_base_model"):
        causal = causal.get_base_model()
    if getattr(causal, "get_output_embeddings", None) is None or causal.get_output_embeddings() is None:
        raise ValueError(f"ChunkedLoss needs a model with an output head, and {type(causal).__name__} has none")
    return causal


# --- the MLP over slices of the sequence ------------------------------------------------------------------------------


GATED_MLPS = (frozenset({"gate_proj", "up_proj", "down_proj"}), frozenset({"gate_up_proj", "down_proj"}))
"""The layers that tell a gated MLP, which works on each position by itself."""


class TiledMlp(contextlib.AbstractContextManager[None]):
    """Have every gated MLP of a model work on ``tiles`` slices of the sequence, one at a time, and keep none of it.

    Only the MLP's input is kept for the backward pass, which computes each slice once more just before it is needed.

    Raises:
        ValueError: one sentence, if no module of the model is a gated MLP.
    """

    def __init__(self, model: nn.Module, tiles: int) -> None:
        found = [module for module in model.modules() if _is_gated_mlp(module)]
        if not found:
            raise ValueError(f"TiledMlp knows gated MLPs only, and {type(model).__name__} has none")
        # Made once: compiled code is valid only for the very functions that it was compiled with.
        self._replacements = [(module, _tiled(module.forward, tiles)) for module in found]

    def __enter__(self) -> None:
        for module, tiled in self._replacements:
            module.forward = tiled

    def __exit__(self, *_: object) -> None:
        for module, _tiled_forward in self._replacements:
            del module.forward


def _is_gated_mlp(module: nn.Module) -> bool:
    names = {name for name, child in module.named_children() if not isinstance(child, nn.ModuleList)}
    return any(known <= names for known in GATED_MLPS)


def _tiled(forward: Callable[[Tensor], Tensor], tiles: int) -> Callable[[Tensor], Tensor]:
    def tiled(hidden: Tensor) -> Tensor:
        # Slices of rows: one of a (1, length, features) tensor keeps the whole's stride for its batch of one, and with
        # that bfloat16 products on a CPU, those of the gradients too, were seen to be eight times slower.
        pieces = hidden.flatten(0, -2).chunk(tiles)
        if torch.is_grad_enabled():
            results = [checkpoint(rows, piece, use_reentrant=False) for piece in pieces]
        else:
            results = [rows(piece) for piece in pieces]
        return torch.cat(results).view(hidden.shape)

    def rows(piece: Tensor) -> Tensor:
        return forward(piece.unsqueeze(0)).squeeze(0)

    return tiled
