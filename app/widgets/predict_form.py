"""The form of the Predict page: what to predict, all of it in the address, and the specs that follow from it.

Looks at no database and predicts nothing. What a spec cannot be is said by the spec itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import streamlit as st

from app import formatting, state
from app.widgets import adapter_picker, address, fields, grid, labels, presenting, section_form, target_picker
from app.widgets.grid import AdapterPick
from engine import catalog
from engine.catalog import folders
from engine.catalog.cards import Card, cards
from engine.catalog.targets import PRESETS
from engine.result import Device
from engine.spec import Measured, SpecError, parse_spec, spec_hash

KINDS = ("train", "inference", "init", "merge")
DEFAULT_MODEL = "tinyllama-1.1b"
#: Lengths that the default model can read, by kind; those of training are the published ones of case 3.
DEFAULT_LENGTHS = {"train": "512, 1024, 1536, 2048", "inference": "256, 512, 1024"}
#: The field of the spec that lengths are of, by kind; attaching and merging read no tokens.
LENGTH_FIELD = {"train": "context_length", "inference": "prompt_tokens"}
MOST_SPECS = 100
THIS_MACHINE = "This machine"
_DTYPES = ("bfloat16", "float16", "float32")
_ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
_NAMED_WHERE_SEVERAL = ("batch_size", "new_tokens", "loss_chunks", "sequence_tiles")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to predict for: a device of this machine, or a card (an id of the catalog) that need not be here."""

    label: str
    device: Device
    card: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether this machine has it."""
        return self.card is None


@dataclass(frozen=True, slots=True)
class Asked:
    """One spec with the group (a way to do it) and the length that it has on the charts."""

    spec: Measured
    group: str
    adapter: str
    length: int | None

    @property
    def hash(self) -> str:
        """Of the spec."""
        return spec_hash(self.spec)


@dataclass(frozen=True, slots=True)
class Form:
    """What was chosen, and one sentence for each thing that cannot be."""

    kind: str
    model: str
    place: Place
    asked: Sequence[Asked]
    problems: Sequence[str]


def places() -> list[Place]:
    """This machine's devices, then the cards that can be had."""
    here = [
        Place(THIS_MACHINE if device.kind == "cpu" else f"{device.name} ({device.id}, here)", device)
        for device in state.devices()
    ]
    return here + [Place(card.label, _device(card), card.id) for card in cards().values()]


def _device(card: Card) -> Device:
    kind: Literal["cuda", "mps"] = "cuda" if card.device == "cuda" else "mps"
    return Device("cuda:0" if kind == "cuda" else kind, kind, card.label, card.memory_bytes, card.dtypes)


def one_model() -> str:
    """A bundled model, or whatever folder or hub id is typed."""
    return address.one_or_new(
        "Model",
        list(catalog.models()),
        key="model",
        default=DEFAULT_MODEL,
        text=labels.model_label,
        help="For a model of your own, type the path of its folder or its hub id and press Enter.",
        placeholder="Choose, or type a folder or hub id",
    )


def draw() -> Form:
    """Draw the form and read it."""
    labelled = {labels.kind_label(kind): kind for kind in KINDS}
    kind = labelled[address.tab("What", list(labelled), key="kind")]
    problems: list[str] = []
    with st.grid(4, min_column_width=210):
        model = one_model()
        picks = methods(kind)
        known = places()
        place = address.one(
            "Device",
            known,
            key="device",
            default=known[0],
            text=lambda one: one.label,
            help="A card need not be here.",
            width="stretch",
        )
        lengths: list[Any] = [None]
        if kind in LENGTH_FIELD:
            label = "Context lengths" if kind == "train" else "Prompt lengths"
            key = "lengths" if kind == "train" else "prompts"
            lengths = numbers(label, key, DEFAULT_LENGTHS[kind], problems, "Tokens, separated by commas.") or [None]
    more = "More: rank, targets, batch, dtype, what saves memory"
    with st.container() if presenting.is_on() else st.expander(more, icon=":material/tune:"):
        fields_of_spec, adapter_fields, section, strategies = _more(kind, problems)
    model = folders.expanded(model.strip())
    choices = grid.Choices(
        kind=kind,
        models=[model],
        adapters=picks,
        strategies=strategies,
        targets=adapter_fields.pop("target_modules"),
        dtypes=fields_of_spec.pop("dtype"),
        devices=[place.device.id],
        fields=fields_of_spec,
        adapter_fields=adapter_fields,
        options={},
        section={LENGTH_FIELD[kind]: lengths, **section} if kind in LENGTH_FIELD and lengths != [None] else section,
    )
    asked, refused = _specs(choices) if not problems else ([], [])
    if not picks:
        problems.append("Choose at least one method.")
    return Form(kind, model, place, asked, [*problems, *refused])


def methods(kind: str, default: Sequence[str] | None = None) -> list[AdapterPick]:
    """A list of the adapters that can do this kind, and of no adapter where that is one way to do it."""
    choices = {choice.id: choice for choice in catalog.adapter_choices()}
    possible = [
        name
        for name, choice in choices.items()
        if catalog.cannot(catalog.adapter_type(choice.type), choice.options, kind) is None
    ]
    bare = [adapter_picker.BARE] if kind in adapter_picker.BARE_LABELS else []
    chosen = address.several(
        "Methods",
        [*bare, *possible],
        # A list of its own for each kind: some have no bare model, and few types can do everything.
        key="methods" if kind == "train" else f"methods_{kind}",
        default=default or adapter_picker.DEFAULT_ADAPTERS[kind],
        text=lambda name: labels.bare_label(kind) if name == adapter_picker.BARE else choices[name].label,
        width="stretch",
    )
    return [
        AdapterPick(labels.bare_label(kind))
        if name == adapter_picker.BARE
        else AdapterPick(choices[name].label, choices[name].type, choices[name].options)
        for name in chosen
    ]


def numbers(label: str, key: str, default: str, problems: list[str], help_text: str | None = None) -> list[Any]:
    """A field of whole numbers; what cannot be read becomes a sentence among ``problems``."""
    text = address.words(label, key=key, default=default, help=help_text)
    try:
        return list(fields.parse_numbers(label, text, whole=True))
    except fields.FieldError as error:
        problems.append(str(error))
        return []


def _more(
    kind: str, problems: list[str]
) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]], dict[str, Sequence[Any]], list[str]]:
    """Fields of the spec, of the adapter and of the kind's section, and the strategies."""
    section: dict[str, Sequence[Any]] = {}
    with st.grid(4, min_column_width=190):
        if kind in LENGTH_FIELD:
            section["batch_size"] = numbers("Batch sizes", "batch", "1", problems)
        if kind == "inference":
            section["new_tokens"] = numbers("New tokens", "new", "64", problems)
        adapter_fields: dict[str, Sequence[Any]] = {"rank": numbers("Ranks", "rank", "16", problems)}
        adapter_fields["target_modules"] = [
            address.one(
                "Target modules",
                PRESETS,
                key="targets",
                default=PRESETS[0],
                text=target_picker.preset_label,
                width="stretch",
            )
        ]
        known = {strategy.id: strategy.label for strategy in catalog.strategies(kind)}
        strategies = address.several(
            "Strategies",
            list(known),
            key="strategies" if kind == "train" else f"strategies_{kind}",
            default=["stock"],
            text=known.__getitem__,
            width="stretch",
        )
        spec_fields: dict[str, Sequence[Any]] = {
            "dtype": [address.one("Model dtype", _DTYPES, key="dtype", default=_DTYPES[0], width="stretch")],
            "attention": [
                address.one("Attention", _ATTENTIONS, key="attention", default=_ATTENTIONS[0], width="stretch")
            ],
        }
        dtypes = ("float32", "model's")
        as_model = address.one("Adapter dtype", dtypes, key="adapter_dtype", default=dtypes[0], width="stretch")
        adapter_fields["adapter_dtype"] = ["float32"] if as_model == "float32" else spec_fields["dtype"]
        if kind == "train":
            for name, label in (("loss_chunks", "Loss chunks"), ("sequence_tiles", "Sequence tiles")):
                section[name] = numbers(label, name, "1", problems)
            optimizers = next(one for one in section_form.MORE["train"] if one.name == "optimizer")
            assert isinstance(optimizers, section_form.Chips)
            section["optimizer"] = [
                address.one("Optimizer", optimizers.options, key="optimizer", default="adamw", width="stretch")
            ]
        if kind in ("train", "inference"):
            quantised = {"none": None, "int8": "int8", "nf4": "nf4"}
            chosen = address.one("Quantised base", list(quantised), key="quantised", default="none", width="stretch")
            if quantised[chosen] is not None:
                spec_fields["quantization"] = [quantised[chosen]]
    if kind == "train":
        section["gradient_checkpointing"] = [address.switch("Gradient checkpointing", key="checkpointing")]
    # An empty field is the default, not an empty axis that leaves nothing.
    section = {name: values for name, values in section.items() if values}
    return spec_fields, adapter_fields, section, strategies or ["stock"]


def _specs(choices: grid.Choices) -> tuple[list[Asked], list[str]]:
    """The specs, each with its place on the charts, and one sentence for each reason why some cannot be."""
    found: dict[str, Asked] = {}
    problems: dict[str, None] = {}
    several = {name for name in _NAMED_WHERE_SEVERAL if len(choices.section.get(name, ())) > 1}
    ranks = len(choices.adapter_fields["rank"]) > 1
    for pick, document in itertools.islice(grid.combinations(choices), MOST_SPECS + 1):
        if len(found) == MOST_SPECS:
            problems[f"Only the first {MOST_SPECS} combinations are predicted; choose fewer values."] = None
            break
        try:
            spec = parse_spec(document)
        except SpecError as error:
            problems[formatting.sentence(str(error))] = None
            continue
        assert isinstance(spec, Measured)
        section = document.get(choices.kind) or {}
        parts = [pick.label]
        if len(choices.strategies) > 1 or spec.strategy != "stock":
            parts.append(labels.strategy_label(spec.kind, spec.strategy))
        if ranks and not pick.is_bare:
            parts.append(f"rank {document['adapter'].get('rank')}")
        parts += [f"{name.replace('_', ' ').removesuffix(' size')} {section[name]}" for name in sorted(several)]
        length = section.get(LENGTH_FIELD.get(choices.kind, ""))
        found.setdefault(spec_hash(spec), Asked(spec, ", ".join(parts), pick.label, length))
    return list(found.values()), list(problems)
