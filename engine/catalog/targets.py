"""Turning what a person asks to adapt (a preset, names, a regular expression) into what PEFT is told to adapt.

The same function serves the pages and the engine. A person's regular expression is matched here, with a time limit, and
never handed to PEFT: names are. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from collections.abc import Callable, Iterable, Sequence

import regex

from engine.catalog.lookup import nearest
from engine.catalog.modules import ModuleGroup, all_module_names

PRESETS: tuple[str, ...] = ("all-linear", "attention", "qk", "qv", "mlp", "lm_head")
REGEX_TIME_LIMIT_S = 0.15
REGEX_LENGTH_LIMIT = 2000

_LINEAR_KINDS = ("Linear", "Conv1D", "experts")
_ROLES_OF_PRESET: dict[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "qkv", "attention_out"),
    "qk": ("query", "key", "qkv"),
    "qv": ("query", "value", "qkv"),
    "mlp": ("mlp", "experts"),
    "lm_head": ("lm_head",),
}


class TargetError(ValueError):
    """Target modules that cannot be resolved on a model; the text is one sentence."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """What to adapt on one model.

    ``names`` and ``parameters`` go to PEFT as ``target_modules`` and ``target_parameters`` (fused experts);
    ``groups`` are the model's groups narrowed to what matched.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    groups: tuple[ModuleGroup, ...]

    @property
    def module_count(self) -> int:
        """Number of matched modules; a layer's fused experts count once per parameter."""
        return sum(group.count for group in self.groups)

    def added_parameters(self, rank: int) -> int:
        """Parameters that LoRA of this rank adds."""
        return sum(group.added_parameters(rank) for group in self.groups)


def resolve(
    groups: Sequence[ModuleGroup], target_modules: str | Iterable[str], model_label: str = "this model"
) -> Targets:
    """Match a preset, a regular expression (on full names) or a list of module names against a model's groups.

    A name in a list matches as PEFT matches it: the full module name, or its ending after a dot. ``all-linear`` is
    every linear layer but the output head and routers, and the fused experts.

    Raises:
        TargetError: one sentence, when nothing matches, or the expression does not compile or takes too long.
    """
    if isinstance(target_modules, str):
        if target_modules in PRESETS:
            return _resolve_preset(groups, target_modules, model_label)
        return _narrow(groups, _full_matches(groups, target_modules, model_label))
    matched: set[str] = set()
    names = all_module_names(groups)
    for entry in target_modules:
        found = [name for name in names if name == entry or name.endswith(f".{entry}")]
        if not found:
            raise TargetError(_matches_nothing(entry, groups, model_label))
        matched.update(found)
    return _narrow(groups, matched)


def names_of(groups: Sequence[ModuleGroup], chosen: Sequence[ModuleGroup]) -> Targets:
    """What to tell PEFT to adapt exactly the (possibly narrowed) groups ``chosen`` of a model with ``groups``."""
    return _narrow(groups, all_module_names(chosen))


def preset_applies(groups: Sequence[ModuleGroup], preset: str) -> bool:
    """Whether a preset matches anything on a model with these groups."""
    return any(_in_preset(preset)(group) for group in groups)


def _in_preset(preset: str) -> Callable[[ModuleGroup], bool]:
    if preset == "all-linear":
        return lambda group: group.kind in _LINEAR_KINDS and group.role not in ("lm_head", "router")
    roles = _ROLES_OF_PRESET[preset]
    return lambda group: group.role in roles and group.kind != "Embedding"


def _resolve_preset(groups: Sequence[ModuleGroup], preset: str, model_label: str) -> Targets:
    chosen = [group for group in groups if _in_preset(preset)(group)]
    if not chosen:
        available = ", ".join(name for name in PRESETS if preset_applies(groups, name)) or "no preset"
        raise TargetError(f'the preset "{preset}" matches nothing in {model_label}; {available} would match')
    return _narrow(groups, all_module_names(chosen))


def _matches_nothing(entry: str, groups: Sequence[ModuleGroup], model_label: str) -> str:
    # A name with dots is compared with full names and group names, a plain one with group names only.
    known = {group.name for group in groups} | ({*all_module_names(groups)} if "." in entry else set())
    guess = nearest(entry, sorted(known))
    return f'"{entry[:80]}" matches nothing in {model_label}' + (f"; the nearest is {guess}" if guess else "")


def _full_matches(groups: Sequence[ModuleGroup], pattern: str, model_label: str) -> list[str]:
    """Full names that the person's regular expression matches from end to end, within the time limit."""
    expression = _compiled(pattern)
    deadline = time.monotonic() + REGEX_TIME_LIMIT_S
    matched = []
    for name in all_module_names(groups):
        remaining_s = deadline - time.monotonic()
        try:
            if remaining_s <= 0:
                raise TimeoutError
            if expression.fullmatch(name, timeout=remaining_s):
                matched.append(name)
        except TimeoutError:
            raise TargetError(
                f'the regular expression "{pattern[:80]}" takes too long on the module names of {model_label}; '
                "avoid nested repetition such as (a+)+"
            ) from None
    if matched:
        return matched
    names = {group.name for group in groups}
    if pattern in names:
        raise TargetError(
            f'"{pattern}" is read as a regular expression on full module names and matches none; '
            f'give the list ["{pattern}"] or the expression ".*\\.{pattern}"'
        )
    raise TargetError(_matches_nothing(pattern, groups, model_label))


def _compiled(pattern: str) -> regex.Pattern[str]:
    if len(pattern) > REGEX_LENGTH_LIMIT:
        raise TargetError(
            f"the regular expression has {len(pattern)} characters; at most {REGEX_LENGTH_LIMIT} are taken"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Compiled by Python's own module first, as PEFT would: only what that knows is taken, so no recursion or
            # fuzzy matching. Matched with the one that can be stopped.
            re.compile(pattern)
            return regex.compile(pattern)
    except (re.error, regex.error) as error:
        place = f" at position {error.pos}" if error.pos is not None else ""
        raise TargetError(f'"{pattern[:80]}" is not a regular expression: {error.msg}{place}') from None
    except (RecursionError, OverflowError, MemoryError):
        raise TargetError(f'"{pattern[:80]}" is too deeply nested or too large for a regular expression') from None


def _narrow(groups: Sequence[ModuleGroup], matched: Iterable[str]) -> Targets:
    """Targets for a set of full names: endings where they name exactly that set, full names elsewhere."""
    chosen = set(matched)
    every = all_module_names(groups)
    modules: set[str] = set()
    parameters: set[str] = set()
    narrowed: list[ModuleGroup] = []
    for group in groups:
        parts = group.narrowed(chosen)
        if not parts:
            continue
        narrowed += parts
        ending = f".{group.name}"
        named_alike = [name for name in every if name == group.name or name.endswith(ending)]
        destination = parameters if group.kind == "experts" else modules
        if all(name in chosen for name in named_alike):
            destination.add(group.name)
        else:
            destination.update(name for part in parts for name in part.module_names())
    return Targets(tuple(sorted(modules)), tuple(sorted(parameters)), tuple(narrowed))
