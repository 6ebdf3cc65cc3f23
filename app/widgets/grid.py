"""The sweep: every combination of what was chosen, each with whether it can run, was measured, and how long it takes.

Pure functions on choices and stored facts. Draws nothing and queues nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from app import formatting
from app.places import Place
from app.widgets import labels
from app.widgets.estimates import Estimator, Expectation
from engine import catalog
from engine.catalog import ModuleGroup
from engine.spec import Measured, SpecError, parse_spec, spec_hash

MAX_COMBINATIONS = 200
# Spec fields that a type may lack; they are left out of its specs.
_COMMON = ("rank", "alpha", "dropout")


@dataclass(frozen=True, slots=True)
class AdapterPick:
    """One chosen adapter: a type with the options that make it what it is called, a saved folder, or neither."""

    label: str
    type: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None
    low_cpu_mem_usage: bool = False

    @property
    def is_bare(self) -> bool:
        """Whether this is the choice of no adapter at all."""
        return self.type is None and self.path is None


@dataclass(frozen=True, slots=True)
class Choices:
    """What the form holds. Each list is one axis of the grid; ``options`` are axes of one adapter type each.

    ``section`` holds the axes of the kind's own section, ``places`` where the runs are sent.
    """

    kind: str
    models: Sequence[str]
    adapters: Sequence[AdapterPick]
    strategies: Sequence[str]
    targets: Sequence[str | tuple[str, ...]]
    dtypes: Sequence[str]
    devices: Sequence[str]
    fields: Mapping[str, Sequence[Any]]
    adapter_fields: Mapping[str, Sequence[Any]]
    options: Mapping[str, Mapping[str, Sequence[Any]]]
    section: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    places: Sequence[Place] = (Place(),)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination: its spec where it is valid, the sentence where it cannot run."""

    document: Mapping[str, Any]
    adapter: str
    spec: Measured | None
    problem: str | None
    measured: int = 0
    expectation: Expectation | None = None


def combinations(choices: Choices) -> Iterator[tuple[AdapterPick, dict[str, Any]]]:
    """Spec documents in the order in which people read a grid: model, adapter, strategy, targets, then the rest."""
    for model, pick in itertools.product(choices.models, choices.adapters):
        adapters = list(_adapter_documents(pick, choices))
        for strategy, adapter, dtype, device, place in itertools.product(
            choices.strategies, adapters, choices.dtypes, choices.devices, choices.places
        ):
            for values, section in itertools.product(_products(choices.fields), _sections(pick, choices)):
                yield (
                    pick,
                    {
                        "kind": choices.kind,
                        "model": model,
                        "dtype": dtype,
                        "device": device,
                        "strategy": strategy,
                        "adapter": adapter,
                        **place.fields,
                        **values,
                        **section,
                    },
                )


def _products(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _sections(pick: AdapterPick, choices: Choices) -> list[dict[str, Any]]:
    """The kind's section in each of its combinations, without what the adapter cannot have.

    The bare model has no variants and no number of adapters, and some types have no merged variant.
    """
    if not choices.section:
        return [{}]
    axes = dict(choices.section)
    if pick.is_bare:
        axes = {name: values for name, values in axes.items() if name not in ("variants", "adapters")}
    elif pick.type is not None and catalog.cannot(catalog.adapter_type(pick.type), pick.options, "merge"):
        variants = [[name for name in chosen if name != "merged"] for chosen in axes.get("variants", ())]
        axes |= {"variants": [chosen for chosen in variants if chosen]} if any(variants) else {}
    return [{choices.kind: section} for section in _products(axes)]


def _adapter_documents(pick: AdapterPick, choices: Choices) -> Iterator[dict[str, Any] | None]:
    if pick.is_bare:
        yield None
        return
    if pick.path is not None:
        for dtype in choices.adapter_fields["adapter_dtype"]:
            yield {"path": pick.path, "low_cpu_mem_usage": pick.low_cpu_mem_usage, "adapter_dtype": dtype}
        return
    kind = catalog.adapter_type(pick.type or "lora")
    axes: dict[str, Sequence[Any]] = {}
    if kind.targets_modules:
        axes["target_modules"] = [list(target) if isinstance(target, tuple) else target for target in choices.targets]
    for name, values in choices.adapter_fields.items():
        if values and (name not in _COMMON or name in kind.common_fields):
            axes[name] = values
    extra = choices.options.get(kind.id, {})
    for values in itertools.product(*axes.values()):
        for option_values in itertools.product(*extra.values()):
            yield {
                "type": kind.id,
                **dict(zip(axes, values, strict=True)),
                "options": {**dict(zip(extra, option_values, strict=True)), **pick.options},
            }


def candidates(
    choices: Choices,
    *,
    problems: Callable[[Measured], Sequence[SpecError]],
    measured: Mapping[str, int],
    estimator: Estimator,
    facts: Callable[[str], tuple[int | None, Sequence[ModuleGroup]]],
) -> list[Candidate]:
    """Every distinct combination, at most ``MAX_COMBINATIONS`` of them.

    Args:
        choices: what the form holds.
        problems: everything that keeps a valid spec from running here.
        measured: how often each spec, by its hash, was measured.
        estimator: expected durations.
        facts: a model's parameter count (None where unknown) and module groups.
    """
    found: list[Candidate] = []
    seen: set[str] = set()
    for pick, document in itertools.islice(combinations(choices), MAX_COMBINATIONS + 1):
        try:
            spec = parse_spec(document)
        except SpecError as error:
            found.append(Candidate(document, pick.label, None, str(error)))
            continue
        assert isinstance(spec, Measured)
        key = spec_hash(spec)
        if key in seen:
            continue
        seen.add(key)
        full = spec.model_dump(mode="json")
        trouble = problems(spec)
        parameters, groups = facts(spec.model)
        label = labels.adapter_option_label(spec.kind, full["adapter"])
        expectation = estimator.expect(
            kind=spec.kind,
            model=spec.model,
            adapter=label,
            strategy=spec.strategy,
            dtype=spec.dtype,
            device=spec.device,
            spec=full,
            parameters=parameters,
            groups=groups,
        )
        found.append(
            Candidate(full, label, spec, str(trouble[0]) if trouble else None, measured.get(key, 0), expectation)
        )
    return found


def runnable(found: Sequence[Candidate]) -> list[Measured]:
    """The specs that can be launched."""
    return [candidate.spec for candidate in found if candidate.spec is not None and candidate.problem is None]


def expected_total_s(found: Sequence[Candidate]) -> tuple[float | None, bool]:
    """Expected seconds of all runnable candidates together (None if one is unknown), and whether any is an estimate."""
    expectations = [candidate.expectation for candidate in found if candidate.problem is None]
    if not expectations or any(expectation is None for expectation in expectations):
        return None, False
    known = [expectation for expectation in expectations if expectation is not None]
    return sum(item.seconds for item in known), any(not item.is_measured for item in known)


def preview_frame(found: Sequence[Candidate]) -> pd.DataFrame:
    """The preview table, with a column for each further field that differs between the combinations."""
    lines = []
    varying = _varying([candidate.document for candidate in found])
    for candidate in found:
        document = candidate.document
        expectation = candidate.expectation
        about = "" if expectation is None or expectation.is_measured else "≈ "
        lines.append(
            {
                "Model": labels.model_label(str(document["model"])),
                "Adapter": candidate.adapter,
                "Strategy": labels.strategy_label(str(document["kind"]), str(document["strategy"])),
                "Targets": labels.targets_label(document),
                "Dtype": document["dtype"],
                "Device": document["device"],
                **{name: _shown(_at(document, path)) for name, path in varying.items()},
                "Measured": f"×{candidate.measured}" if candidate.measured else "",
                "Expected": about + formatting.duration(expectation.seconds)
                if expectation is not None and candidate.problem is None
                else formatting.DASH,
                "Problem": candidate.problem or "",
            }
        )
    frame = pd.DataFrame(lines)
    return frame.drop(columns=[name for name in ("Measured", "Problem") if not frame[name].any()])


def _varying(documents: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    shown = {("model",), ("strategy",), ("dtype",), ("device",), ("kind",), ("task",)}
    hidden: set[tuple[str, ...]] = {
        ("adapter",),
        ("adapter", "target_modules"),
        ("adapter", "path"),
        ("adapter", "type"),
    }
    hidden |= {("adapter", "options", name) for choice in catalog.adapter_choices() for name in choice.options}
    paths: dict[tuple[str, ...], list[Any]] = {}
    for document in documents:
        for path, _ in _leaves(document):
            paths.setdefault(path, [])
    for path, values in paths.items():
        # The bare model lacks all that belongs to an adapter, which its name says already.
        alike = [item for item in documents if item["adapter"] is not None or not _of_adapter(path)]
        values += [repr(_at(document, path)) for document in alike]
    return {path[-1]: path for path, values in paths.items() if len(set(values)) > 1 and path not in shown | hidden}


def _of_adapter(path: tuple[str, ...]) -> bool:
    return path[0] == "adapter" or path[-1] in ("variants", "adapters")


def _leaves(document: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _at(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = document
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
