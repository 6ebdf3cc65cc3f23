"""Every adapter type, and every form and data-free init of LoRA, does what the catalog says, and cannot what it says.

Real PEFT on a model of two layers. Where the catalog says that something cannot be had, PEFT is tried all the same, and
must refuse or give a wrong result: a reason that is not true any more fails here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from engine import catalog
from engine.adapters import attach, peft_config, resolve_targets, trainable_parameters
from engine.catalog.abilities import surroundings
from engine.catalog.adapter_types import AdapterType
from engine.catalog.requirements import problems
from engine.models import build_model
from engine.module_groups import list_groups
from engine.result import Device
from engine.spec import FreshAdapter, InitSpec, SpecError, parse_spec
from engine.strategies.proof import perturb

FORMS: Mapping[str, Mapping[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "no init": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "dora pissa": {"use_dora": True, "init_lora_weights": "pissa"},
    "dora rslora": {"use_dora": True, "use_rslora": True},
    "kasa": {"kasa_config": {}},
    "velora": {"velora_config": {}},
    "monteclora": {"monteclora_config": {}},
    "alora": {"alora_invocation_tokens": [5, 6]},
    "lora_bias": {"lora_bias": True},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable tokens": {"trainable_token_indices": [1, 2]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 8}},
}
CPU = Device("cpu", "cpu", "A processor", 2**34, ("float32", "bfloat16", "float16"))
TYPES = [entry for entry in catalog.adapter_types().values() if entry.unavailable_reason is None]
UNAVAILABLE = [entry.id for entry in catalog.adapter_types().values() if entry.unavailable_reason is not None]
# Part of the logits' own change by the adapter. A merge that is wrong by 1 % is a hundred times above the first.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
# The last layer's network only prepares a state that no later layer reads.
WITHOUT_GRADIENT = {"shadow": r"layers\.1\.shadow_update|shadow_"}
# Two rows that hold the tokens which some adapters act on: 0 to 3 (trained tokens), 5 and 6 (aLoRA's invocation).
TOKENS = torch.randint(10, 500, (2, 14), generator=torch.Generator().manual_seed(3))
TOKENS[:, 2:8] = torch.tensor([5, 6, 0, 1, 2, 3])


@dataclasses.dataclass(frozen=True)
class Case:
    """An adapter type with the options that make it a form of its own."""

    name: str
    type: str
    options: Mapping[str, Any]

    @property
    def entry(self) -> AdapterType:
        return catalog.adapter_type(self.type)

    def adapter(self, dtype: str, adapter_dtype: str) -> FreshAdapter:
        rank = 4 if "rank" in self.entry.common_fields else None
        spec = parse_spec(
            {
                "model": "tiny-test",
                "dtype": dtype,
                "adapter": {
                    "type": self.type,
                    "rank": rank,
                    "adapter_dtype": adapter_dtype,
                    "options": dict(self.options),
                },
            }
        )
        assert isinstance(spec, InitSpec)
        assert isinstance(spec.adapter, FreshAdapter)
        return spec.adapter

    def cannot(self, what: str, dtype: str = "float32", adapter_dtype: str = "float32") -> str | None:
        adapter = self.adapter(dtype, adapter_dtype)
        groups = catalog.model("tiny-test").groups
        adapted = resolve_targets(adapter, groups).groups if adapter.target_modules else None
        return catalog.cannot(self.entry, {**self.options, **surroundings(dtype, adapter_dtype, adapted)}, what)


CASES = [Case(name, "lora", options) for name, options in FORMS.items()]
CASES += [Case(entry.id, entry.id, {}) for entry in TYPES if entry.id != "lora"]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_type = pytest.mark.parametrize("case", [c for c in CASES if c.name == c.type], ids=lambda case: case.name)


@functools.cache
def tiny(dtype: str) -> PreTrainedModel:
    """The model to copy: building it takes longer than most of the tests."""
    return build_model(parse_spec({"model": "tiny-test", "dtype": dtype}))  # type: ignore[arg-type]


@functools.cache
def tiny_logits(dtype: str) -> Tensor:
    return logits(tiny(dtype))


class Bench:
    """A case's adapter, attached to a new model; ``base_logits`` are from before that."""

    def __init__(
        self, case: Case, *, noise: bool, dtype: str = "float32", adapter_dtype: str = "float32", seed: int = 0
    ) -> None:
        self.bare = copy.deepcopy(tiny(dtype))
        self.base = {id(parameter) for parameter in self.bare.parameters()}
        self.parameters = list(self.bare.parameters())
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.base_logits = tiny_logits(dtype)
        torch.manual_seed(seed)
        self.model: PeftModel = attach(self.bare, case.adapter(dtype, adapter_dtype)).eval()
        if noise:
            perturb(self.model, self.base, seed)

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def effect(self) -> float:
        return distance(logits(self.model), self.base_logits)

    def base_has_changed(self) -> bool:
        return any(not torch.equal(now, then) for now, then in zip(self.parameters, self.values, strict=True))


def logits(model: Any, **named: Any) -> Tensor:
    """Logits of the tokens themselves: virtual ones, which some adapters put in front, have none in the base model."""
    with torch.no_grad():
        return torch.Tensor(model(input_ids=TOKENS, use_cache=False, **named).logits[:, -TOKENS.shape[1] :].float())


def distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one.double() - other.double()))


def train_step(bench: Bench) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and gradients of one step of AdamW."""
    bench.model.train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(bench.trained.values(), lr=1e-3)
    loss = bench.model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in bench.trained.items()}
    optimizer.step()
    bench.model.eval()
    return loss.detach(), gradients


def _trains(bench: Bench) -> bool:
    """Whether a step runs, its products being of one dtype each, and its loss is a number."""
    try:
        loss, _ = train_step(bench)
    except RuntimeError as error:
        if "same dtype" not in str(error):
            raise
        return False
    return bool(loss.isfinite())


@each_case
def test_the_snippet_makes_the_config_that_is_measured(case: Case) -> None:
    adapter = case.adapter("float32", "float32")
    spec = InitSpec(model="tiny-test", dtype="float32", adapter=adapter)
    groups = catalog.model("tiny-test").groups
    lines = re.search(r"^config = \w+\(\n.*?^\)$", catalog.snippet(spec, groups), re.DOTALL | re.MULTILINE)
    assert lines is not None
    names: dict[str, Any] = vars(peft).copy()
    exec(lines[0], names)
    assert names["config"].to_dict() == peft_config(adapter, groups).to_dict()


# --- attach and train -------------------------------------------------------------------------------------------------


@each_case
def test_attaching_trains_the_adapter_and_leaves_the_base_frozen(case: Case) -> None:
    bench = Bench(case, noise=False)
    assert trainable_parameters(bench.model) > 0
    assert not any(id(parameter) in bench.base for parameter in bench.trained.values())
    assert logits(bench.model).isfinite().all()
    # What cannot be switched off has written into the base weights, and nothing else has.
    assert bench.base_has_changed() == (case.cannot("disable") is not None)


@each_case
def test_a_train_step_moves_the_adapter_and_not_the_base(case: Case) -> None:
    bench = Bench(case, noise=False)
    frozen = [parameter.detach().clone() for parameter in bench.parameters]
    before = {name: parameter.detach().clone() for name, parameter in bench.trained.items()}
    loss, gradients = train_step(bench)
    assert loss.isfinite()
    found = [gradient for gradient in gradients.values() if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.any() for gradient in found)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in bench.trained.items())
    assert all(parameter.grad is None for parameter in bench.parameters)
    assert all(torch.equal(now, then) for now, then in zip(bench.parameters, frozen, strict=True))


@each_case
def test_every_trained_parameter_gets_a_gradient_once_the_adapter_acts(case: Case) -> None:
    _, gradients = train_step(Bench(case, noise=True))
    without = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    expected = WITHOUT_GRADIENT.get(case.name)
    assert [name for name in without if not (expected and re.search(expected, name))] == []


@each_type
def test_gradient_checkpointing_works_or_is_refused(case: Case) -> None:
    bench = Bench(case, noise=False)
    bench.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if case.cannot("gradient_checkpointing"):
        with pytest.raises((RuntimeError, ValueError)):
            train_step(bench)
        return
    loss, gradients = train_step(bench)
    assert loss.isfinite()
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_an_adapter_in_half_precision_is_in_half_precision_or_that_is_refused(case: Case, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    bench = Bench(case, noise=False, dtype=name, adapter_dtype=name)
    dtypes = {parameter.dtype for parameter in bench.trained.values()}
    if case.cannot("half_precision", name, name):
        if dtypes == {dtype}:
            assert not _trains(bench)
        return
    assert dtypes == {dtype}
    loss, gradients = train_step(bench)
    assert loss.isfinite()
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())


@each_type
def test_a_classifier_trains_its_head_or_is_refused(case: Case) -> None:
    config = copy.deepcopy(tiny("float32").config)
    config.num_labels, config.pad_token_id = 2, 0
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    adapter = case.adapter("float32", "float32")

    def trains_its_head() -> bool:
        built = peft_config(adapter, list_groups(model), task="sequence_classification")
        attached = attach(model, adapter, config=built).train()
        loss = attached(input_ids=TOKENS, labels=torch.tensor([0, 1])).loss
        loss.backward()
        return any("score" in name and p.grad is not None and p.grad.any() for name, p in attached.named_parameters())

    if case.cannot("sequence_classification"):
        try:
            assert not trains_its_head()
        except SpecError:
            return
    else:
        assert trains_its_head()


# --- inference --------------------------------------------------------------------------------------------------------


@each_case
def test_inference_computes_and_writes_tokens(case: Case) -> None:
    bench = Bench(case, noise=True)
    assert logits(bench.model).isfinite().all()
    assert bench.effect() > 0.01 * distance(bench.base_logits, torch.zeros_like(bench.base_logits))
    with torch.no_grad():
        written = bench.model.generate(
            input_ids=TOKENS, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0
        )
    assert written.shape == (TOKENS.shape[0], TOKENS.shape[1] + 3)


@each_case
def test_switched_off_it_is_the_base_model_or_the_catalog_says_why_not(case: Case) -> None:
    bench = Bench(case, noise=True)
    effect = bench.effect()
    with bench.model.disable_adapter():
        error = distance(logits(bench.model), bench.base_logits) / effect
    assert (error <= TOLERANCE["float32"]) == (case.cannot("disable") is None), error


@each_case
def test_rows_of_a_mixed_batch_are_those_of_each_adapter_alone_or_that_is_refused(case: Case) -> None:
    reason = case.cannot("mixed_batch")
    try:
        error = _mixed_batch_error(Bench(case, noise=True))
    except (ValueError, TypeError):
        assert reason is not None
        return
    assert (error <= TOLERANCE["float32"]) == (reason is None), error


def test_road_in_a_mixed_batch_needs_the_models_own_dtype() -> None:
    case = next(case for case in CASES if case.name == "road")
    assert case.cannot("mixed_batch", "bfloat16", "bfloat16") is None
    assert _mixed_batch_error(Bench(case, noise=True, dtype="bfloat16", adapter_dtype="bfloat16")) <= 0.1
    assert case.cannot("mixed_batch", "bfloat16", "float32") is not None
    with pytest.raises(RuntimeError, match="dtypes match"):
        _mixed_batch_error(Bench(case, noise=True, dtype="bfloat16"))


def _mixed_batch_error(bench: Bench) -> float:
    """Distance of a mixed batch's rows from each adapter's own, in parts of what the adapters change; the larger one.

    What the first adapter computed before the second was there counts too.
    """
    model, alone = bench.model, logits(bench.model)
    torch.manual_seed(1)
    upcast = {parameter.dtype for parameter in bench.trained.values()} == {torch.float32}
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]), autocast_adapter_dtype=upcast)
    kept = bench.base | {id(parameter) for name, parameter in model.named_parameters() if ".second" not in name}
    perturb(model, kept, 1)
    model.set_adapter("second")
    second = logits(model.eval())
    model.set_adapter("default")
    mixed = logits(model, adapter_names=["default", "second"])
    effect = min(distance(alone[0], second[0]), distance(alone[1], second[1]))
    return max(distance(mixed[0], alone[0]), distance(mixed[1], second[1])) / effect


# --- merge and unmerge ------------------------------------------------------------------------------------------------


def _merge_errors(bench: Bench) -> tuple[float, float]:
    """Distance of the logits after a merge, and after that was taken back, from those with the adapter."""
    expected, effect = logits(bench.model), bench.effect()
    tuner: Any = bench.model
    tuner.merge_adapter()
    merged = distance(logits(bench.model), expected) / effect
    try:
        tuner.unmerge_adapter()
    except NotImplementedError:
        return merged, float("inf")
    return merged, distance(logits(bench.model), expected) / effect


@each_case
def test_a_merge_keeps_the_outputs_or_is_refused(case: Case) -> None:
    bench = Bench(case, noise=True)
    if case.cannot("merge"):
        with pytest.raises((NotImplementedError, AttributeError, ValueError, RuntimeError)):
            bench.model.merge_and_unload()  # type: ignore[operator]
        return
    expected, effect = logits(bench.model), bench.effect()
    merged: Any = bench.model.merge_and_unload()  # type: ignore[operator]
    assert not isinstance(merged, PeftModel)
    assert distance(logits(merged), expected) / effect <= TOLERANCE["float32"]


@pytest.mark.parametrize("case", [case for case in CASES if case.cannot("merge") is None], ids=lambda case: case.name)
def test_a_merge_can_be_taken_back_or_that_is_refused(case: Case) -> None:
    merged, unmerged = _merge_errors(Bench(case, noise=True))
    assert merged <= TOLERANCE["float32"]
    assert (unmerged <= TOLERANCE["float32"]) == (case.cannot("unmerge") is None)


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "ia3", "loha", "boft", "vera", "miss", "road", "osf"])
def test_a_merge_in_bfloat16_keeps_the_outputs_as_far_as_the_dtype_goes(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    bench = Bench(case, noise=True, dtype="bfloat16")
    expected, effect = logits(bench.model), bench.effect()
    merged: Any = bench.model.merge_and_unload()  # type: ignore[operator]
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert distance(logits(merged), expected) / effect <= TOLERANCE["bfloat16"]


def test_a_merge_that_is_wrong_by_one_percent_is_seen() -> None:
    bench = Bench(CASES[0], noise=True)
    expected, effect = logits(bench.model), bench.effect()
    for module in bench.model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 1.01
    merged: Any = bench.model.merge_and_unload()  # type: ignore[operator]
    assert distance(logits(merged), expected) / effect > 10 * TOLERANCE["float32"]


@pytest.mark.parametrize("case", [Case("beft", "beft", {}), Case("lora_bias", "lora", {"lora_bias": True})], ids=str)
def test_a_trained_bias_merges_where_every_adapted_layer_has_one(case: Case) -> None:
    model = copy.deepcopy(tiny("float32"))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features), requires_grad=False)
    base = {id(parameter) for parameter in model.parameters()}
    adapter = case.adapter("float32", "float32")
    adapted = resolve_targets(adapter, list_groups(model)).groups
    known = {**case.options, **surroundings("float32", "float32", adapted)}
    assert catalog.cannot(case.entry, known, "merge") is None
    attached: Any = attach(model, adapter).eval()
    perturb(attached, base, 0)
    expected = logits(attached)
    assert torch.allclose(logits(attached.merge_and_unload()), expected, rtol=1e-3, atol=1e-4)


# --- what cannot be measured at all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("type_id", UNAVAILABLE)
def test_a_type_that_is_not_available_cannot_be_used_as_it_is(type_id: str) -> None:
    adapter = Case(type_id, type_id, {}).adapter("float32", "float32")
    with pytest.raises((SpecError, ImportError, ValueError, AttributeError, TypeError)):
        logits(attach(copy.deepcopy(tiny("float32")), adapter))


@pytest.mark.parametrize("kind", ["init", "merge", "train", "inference"])
@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga", "loftq"])
def test_an_init_that_needs_data_is_refused_in_every_kind(kind: str, init: str) -> None:
    with pytest.raises(SpecError, match=f"^adapter.options.init_lora_weights: '{init}' cannot be used here: "):
        parse_spec({"kind": kind, "model": "tiny-test", "adapter": {"options": {"init_lora_weights": init}}})


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_peft_itself_would_run_such_an_init_as_plain_lora(init: str) -> None:
    model = copy.deepcopy(tiny("float32"))
    before = logits(model)
    attached = get_peft_model(model, LoraConfig(init_lora_weights=init, target_modules=["q_proj"]))  # type: ignore[arg-type]
    assert all(not parameter.any() for name, parameter in attached.named_parameters() if "lora_B" in name)
    assert torch.equal(logits(attached), before)


def test_two_forms_of_lora_at_once_are_refused_by_us_and_by_peft() -> None:
    forms = ["use_dora", "kasa_config", "velora_config", "monteclora_config"]
    for one, other in itertools.combinations(forms, 2):
        options = {one: True if one == "use_dora" else {}, other: {}}
        spec = parse_spec({"model": "tiny-test", "adapter": {"options": options}})
        assert [error.sentence for error in problems(spec, [CPU], None)] == [f"cannot be combined with {one}"]
        with pytest.raises(SpecError, match="variant combination"):
            attach(copy.deepcopy(tiny("float32")), spec.adapter)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_an_init_that_peft_leaves_out_on_embeddings_is_refused_there(init: str) -> None:
    adapter = {"target_modules": ["embed_tokens"], "rank": 4, "options": {"init_lora_weights": init}}
    spec = parse_spec({"model": "tiny-test", "dtype": "float32", "adapter": adapter})
    assert [error.field for error in problems(spec, [CPU], None)] == ["adapter.options.init_lora_weights"]
    torch.manual_seed(0)
    attached = attach(copy.deepcopy(tiny("float32")), spec.adapter)  # type: ignore[arg-type, union-attr]
    assert not any(p.any() for name, p in attached.named_parameters() if "lora_embedding_A" in name)


def test_alora_does_nothing_where_its_invocation_is_missing_so_it_is_not_measured() -> None:
    case = next(case for case in CASES if case.name == "alora")
    assert case.cannot("train") == case.cannot("inference") is not None
    bench = Bench(case, noise=True)
    other = TOKENS + 500 - TOKENS.max()
    with torch.no_grad():
        assert torch.equal(bench.model(input_ids=other).logits, tiny("float32")(input_ids=other).logits)
