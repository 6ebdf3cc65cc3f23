"""Which runs are compared as one: replicas, or all that share the value of chosen fields; and what each is called.

Inside an inference run every variant is compared on its own, and inside a train run the plain stock step beside the
specified one. Variants that the strategy does not touch are the same measurement in runs of every strategy, and the
base model in runs of every adapter; they are pooled. Sample data is never pooled with other runs. Looks at no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from app.comparison import environments, fields
from app.comparison.environments import Identity
from app.comparison.fields import Flat
from app.kinds import KINDS, inference
from app.widgets import labels
from db.runs import RunRow

#: The side of a train run that is measured beside what was specified.
PLAIN_STOCK = "stock"
_BASE = inference.BASE
# What an adapter acts on no more than on the base.
_ADAPTER_ASIDE = frozenset({_BASE, "adapter_disabled"})
# Variants of inference that do not depend on the run's strategy.
_OF_EVERY_STRATEGY = frozenset({_BASE, "adapter_disabled", "adapter", "merged"})
# How often and how long something is measured does not change what it is, either.
_FIELDS_OF_STRATEGY = frozenset(
    {"strategy", "inference.variants", "repeats", "warmup", "timeout_s", "memory_limit_bytes"}
)
_SAVINGS = frozenset({"train.gradient_checkpointing", "train.loss_chunks", "train.sequence_tiles"})
# Fields that the name of adapter, strategy and variant tells already.
_IN_THE_NAME = frozenset({"adapter", "strategy", "adapter.options.use_dora", "quantization"}) | _SAVINGS
# Fields that never make a name: they say when and why a run was made, not what it measures.
_NEVER_NAMED = fields.OUTCOMES | {
    "kind",
    "adapter_type",
    "adapter.type",
    "name",
    "note",
    "tag",
    "sweep",
    "origin",
    "inference.variants",
    "environment.commit",
    "environment.dirty",
}
# Fields that make a name only where nothing else tells two groups apart.
_NAMED_LAST = frozenset({"repeats", "warmup", "seed", "timeout_s", "memory_limit_bytes", "node"})


@dataclass(frozen=True, slots=True)
class Member:
    """One run, or one variant inside it."""

    run_id: int
    variant: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """What is compared as one.

    Attributes:
        label: its name, different from that of every other group on screen.
        adapter: label of the adapter for its colour; empty where none acts, or several do.
        members: its runs, or variants inside them.
        recipe: equal in groups that differ in nothing but the environment.
        environment: what it was measured on; None where its runs differ in it.
    """

    label: str
    adapter: str
    members: tuple[Member, ...]
    recipe: Hashable
    environment: Identity | None

    @property
    def run_ids(self) -> tuple[int, ...]:
        """Its runs, each once."""
        return tuple(dict.fromkeys(member.run_id for member in self.members))


def side(row: RunRow, variant: str | None) -> str | None:
    """The variant that a value belongs to as something compared; None for what was taken on the run as a whole.

    Only inference and train compare variants inside a run; elsewhere a variant is another view of the same thing.
    """
    if row.kind == "inference":
        return variant
    return variant if row.kind == "train" and variant == PLAIN_STOCK else None


def main_side(row: RunRow) -> str | None:
    """What a run is about: its own strategy's variant in inference, everything elsewhere."""
    kind = KINDS.get(row.kind)
    return kind.main_variant(row) if kind else None


def group_runs(
    rows: Sequence[RunRow],
    flats: Mapping[int, Flat],
    identities: Mapping[int, Identity],
    sides: Mapping[int, Collection[str | None]],
    by: Sequence[str] = (),
) -> list[Group]:
    """Groups in the order in which they read as a comparison: without adapter first, then LoRA, stock before others.

    Args:
        rows: the runs.
        flats: :func:`fields.flat` of each.
        identities: :func:`environments.identity` of each.
        sides: the variants of each that are compared (see :func:`side`).
        by: fields whose values make the groups; replicas do where there are none. A run with a failed check proves
            nothing and is never pooled with others, nor is sample data.
    """
    members: dict[_Key, list[tuple[Member, RunRow]]] = {}
    for row in rows:
        for name in sides[row.id]:
            key = _key(row, name, flats[row.id], identities[row.id], by)
            members.setdefault(key, []).append((Member(row.id, name), row))
    drafts = [_Draft(key, found, flats, identities, by) for key, found in members.items()]
    names = _names(drafts, flats, by)
    ordered = sorted(zip(drafts, names, strict=True), key=lambda pair: pair[0].place)
    return [Group(name, draft.adapter, draft.members, draft.recipe, draft.environment) for draft, name in ordered]


# What is compared, and what else keeps runs of it apart.
_Key = tuple[Hashable, Hashable]


def _key(row: RunRow, name: str | None, flat: Flat, identity: Identity, by: Sequence[str]) -> _Key:
    is_sample = row.origin == labels.SAMPLE
    has_failed = bool(row.failed_checks) and name != _BASE
    if by:
        values = tuple(fields.distinct(flat.get(field)) for field in by)
        return ((values, name if row.kind == "inference" and name != main_side(row) else None, has_failed), is_sample)
    if row.kind == "train" and row.strategy == PLAIN_STOCK and not labels.savings(row.spec):
        # What was specified is plain stock itself.
        name = PLAIN_STOCK
    aside = _aside(row.kind, name)
    recipe: Hashable = row.spec_hash
    if aside:
        recipe = tuple(
            (field, fields.distinct(value))
            for field, value in sorted(fields.leaves(row.spec))
            if not _is_aside(field, aside)
        )
    return ((recipe, name, has_failed), (identity, is_sample))


def _aside(kind: str, name: str | None) -> frozenset[str]:
    """The fields that a variant does not depend on; a name that ends in a dot stands for all below it."""
    if name == PLAIN_STOCK:
        return _FIELDS_OF_STRATEGY | _SAVINGS
    if kind == "inference" and name == _BASE:
        return _FIELDS_OF_STRATEGY | {"adapter", "adapter.", "inference.adapters"}
    return _FIELDS_OF_STRATEGY if kind == "inference" and name in _OF_EVERY_STRATEGY else frozenset()


def _is_aside(field: str, aside: frozenset[str]) -> bool:
    return field in aside or f"{field.partition('.')[0]}." in aside


class _Draft:
    """A group that has no name yet."""

    def __init__(
        self,
        key: _Key,
        found: list[tuple[Member, RunRow]],
        flats: Mapping[int, Flat],
        identities: Mapping[int, Identity],
        by: Sequence[str],
    ) -> None:
        self.members = tuple(member for member, _ in found)
        self.rows = [row for _, row in found]
        self.first = self.rows[0]
        # A specified plain stock run is the same as the plain stock side of another.
        sides = {member.variant for member in self.members}
        self.side = self.members[0].variant if len(sides) == 1 else PLAIN_STOCK
        here = {identities[row.id] for row in self.rows}
        self.environment = here.pop() if len(here) == 1 else None
        self.recipe = key[0]
        self.is_sample = self.first.origin == labels.SAMPLE
        acting = {"" if self.side in _ADAPTER_ASIDE else row.adapter or "" for row in self.rows}
        self.adapter = acting.pop() if len(acting) == 1 else ""
        self.way = self._way()
        colours = ["", labels.FULL, *labels.adapter_colours()]
        self.place = (
            tuple(fields.order(flats[self.first.id].get(field)) for field in by),
            colours.index(self.adapter) if self.adapter in colours else len(colours),
            self.adapter,
            inference.PLACES.get(self.side or "", 3) if self.first.kind == "inference" else 0,
            self.first.strategy != "stock" and self.side != PLAIN_STOCK,
            self.way,
            tuple(
                fields.order(value)
                for field, value in sorted(flats[self.first.id].items())
                if field not in _NEVER_NAMED and isinstance(value, int | float)
            ),
            self.first.id,
        )

    def _way(self) -> str:
        """What it is by adapter, strategy and variant."""
        row = self.first
        if row.kind == "inference" and self.side is not None:
            name = inference.variant_label(self.side, row.adapter)
        elif self.side == PLAIN_STOCK:
            adapter = row.adapter or labels.bare_label(row.kind)
            name = f"{adapter} · {labels.strategy_label(row.kind, PLAIN_STOCK)}"
        else:
            name = labels.variant_label(row)
        return f"{name}, check failed" if row.failed_checks and self.side != _BASE else name

    def value(self, field: str, flats: Mapping[int, Flat]) -> tuple[bool, Hashable]:
        """Its value of a field, where the field matters to it and all its runs agree."""
        if _is_aside(field, _aside(self.first.kind, self.side)):
            return (False, None)
        values = {fields.distinct(flats[row.id].get(field)) for row in self.rows}
        return (True, values.pop()) if len(values) == 1 else (False, None)


def _names(drafts: Sequence[_Draft], flats: Mapping[int, Flat], by: Sequence[str]) -> list[str]:
    """A name for each: how it is done, then every field that differs among them, as short as it stays clear."""
    if by:
        parts = [[fields.short(field, flats[draft.first.id].get(field)) for field in by] for draft in drafts]
        if len({_variant_of(draft) for draft in drafts}) > 1:
            for draft, part in zip(drafts, parts, strict=True):
                part.append(_variant_of(draft))
        return _distinct(drafts, _marked(drafts, parts), flats)
    known = list(dict.fromkeys(field for draft in drafts for row in draft.rows for field in flats[row.id]))
    named = [
        field
        for field in known
        if not field.startswith("environment.")
        and field not in _NEVER_NAMED | _NAMED_LAST | _IN_THE_NAME
        and len({_known_value(draft, field, flats) for draft in drafts} - {None}) > 1
    ]
    details = [_shorts(draft, named, flats) for draft in drafts]
    is_one_way = len({draft.way for draft in drafts}) == 1 and all(details)
    parts = [part if is_one_way else [draft.way, *part] for draft, part in zip(drafts, details, strict=True)]
    return _distinct(drafts, _marked(drafts, parts), flats)


def _marked(drafts: Sequence[_Draft], parts: Sequence[list[str]]) -> list[list[str]]:
    """The parts of the names, those of sample data marked where other runs are beside it.

    The mark is the second part, as charts cut long names at their end.
    """
    if all(draft.is_sample for draft in drafts):
        return list(parts)
    pairs = zip(drafts, parts, strict=True)
    return [[*part[:1], "sample data", *part[1:]] if draft.is_sample else part for draft, part in pairs]


def _variant_of(draft: _Draft) -> str:
    return inference.variant_label(draft.side, None) if draft.first.kind == "inference" and draft.side else ""


def _known_value(draft: _Draft, field: str, flats: Mapping[int, Flat]) -> Hashable:
    """A group's value of a field that it has and that matters to it, else None: full fine-tuning has no rank."""
    matters, value = draft.value(field, flats)
    return value if matters and field in flats[draft.first.id] else None


def _shorts(draft: _Draft, names: Sequence[str], flats: Mapping[int, Flat]) -> list[str]:
    flat = flats[draft.first.id]
    return [fields.short(field, flat.get(field)) for field in names if draft.value(field, flats)[0] and field in flat]


def _distinct(drafts: Sequence[_Draft], parts: Sequence[list[str]], flats: Mapping[int, Flat]) -> list[str]:
    """The parts joined; where two are the same, with what tells them apart, at last with a run's number."""
    names = [", ".join(filter(None, part)) or draft.way for draft, part in zip(drafts, parts, strict=True)]
    for which in (_named_last, _named_by_environment, _named_by_way):
        names = _tell_apart(names, drafts, flats, which)
    return [
        f"{name} (run {draft.first.id})" if names.count(name) > 1 else name
        for name, draft in zip(names, drafts, strict=True)
    ]


_Candidates = Callable[[Sequence[_Draft], Mapping[int, Flat]], list[list[str]]]


def _tell_apart(
    names: list[str], drafts: Sequence[_Draft], flats: Mapping[int, Flat], candidates: _Candidates
) -> list[str]:
    """Names with more to them where several are the same."""
    told = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        places = [place for place, other in enumerate(names) if other == name]
        extras = candidates([drafts[place] for place in places], flats)
        for place, extra in zip(places, extras, strict=True):
            told[place] = ", ".join([name, *extra])
    return told


def _named_last(drafts: Sequence[_Draft], flats: Mapping[int, Flat]) -> list[list[str]]:
    """What differs in the spec but is no part of a name by itself: options, seeds, repeats."""
    known = dict.fromkeys(field for draft in drafts for field in flats[draft.first.id])
    wanted = [
        field
        for field in known
        if not field.startswith("environment.")
        and field not in _NEVER_NAMED
        and len({draft.value(field, flats) for draft in drafts}) > 1
    ]
    return [_shorts(draft, wanted, flats) for draft in drafts]


def _named_by_environment(drafts: Sequence[_Draft], flats: Mapping[int, Flat]) -> list[list[str]]:
    """The versions that differ, or else the first part of hardware and settings that does."""
    found = environments.differences([draft.environment for draft in drafts if draft.environment is not None])
    versions = [difference for difference in found if difference.category == environments.VERSIONS]
    chosen = (versions or found)[:2]
    environs = [dict(draft.environment or ()) for draft in drafts]
    return [
        [fields.short(f"environment.{difference.field}", values.get(difference.field)) for difference in chosen]
        for values in environs
    ]


def _named_by_way(drafts: Sequence[_Draft], flats: Mapping[int, Flat]) -> list[list[str]]:
    """Adapter and strategy, where groups are by another field."""
    return [[draft.way] if len({other.way for other in drafts}) > 1 else [] for draft in drafts]
