from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import catalog
from engine.catalog import ModuleGroup
from engine.catalog.abilities import ABILITIES
from engine.spec import InitSpec, SpecError, parse_spec

REQUIRED_MODELS = [
    "tiny-test",
    "minimind-26m",
    "smollm2-135m",
    "qwen2.5-0.5b",
    "tinyllama-1.1b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "qwen3-8b",
    "mistral-7b",
    "llama-3.1-8b",
    "gemma-2-9b",
    "mixtral-8x7b",
    "llama-3.3-70b",
    "gpt2",
]


def options(type_id: str, values: dict[str, Any]) -> dict[str, Any]:
    return catalog.check_options(catalog.adapter_type(type_id), values, SpecError)


def sentence_of(type_id: str, values: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        options(type_id, values)
    return str(caught.value)


def test_every_required_model_is_bundled_with_its_source() -> None:
    assert set(REQUIRED_MODELS) <= set(catalog.models())
    assert all(entry.source for entry in catalog.models().values())


def test_counted_parameters_are_the_published_ones() -> None:
    assert {name: entry.parameters for name, entry in catalog.models().items()} == {
        name: entry.published_parameters for name, entry in catalog.models().items()
    }


def test_minimind_is_the_model_of_the_published_case() -> None:
    entry = catalog.model("minimind-26m")
    config = entry.config
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (512, 8, 16)
    assert (config["num_key_value_heads"], config["intermediate_size"], config["vocab_size"]) == (8, 1408, 6400)
    assert entry.tied_embeddings
    assert round(entry.parameters / 1e6, 2) == 26.88


def test_an_unknown_model_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(catalog.UnknownEntry, match=r"^unknown model 'tinylama-1.1b'; the nearest is tinyllama-1.1b$"):
        catalog.model("tinylama-1.1b")


@pytest.mark.parametrize("name", [None, 3, ["lora"]])
def test_a_name_that_is_no_text_is_unknown_and_not_a_crash(name: Any) -> None:
    with pytest.raises(catalog.UnknownEntry, match="unknown adapter type"):
        catalog.adapter_type(name)


def test_module_groups_survive_json() -> None:
    for entry in catalog.models().values():
        for group in entry.groups:
            assert ModuleGroup.from_json(json.loads(json.dumps(group.to_json()))) == group
            assert len(group.module_names()) == group.count


def test_a_group_adds_what_lora_adds() -> None:
    group = next(group for group in catalog.model("mistral-7b").groups if group.name == "k_proj")
    assert group.added_parameters(16) == 32 * 16 * (4096 + 1024)
    experts = next(group for group in catalog.model("mixtral-8x7b").groups if group.name == "experts.down_proj")
    assert experts.added_parameters(2) == 32 * 8 * 2 * (14336 + 4096)


def test_reading_the_whole_catalog_loads_no_torch() -> None:
    program = (
        "import sys\n"
        "from engine import catalog\n"
        "from engine.catalog import requirements, targets, sources\n"
        "from engine.spec import parse_spec\n"
        "spec = parse_spec({'model': 'tiny-test'})\n"
        "catalog.models(), catalog.adapter_choices(), catalog.snippet(spec), requirements.problems(spec, [], None)\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- adapter types ----------------------------------------------------------------------------------------------------


def test_lora_comes_first_and_dora_second_in_the_picker() -> None:
    choices = catalog.adapter_choices()
    assert [choice.id for choice in choices[:5]] == ["lora", "dora", "rslora", "pissa", "olora"]
    assert choices[1].options == {"use_dora": True}


def test_choices_have_labels_of_their_own_and_make_valid_specs() -> None:
    choices = catalog.adapter_choices()
    assert len({choice.label for choice in choices}) == len(choices)
    for choice in choices:
        spec = parse_spec({"model": "tiny-test", "adapter": {"type": choice.type, "options": dict(choice.options)}})
        assert isinstance(spec, InitSpec)
        assert catalog.adapter_label(spec.model_dump(mode="json")["adapter"]) == choice.label


def test_at_most_six_adapters_have_a_colour_and_none_share_one() -> None:
    colours = [choice.color_index for choice in catalog.adapter_choices() if choice.color_index is not None]
    assert colours == list(range(6))


@pytest.mark.parametrize(
    ("adapter", "label"),
    [
        ({"type": "lora", "options": {"use_dora": True, "init_lora_weights": "pissa"}}, "DoRA"),
        ({"type": "lora", "options": {"init_lora_weights": "gaussian"}}, "LoRA"),
        ({"path": "/somewhere"}, "Saved adapter"),
        ({"type": "newer_than_this"}, "newer_than_this"),
        ({"type": "xlora", "options": {}}, "X-LoRA"),
    ],
)
def test_an_adapter_is_labelled_by_type_and_form(adapter: dict[str, Any], label: str) -> None:
    assert catalog.adapter_label(adapter) == label


def test_every_type_says_what_it_is_in_one_line() -> None:
    for entry in catalog.adapter_types().values():
        assert entry.label
        assert entry.summary
        assert len(entry.summary) < 110
        assert sum(field.essential for field in entry.fields) <= 3


def test_every_field_of_an_available_type_has_one_plain_line_of_help() -> None:
    for entry in catalog.adapter_types().values():
        for field in (*entry.fields, *(nested for config in entry.fields for nested in config.fields)):
            if entry.unavailable_reason is None:
                assert 0 < len(field.help) <= 95, (entry.id, field.name)
                assert not set("`[]{}\n") & set(field.help), (entry.id, field.name)
                assert not field.help.endswith("."), (entry.id, field.name)


def test_a_mapping_is_a_config_with_fields_or_a_table_of_numbers() -> None:
    for entry in catalog.adapter_types().values():
        for field in entry.fields if entry.unavailable_reason is None else ():
            assert (field.type == "mapping") == bool(field.fields or field.values), (entry.id, field.name)


def test_what_a_type_cannot_do_is_named_and_has_a_reason() -> None:
    for entry in catalog.adapter_types().values():
        for cannot in (entry.cannot, *(case.cannot for case in entry.cannot_when)):
            assert set(cannot) <= set(ABILITIES)
            assert all(0 < len(reason) <= 120 for reason in cannot.values())
        for case in entry.cannot_when:
            known = {field.name for field in entry.fields} | {"dtype", "adapter_dtype", "every_layer_has_bias"}
            assert set(case.when) <= known


@pytest.mark.parametrize(
    ("type_id", "options", "what", "can"),
    [
        ("lora", {}, "mixed_batch", True),
        ("lora", {"use_dora": True}, "mixed_batch", False),
        ("lora", {"use_dora": False}, "mixed_batch", True),
        ("lora", {"init_lora_weights": "pissa_niter_4"}, "mixed_batch", False),
        ("lora", {"init_lora_weights": "gaussian"}, "disable", True),
        ("lora", {"kasa_config": {}}, "disable", False),
        ("lora", {"kasa_config": None}, "disable", True),
        ("road", {"dtype": "bfloat16", "adapter_dtype": "float32"}, "mixed_batch", False),
        ("road", {"dtype": "bfloat16", "adapter_dtype": "bfloat16"}, "mixed_batch", True),
        ("osf", {}, "merge", True),
        ("osf", {}, "unmerge", False),
        ("lily", {}, "unmerge", False),
        ("xlora", {}, "init", False),
    ],
)
def test_what_an_adapter_can_do_depends_on_its_type_and_form(
    type_id: str, options: dict[str, Any], what: str, can: bool
) -> None:
    assert (catalog.cannot(catalog.adapter_type(type_id), options, what) is None) == can


def test_no_field_is_both_offered_and_refused() -> None:
    for entry in catalog.adapter_types().values():
        names = {field.name for field in entry.fields}
        assert not names & set(entry.refused_fields)
        assert not names & set(entry.common_fields.values())


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_at_their_default_are_dropped_so_that_equal_adapters_are_equal() -> None:
    assert options("lora", {"use_dora": False, "use_rslora": True}) == {"use_rslora": True}


def test_whole_numbers_may_come_as_floats_and_stay_whole() -> None:
    checked = options("vblora", {"num_vectors": 64.0})
    assert checked == {"num_vectors": 64}
    assert isinstance(checked["num_vectors"], int)


def test_true_and_one_are_different_values() -> None:
    assert "must be true or false" in sentence_of("lora", {"use_dora": 1})
    assert "must be a whole number" in sentence_of("vblora", {"num_vectors": True})


@pytest.mark.parametrize(
    ("type_id", "values", "expected"),
    [
        ("lora", {"use_dorra": True}, "adapter.options.use_dorra: is not a field of LoRA; the nearest is use_dora"),
        ("lora", {"r": 8}, "adapter.options.r: use adapter.rank"),
        ("lora", {"lora_alpha": 8}, "adapter.options.lora_alpha: use adapter.alpha"),
        ("lora", {"target_modules": ["q_proj"]}, "adapter.options.target_modules: use adapter.target_modules"),
        ("lora", {"exclude_modules": "(a+)+$"}, "adapter.options.exclude_modules: is chosen with"),
        ("lora", {"task_type": "SEQ_CLS"}, "adapter.options.task_type: is set by the spec's task"),
        ("ia3", {"use_dora": True}, "adapter.options.use_dora: DoRA is a form of LoRA; use adapter.type lora"),
        ("adalora", {"use_dora": True}, "adapter.options.use_dora: DoRA is a form of LoRA"),
        ("lora", {"init_lora_weights": "eva"}, "'eva' cannot be used here: EVA needs batches of data"),
        ("lora", {"init_lora_weights": "corda"}, "'corda' cannot be used here: CorDA needs batches of data"),
        ("lora", {"init_lora_weights": "lora_ga"}, "'lora_ga' cannot be used here: LoRA-GA needs batches of data"),
        ("lora", {"init_lora_weights": "loftq"}, "'loftq' cannot be used here: LoftQ needs"),
        ("lora", {"init_lora_weights": "pisa"}, 'must be one of true, false, "gaussian"'),
        ("lora", {"init_lora_weights": "pissa_niter_0"}, "must be one of"),
        ("lora", {"rank_pattern": {"(a+)+$": 3}}, "takes plain module names as keys, not '(a+)+$'"),
        ("lora", {"rank_pattern": {"q_proj": 0}}, "q_proj must be a number of at least 1"),
        ("lora", {"modules_to_save": ["a.*"]}, "takes plain module names, not 'a.*'"),
        ("loha", {"module_dropout": 1}, "must be at most 0.99, not 1"),
        ("loha", {"module_dropout": float("nan")}, "must be a finite number, not nan"),
        ("loha", {"module_dropout": -0.1}, "must be at least 0, not -0.1"),
        ("vblora", {"num_vectors": 0}, "must be at least 1, not 0"),
        ("vblora", {"num_vectors": 1.5}, "must be a whole number, not 1.5"),
        ("trainable_tokens", {"token_indices": []}, "must be a list of at least one whole number"),
        ("trainable_tokens", {"token_indices": [-1]}, "must be at least 0, not -1"),
        ("prompt_tuning", {"prompt_tuning_init": "TEXT"}, "'TEXT' cannot be used here: needs a tokenizer"),
        ("prompt_tuning", {"tokenizer_kwargs": {"trust_remote_code": True}}, "needs a tokenizer"),
        ("prompt_tuning", {"num_virtual_tokens": 0}, "must be at least 1, not 0"),
        ("lora", {"rank_pattern": {"q_proj": 2.5}}, "q_proj must be a number of at least 1 without decimals, not 2.5"),
        ("lora", {"rank_pattern": {"q_proj": "4"}}, "q_proj must be a number of at least 1"),
        ("lora", {"alpha_pattern": {"q_proj": float("inf")}}, "q_proj must be a finite number"),
        ("lora", {"alpha_pattern": {"q_proj": -1}}, "q_proj must be a number above 0, not -1"),
        ("lora", {"velora_config": {"scale": 0}}, "velora_config: scale must be at least 1e-09, not 0"),
        ("lora", {"velora_config": {"init_type": "mean"}}, 'init_type must be one of "batch_average"'),
        ("cpt", {"cpt_token_ids": [3]}, "must be a list of at least 2 whole numbers"),
        ("cpt", {"cpt_mask": [1]}, "is set from cpt_token_ids"),
        ("shadow", {"shadow_model": "someone/some-model"}, "PEFT would load others from elsewhere"),
        ("peanut", {"act_fn": "softmax"}, 'must be one of "relu"'),
        ("lora", {"kasa_config": {"betta": 1}}, "has no field 'betta'; the nearest is beta"),
        ("lora", {"layer_replication": [[0, 1]]}, "changes the depth of the base model"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_sentence(
    type_id: str, values: dict[str, Any], expected: str
) -> None:
    sentence = sentence_of(type_id, values)
    assert expected in sentence
    assert "\n" not in sentence


def test_a_config_keeps_only_what_differs_from_its_defaults() -> None:
    assert options("lora", {"kasa_config": {"gamma": 0.5, "beta": 1e-4}}) == {"kasa_config": {"gamma": 0.5}}
    assert options("lora", {"kasa_config": {}}) == {"kasa_config": {}}
    assert options("lora", {"rank_pattern": {"q_proj": 4.0}}) == {"rank_pattern": {"q_proj": 4}}
    assert options("lora", {"rank_pattern": {}}) == {}


def test_pissa_with_a_number_of_iterations_is_taken() -> None:
    assert options("lora", {"init_lora_weights": "pissa_niter_16"}) == {"init_lora_weights": "pissa_niter_16"}


def test_options_that_are_no_object_are_refused() -> None:
    assert "must be a JSON object" in sentence_of("lora", ["use_dora"])  # type: ignore[arg-type]


# --- strategies and snippets ------------------------------------------------------------------------------------------


def test_stock_is_the_first_of_the_eight_init_strategies() -> None:
    names = [strategy.id for strategy in catalog.strategies("init")]
    assert names[0] == "stock"
    assert set(names) == set(
        ["stock", "zero_b_norm", "factored_norm", "batched_norm", "staged", "deferred", "gpu_offload", "gpu_then_cpu"]
    )
    assert catalog.strategies("inspect") == ()


def test_strategies_that_need_a_gpu_say_that_they_are_unverified() -> None:
    assert {s.id for s in catalog.strategies("init") if s.unverified} == {"gpu_offload", "gpu_then_cpu"}


@pytest.mark.parametrize(
    "spec",
    [
        {"model": "tiny-test"},
        {"model": "mixtral-8x7b", "strategy": "staged"},
        {"model": "gpt2", "strategy": "zero_b_norm", "adapter": {"options": {"use_dora": True}}},
        {"model": "tinyllama-1.1b", "adapter": {"type": "ia3", "adapter_dtype": "bfloat16"}},
        {"model": "someone/some-model", "adapter": {"target_modules": "qk"}},
        {"model": "tiny-test", "adapter": {"path": "/somewhere", "low_cpu_mem_usage": True}},
    ],
)
def test_a_snippet_is_python_that_names_what_it_uses(spec: dict[str, Any]) -> None:
    parsed = parse_spec(spec)
    assert isinstance(parsed, InitSpec)
    text = catalog.snippet(parsed)
    compile(text, "snippet", "exec")
    assert ("with " in text) == (parsed.strategy != "stock")


def test_a_snippet_gives_fused_experts_as_parameters() -> None:
    spec = parse_spec({"model": "mixtral-8x7b", "adapter": {"target_modules": "mlp"}})
    assert isinstance(spec, InitSpec)
    assert "target_parameters=['experts.down_proj', 'experts.gate_up_proj']" in catalog.snippet(spec)
