from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, Phi3Config, PreTrainedModel, Qwen3MoeConfig

from engine import catalog
from engine.adapters import (
    attach,
    left_on_meta,
    list_groups,
    peft_config,
    resolve_targets,
    snapshot,
    trainable_parameters,
)
from engine.catalog import ModuleGroup, targets
from engine.catalog.adapter_types import ADAPTERS_FILE
from engine.generate_catalog import adapter_documents
from engine.models import build_meta, build_model
from engine.spec import FreshAdapter, InitSpec, SavedAdapter, SpecError, parse_spec

AVAILABLE = [entry.id for entry in catalog.adapter_types().values() if entry.unavailable_reason is None]
TOKENS = torch.arange(7)[None]
PHI3 = Phi3Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    max_position_embeddings=64,
    original_max_position_embeddings=64,
)
MIXTRAL = MixtralConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    num_local_experts=4,
)
QWEN3_MOE = Qwen3MoeConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    moe_intermediate_size=16,
    vocab_size=64,
    num_experts=4,
    num_experts_per_tok=2,
    mlp_only_layers=[0],
)


def spec_of(model: str = "tiny-test", dtype: str = "float32", **adapter: Any) -> InitSpec:
    spec = parse_spec({"model": model, "dtype": dtype, "adapter": adapter})
    assert isinstance(spec, InitSpec)
    return spec


def fresh(spec: InitSpec) -> FreshAdapter:
    assert isinstance(spec.adapter, FreshAdapter)
    return spec.adapter


def folder_of(config: Any, folder: Path) -> str:
    config.save_pretrained(folder)
    return str(folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.Tensor(model(TOKENS).logits[:, -TOKENS.shape[1] :])


def state(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that attaching may change."""
    return {
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "parameters": [(name, id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()],
        "values": [tensor.detach().clone() for tensor in model.parameters()],
        "buffers": [(name, id(buffer)) for name, buffer in model.named_buffers()],
        "attributes": sorted(vars(model)),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "config": model.config.to_dict(),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name == "values":
            assert all(torch.equal(one, other) for one, other in zip(found[name], value, strict=True))
        else:
            assert found[name] == value, name


@pytest.fixture
def tiny() -> PreTrainedModel:
    return build_model(spec_of())


# --- every type -------------------------------------------------------------------------------------------------------


def test_the_table_of_adapter_types_is_that_of_the_installed_peft() -> None:
    assert json.loads(ADAPTERS_FILE.read_text()) == adapter_documents(), "run `python -m engine.generate_catalog`"


@pytest.mark.parametrize("type_id", AVAILABLE)
def test_every_available_type_attaches_computes_and_comes_off_without_a_trace(
    type_id: str, tiny: PreTrainedModel
) -> None:
    before, base = state(tiny), logits(tiny)
    spec = spec_of(type=type_id)
    taken = snapshot(tiny, spec.adapter)
    names = []
    for _ in range(2):
        torch.manual_seed(0)
        model = attach(tiny, spec.adapter)
        assert trainable_parameters(model) > 0
        assert left_on_meta(model) == []
        assert logits(model).isfinite().all()
        names.append([name for name, parameter in model.named_parameters() if parameter.requires_grad])
        taken.restore()
        assert_same(state(tiny), before)
        assert torch.equal(logits(tiny), base)
    assert names[0] == names[1]


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "gaussian", "use_dora": True},
        {"init_lora_weights": "olora", "use_dora": True},
        {"kasa_config": {}},
        {"velora_config": {}},
        {"monteclora_config": {}},
        {"lora_bias": True, "bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forms_of_lora_attach_and_come_off_without_a_trace(options: dict[str, Any], dtype: str) -> None:
    spec = spec_of(dtype=dtype, options=options)
    model = build_model(spec)
    before, base = state(model), logits(model)
    taken = snapshot(model, spec.adapter)
    attached = attach(model, spec.adapter)
    assert trainable_parameters(attached) > 0
    assert logits(attached).isfinite().all()
    taken.restore()
    assert_same(state(model), before)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    ("type_id", "options"),
    [("lora", {"use_dora": True}), *((i, {}) for i in AVAILABLE if catalog.adapter_type(i).adapts("Conv1D"))],
    ids=str,
)
def test_types_that_say_so_adapt_conv1d(type_id: str, options: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GPT2Config

    folder = folder_of(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=64, n_positions=32), tmp_path)
    spec = spec_of(folder, type=type_id, options=options)
    model = build_model(spec)
    seen: list[str] = []
    attached = attach(model, spec.adapter, on_module=seen.append)
    assert len(seen) == 8
    assert trainable_parameters(attached) > 0
    assert logits(attached).isfinite().all()


# --- what a model offers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-test", "gpt2", "minimind-26m", "qwen2.5-0.5b"])
def test_all_linear_is_what_peft_calls_all_linear(name: str) -> None:
    model = build_meta(name)
    chosen = targets.resolve(list_groups(model), "all-linear")
    ours = {module for group in chosen.groups for module in group.module_names()}
    theirs = get_peft_model(model, LoraConfig(target_modules="all-linear"), low_cpu_mem_usage=True)
    assert ours == set(theirs.base_model.targeted_module_names)


@pytest.mark.parametrize("preset", targets.PRESETS)
@pytest.mark.parametrize("config", [PHI3, MIXTRAL, QWEN3_MOE], ids=lambda config: config.model_type)
def test_presets_attach_exactly_their_modules_on_fused_and_expert_models(
    config: Any, preset: str, tmp_path: Path
) -> None:
    spec = spec_of(folder_of(config, tmp_path), target_modules=preset, rank=2)
    model = build_model(spec)
    groups = list_groups(model)
    chosen = resolve_targets(fresh(spec), groups)
    seen: list[str] = []
    attached = attach(model, spec.adapter, on_module=seen.append)
    assert sorted(seen) == sorted(name for group in chosen.groups for name in group.module_names())
    assert trainable_parameters(attached) == chosen.added_parameters(2)
    assert logits(attached).isfinite().all()


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("attention", ("o_proj", "qkv_proj")),
        ("qk", ("qkv_proj",)),
        ("qv", ("qkv_proj",)),
        ("mlp", ("down_proj", "gate_up_proj")),
    ],
)
def test_a_fused_projection_counts_for_each_of_its_parts(preset: str, names: Sequence[str], tmp_path: Path) -> None:
    groups = list_groups(build_meta(folder_of(PHI3, tmp_path)))
    assert targets.resolve(groups, preset).names == tuple(names)


def test_dense_and_expert_layers_of_one_model_are_told_apart(tmp_path: Path) -> None:
    groups = {group.name: group for group in list_groups(build_meta(folder_of(QWEN3_MOE, tmp_path)))}
    assert groups["experts.down_proj"].layers == (1,)
    assert groups["experts.down_proj"].experts == 4
    assert groups["mlp.down_proj"].layers == (0,)
    assert (groups["mlp.down_proj"].in_features, groups["mlp.down_proj"].out_features) == (48, 32)


def test_shapes_and_counts_are_those_of_the_modules(tiny: PreTrainedModel) -> None:
    for group in list_groups(tiny):
        for name in group.module_names():
            weight = tiny.get_parameter(f"{name}.weight")
            sizes = (group.in_features, group.out_features)
            assert tuple(weight.shape) == (sizes if group.kind == "Embedding" else sizes[::-1])
    assert Counter(group.role for group in list_groups(tiny))["mlp"] == 3


def test_tied_weights_are_marked() -> None:
    tied = {group.name for group in list_groups(build_meta("gpt2")) if group.tied}
    assert tied == {"wte", "lm_head"}
    assert not any(group.tied for group in list_groups(build_meta("tiny-test")))


# --- configs and attaching --------------------------------------------------------------------------------------------


def test_common_fields_reach_peft_by_its_own_names(tiny: PreTrainedModel) -> None:
    adapter = fresh(spec_of(rank=4, alpha=8, dropout=0.25, target_modules="qv", options={"use_dora": True}))
    config: Any = peft_config(adapter, list_groups(tiny))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_dora) == (4, 8, 0.25, True)
    assert isinstance(config.lora_alpha, int)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert config.task_type == "CAUSAL_LM"


def test_what_a_strategy_sets_wins_over_the_spec(tiny: PreTrainedModel) -> None:
    config: Any = peft_config(fresh(spec_of()), list_groups(tiny), {"lora_alpha": 3})
    assert config.lora_alpha == 3


def test_a_block_size_is_the_largest_that_fits_unless_one_is_given(tiny: PreTrainedModel) -> None:
    groups = list_groups(tiny)
    config: Any = peft_config(fresh(spec_of(type="c3a")), groups)
    assert config.block_size == 32
    config = peft_config(fresh(spec_of(type="c3a", options={"block_size": 16})), groups)
    assert config.block_size == 16


def test_ia3_is_told_which_modules_are_feed_forward(tiny: PreTrainedModel) -> None:
    config: Any = peft_config(fresh(spec_of(type="ia3", target_modules=["v_proj", "down_proj"])), list_groups(tiny))
    assert config.feedforward_modules == {"down_proj"}


def test_a_regular_expression_never_reaches_peft(tiny: PreTrainedModel) -> None:
    config: Any = peft_config(fresh(spec_of(target_modules=r".*layers\.1.*q_proj")), list_groups(tiny))
    assert config.target_modules == {"model.layers.1.self_attn.q_proj"}


def test_modules_are_reported_in_order_as_they_are_created(tiny: PreTrainedModel) -> None:
    seen: list[str] = []

    def on_module(name: str) -> None:
        assert type(tiny.get_submodule(name)).__module__.startswith("peft")
        seen.append(name)

    attach(tiny, spec_of(target_modules="qk").adapter, on_module=on_module)
    assert seen == [f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qk"]


def test_reporting_leaves_peft_as_it_was(tiny: PreTrainedModel) -> None:
    from peft.tuners.adalora import AdaLoraModel
    from peft.tuners.lora import LoraModel

    before = [tuner.__dict__.get("_create_and_replace") for tuner in (LoraModel, AdaLoraModel)]
    taken = snapshot(tiny)
    for kind in ("lora", "adalora"):
        attach(tiny, spec_of(type=kind).adapter, on_module=lambda name: None)
        taken.restore()
    with pytest.raises(ZeroDivisionError):
        attach(tiny, spec_of().adapter, on_module=lambda name: 1 / 0)  # type: ignore[arg-type, return-value]
    assert [tuner.__dict__.get("_create_and_replace") for tuner in (LoraModel, AdaLoraModel)] == before


def test_a_failed_attach_can_be_taken_back(tiny: PreTrainedModel) -> None:
    before, taken = state(tiny), snapshot(tiny)
    calls: list[str] = []

    def fail_midway(name: str) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attach(tiny, spec_of().adapter, on_module=fail_midway)
    taken.restore()
    assert_same(state(tiny), before)


@pytest.mark.parametrize(("adapter_dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_adapter_has_the_dtype_that_the_spec_says(adapter_dtype: str, expected: torch.dtype) -> None:
    spec = spec_of(dtype="bfloat16", adapter_dtype=adapter_dtype, options={"use_dora": True})
    attached = attach(build_model(spec), spec.adapter)
    assert {parameter.dtype for parameter in attached.parameters() if parameter.requires_grad} == {expected}


def test_dora_on_fused_experts_is_one_sentence(tmp_path: Path) -> None:
    spec = spec_of(folder_of(MIXTRAL, tmp_path), options={"use_dora": True}, rank=2)
    with pytest.raises(SpecError, match=r"^adapter: PEFT cannot attach LoRA to this model: .*use_dora"):
        attach(build_model(spec), spec.adapter)


def test_targets_that_match_nothing_are_one_sentence(tiny: PreTrainedModel) -> None:
    with pytest.raises(SpecError, match=r'^adapter.target_modules: "q_prj" matches nothing .* nearest is q_proj$'):
        attach(tiny, spec_of(target_modules=["q_prj"]).adapter)


# --- saved adapters ---------------------------------------------------------------------------------------------------


def save(folder: Path, options: dict[str, Any], edit: dict[str, Any] | None = None) -> torch.Tensor:
    """Save an adapter with a B that is not zero; returns the logits with it."""
    spec = spec_of(options=options, target_modules="attention", rank=4)
    attached = attach(build_model(spec), spec.adapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    attached.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(edit or {})}))
    return logits(attached)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_computes_what_it_computed_before(
    tmp_path: Path, tiny: PreTrainedModel, options: dict[str, Any], low_cpu_mem_usage: bool
) -> None:
    expected, base, taken = save(tmp_path, options), logits(tiny), snapshot(tiny)
    seen: list[str] = []
    adapter = SavedAdapter(path=str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    attached = attach(tiny, adapter, on_module=seen.append)
    assert len(seen) == 8
    assert left_on_meta(attached) == []
    assert torch.equal(logits(attached), expected)
    taken.restore()
    assert torch.equal(logits(tiny), base)


def test_a_saved_regular_expression_is_expanded(tmp_path: Path, tiny: PreTrainedModel) -> None:
    save(tmp_path, {}, {"target_modules": r".*\.(q|k|v|o)_proj"})
    attached = attach(tiny, SavedAdapter(path=str(tmp_path)))
    config: Any = attached.peft_config["default"]
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_folder_without_adapter_is_one_sentence(tmp_path: Path, tiny: PreTrainedModel) -> None:
    with pytest.raises(SpecError, match=r"^adapter.path: .* has no adapter_config.json"):
        attach(tiny, SavedAdapter(path=str(tmp_path)))


def test_groups_rebuilt_from_json_resolve_alike(tiny: PreTrainedModel) -> None:
    groups = list_groups(tiny)
    again = [ModuleGroup.from_json(json.loads(json.dumps(group.to_json()))) for group in groups]
    assert again == groups
