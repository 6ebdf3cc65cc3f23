"""Inference: its strategies, and what keeps an inference spec from running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.catalog.kinds.subject import Subject
from engine.catalog.modules import ModuleGroup
from engine.catalog.strategies import Strategy
from engine.catalog.targets import TargetError, resolve
from engine.spec import FreshAdapter, InferenceSpec, SpecError

STRATEGIES = (
    Strategy("stock", "Stock PEFT", "PEFT's own forward: four small kernels for each adapted module"),
    Strategy(
        "fused",
        "Fused",
        "Two kernels for each adapted module, and one shared product where modules read the same input",
        frozenset({"lora"}),
        snippet_context="from engine.strategies.inference import fused",
    ),
    Strategy(
        "compiled",
        "Compiled",
        "torch.compile, with CUDA graphs on a GPU; compile time is a number of its own",
        frozenset({"compiler"}),
    ),
    Strategy(
        "dora_cached",
        "DoRA caching",
        "PEFT's DoraCaching: DoRA's weight norm is computed once and kept",
        frozenset({"dora"}),
    ),
)

# Types that only put tokens before the prompt or into the cache.
_VIRTUAL_TOKENS = frozenset({"prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "cartridge"})


def problems(spec: InferenceSpec, subject: Subject) -> Iterator[SpecError]:
    """What only an inference spec asks for, beyond its strategy's needs."""
    yield from _length_problems(spec, subject)
    section, entry = spec.inference, subject.adapter_type
    if section.adapters > section.batch_size:
        yield SpecError(
            "inference.adapters",
            f"{section.adapters} adapters do not all occur in a batch of {section.batch_size}; "
            f"raise inference.batch_size to at least {section.adapters}",
        )
    if section.adapters > 1 and any(group.kind == "experts" for group in _adapted(spec, subject)):
        yield SpecError("inference.adapters", "must be 1 where fused experts are adapted, which PEFT does not mix")
    if spec.strategy == "compiled" and entry is not None and not entry.targets_modules and entry.id in _VIRTUAL_TOKENS:
        yield SpecError(
            "strategy",
            f"compiled has nothing to win for {entry.label}, which adds tokens and decodes as the base model does; "
            "use stock",
        )


def _length_problems(spec: InferenceSpec, subject: Subject) -> Iterator[SpecError]:
    """Prompt, virtual and new tokens have to fit the model's positions."""
    config = subject.model_config or {}
    config = config.get("text_config") or config
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    entry, section = subject.adapter_type, spec.inference
    added = subject.options.get("num_virtual_tokens")
    if added is None and entry is not None:
        field = entry.field("num_virtual_tokens")
        added = entry.engine_defaults.get("num_virtual_tokens", None if field is None else field.default)
    added = added if isinstance(added, int) else 0
    if not isinstance(positions, int) or section.prompt_tokens + added + section.new_tokens <= positions:
        return
    virtual = f", {added} virtual" if added else ""
    most = positions - added - section.new_tokens
    hint = f"at most {most} fit" if most > 0 else "lower inference.new_tokens"
    yield SpecError(
        "inference.prompt_tokens",
        f"{section.prompt_tokens} prompt{virtual} and {section.new_tokens} new tokens are more than the model's "
        f"{positions} positions; {hint}",
    )


def _adapted(spec: InferenceSpec, subject: Subject) -> Sequence[ModuleGroup]:
    """The groups that the adapter targets; none where that cannot be told."""
    adapter = spec.adapter
    wanted = adapter.target_modules if isinstance(adapter, FreshAdapter) else subject.options.get("target_modules")
    if subject.groups is None or not wanted:
        return ()
    try:
        return resolve(subject.groups, wanted if isinstance(wanted, str) else tuple(wanted)).groups
    except TargetError:
        return ()
