"""One request to a model: a prompt read in one pass, then tokens written one by one, greedily and always as many.

Runs and times a request, counts its memory, and repeats it on given tokens for comparisons. Does not use ``generate``,
whose bookkeeping is none of the model's; never stops at an end token.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine.measure.tensors import TensorTracker
from engine.measure.timing import Laps, Timer

Context = Callable[[], contextlib.AbstractContextManager[Any]]
_PROOF_PROMPT_TOKENS = 8
PROOF_TOKENS = 16
_PROOF_ROWS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One form of the model, ready to take requests.

    ``model`` is the module tree whose memory counts; ``prefill`` and ``decode`` are called like a transformers model.
    ``around`` is entered for a request, outside its clock. ``new_cache`` makes the cache; without it the model makes
    its own, which grows. ``extra_bytes`` are tensors that are not the tree's parameters or buffers.
    """

    name: str
    model: nn.Module
    prefill: Callable[..., Any]
    decode: Callable[..., Any]
    around: Context = contextlib.nullcontext
    new_cache: Callable[[], Any] | None = None
    extra_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class RequestTimes:
    """Seconds of one request: reading the prompt (and choosing the first token), all other tokens, and the whole."""

    prefill_s: float
    decode_s: float
    request_s: float


def timed_request(side: Side, prompt: Tensor, new_tokens: int, device: torch.device) -> RequestTimes:
    """Run one request; ``prompt`` is (batch, tokens)."""
    laps = Laps(device)
    with side.around(), torch.inference_mode(), Timer(device) as whole:
        laps.mark("prefill")
        output = read_prompt(side, prompt)
        token = choose_token(output)
        laps.mark("decode")
        for _ in range(new_tokens - 1):
            output = write_token(side, token, output)
            token = choose_token(output)
        laps.mark("end")
    seconds = laps.seconds()
    return RequestTimes(seconds["prefill"], seconds["decode"], whole.seconds)


def peak_bytes(side: Side, prompt: Tensor, new_tokens: int) -> int:
    """The most tensor bytes alive at one time in a request, weights included.

    That is while the prompt is read or at the last token, when the cache is largest; only these two are tracked.
    """
    with side.around(), torch.inference_mode():
        reading = _tracker(side, prompt)
        with reading:
            output = read_prompt(side, prompt)
        peak = reading.peak_bytes
        for _ in range(new_tokens - 2):
            output = write_token(side, choose_token(output), output)
        if new_tokens > 1:
            token = choose_token(output)
            writing = _tracker(side, token)
            writing.watch(cache_tensors(output.past_key_values), "cache")
            with writing:
                write_token(side, token, output)
            peak = max(peak, writing.peak_bytes)
    return peak + side.extra_bytes


def forced_logits(side: Side, tokens: Tensor) -> Tensor:
    """Logits (rows, steps, vocabulary), float32 on the CPU, of a request that is given its tokens (batch, tokens).

    The first few tokens are the prompt, each of the others is a decoding step, as in a measured request. Of a large
    batch only the first rows are kept.
    """
    with side.around(), torch.inference_mode():
        output = read_prompt(side, tokens[:, :_PROOF_PROMPT_TOKENS])
        found = [output.logits[:_PROOF_ROWS, -1].float().cpu()]
        for step in range(_PROOF_PROMPT_TOKENS, tokens.shape[1]):
            output = write_token(side, tokens[:, step : step + 1], output)
            found.append(output.logits[:_PROOF_ROWS, -1].float().cpu())
    return torch.stack(found, 1)


def random_tokens(vocabulary: int, batch: int, length: int, seed: int, first: Iterable[int] = ()) -> Tensor:
    """Seeded random tokens (batch, length); every row begins with ``first``, as many as there is room for."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    start = torch.tensor(list(first)[:length], dtype=torch.long)
    tokens[:, : len(start)] = start
    return tokens


def proof_tokens(vocabulary: int, batch: int, seed: int, first: Iterable[int] = ()) -> Tensor:
    """The tokens that :func:`forced_logits` compares forms on."""
    return random_tokens(vocabulary, batch, PROOF_TOKENS, seed + 1, first)


def read_prompt(side: Side, prompt: Tensor) -> Any:
    """The model's output for the whole prompt (batch, tokens), with the cache that it filled."""
    named: dict[str, Any] = {}
    if side.new_cache is not None:
        named["past_key_values"] = side.new_cache()
    return side.prefill(input_ids=prompt, use_cache=True, **named)


def write_token(side: Side, token: Tensor, output: Any) -> Any:
    """The model's output for one more token (batch, 1), into the cache of the output before."""
    return side.decode(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def choose_token(output: Any) -> Tensor:
    """The most likely next token (batch, 1)."""
    return output.logits[:, -1:].argmax(-1)


def _tracker(side: Side, given: Tensor) -> TensorTracker:
    tracker = TensorTracker()
    tracker.watch(side.model.parameters(), "parameters")
    tracker.watch(side.model.buffers(), "buffers")
    tracker.watch([given], "tokens")
    return tracker


def cache_tensors(cache: Any) -> list[Tensor]:
    """What a cache keeps between two tokens: keys and values, or states."""
    layers = getattr(cache, "layers", ())
    return [value for layer in layers for value in vars(layer).values() if isinstance(value, Tensor)]
