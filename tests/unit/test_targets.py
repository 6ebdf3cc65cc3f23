from __future__ import annotations

import time

import pytest

from engine import catalog
from engine.catalog import ModuleGroup
from engine.catalog.targets import PRESETS, TargetError, Targets, names_of, preset_applies, resolve

LLAMA = catalog.model("tinyllama-1.1b").groups
GPT2 = catalog.model("gpt2").groups
MIXTRAL = catalog.model("mixtral-8x7b").groups


def refusal(wanted: str | list[str], groups: tuple[ModuleGroup, ...] = LLAMA) -> str:
    with pytest.raises(TargetError) as caught:
        resolve(groups, wanted, "TinyLlama 1.1B")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(targets: Targets) -> tuple[str, ...]:
    return targets.names + targets.parameters


@pytest.mark.parametrize(
    ("preset", "llama", "gpt2", "mixtral"),
    [
        ("qk", "k_proj q_proj", "c_attn", "k_proj q_proj"),
        ("qv", "q_proj v_proj", "c_attn", "q_proj v_proj"),
        ("attention", "k_proj o_proj q_proj v_proj", "attn.c_proj c_attn", "k_proj o_proj q_proj v_proj"),
        ("mlp", "down_proj gate_proj up_proj", "c_fc mlp.c_proj", "experts.down_proj experts.gate_up_proj"),
        ("lm_head", "lm_head", "lm_head", "lm_head"),
        (
            "all-linear",
            "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj",
            "attn.c_proj c_attn c_fc mlp.c_proj",
            "k_proj o_proj q_proj v_proj experts.down_proj experts.gate_up_proj",
        ),
    ],
)
def test_presets_resolve_on_llama_conv1d_and_mixture_of_experts(
    preset: str, llama: str, gpt2: str, mixtral: str
) -> None:
    for groups, expected in ((LLAMA, llama), (GPT2, gpt2), (MIXTRAL, mixtral)):
        assert named(resolve(groups, preset)) == tuple(expected.split())


def test_every_preset_applies_to_every_bundled_model() -> None:
    for entry in catalog.models().values():
        assert all(preset_applies(entry.groups, preset) for preset in PRESETS), entry.id


def test_counts_and_added_parameters_follow_the_groups() -> None:
    chosen = resolve(LLAMA, "qv")
    assert chosen.module_count == 44
    assert chosen.added_parameters(8) == 22 * 8 * (2048 + 2048 + 2048 + 256)


def test_a_name_matches_as_peft_matches_it() -> None:
    assert resolve(LLAMA, ["q_proj"]).module_count == 22
    assert resolve(LLAMA, ["self_attn.q_proj"]).names == ("q_proj",)
    assert resolve(LLAMA, ["model.layers.3.self_attn.q_proj"]).names == ("model.layers.3.self_attn.q_proj",)
    assert "matches nothing" in refusal(["proj"])


def test_an_ambiguous_name_means_all_that_it_matches() -> None:
    assert resolve(GPT2, ["c_proj"]).names == ("attn.c_proj", "mlp.c_proj")


def test_fused_experts_go_to_peft_as_parameters() -> None:
    chosen = resolve(MIXTRAL, ["gate_up_proj", "q_proj"])
    assert chosen.names == ("q_proj",)
    assert chosen.parameters == ("experts.gate_up_proj",)


def test_a_regular_expression_is_expanded_to_full_names() -> None:
    chosen = resolve(LLAMA, r"model\.layers\.[01]\.self_attn\.(q|v)_proj")
    assert chosen.module_count == 4
    assert chosen.names == tuple(f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qv")
    assert {group.layers for group in chosen.groups} == {(0, 1)}


def test_a_regular_expression_for_whole_groups_gives_their_names() -> None:
    assert resolve(LLAMA, r".*\.(q|v)_proj").names == ("q_proj", "v_proj")


def test_matching_nothing_names_the_nearest_module() -> None:
    assert refusal(["q_prj"]) == '"q_prj" matches nothing in TinyLlama 1.1B; the nearest is q_proj'


def test_one_name_of_several_that_matches_nothing_is_refused() -> None:
    assert '"v_prooj" matches nothing' in refusal(["q_proj", "v_prooj"])


def test_a_plain_name_given_as_expression_says_how_to_write_it() -> None:
    assert 'give the list ["q_proj"]' in refusal("q_proj")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("q_proj(", "missing ), unterminated subpattern at position 6"),
        ("*q_proj", "nothing to repeat at position 0"),
        ("(?R)", "unknown extension ?R at position 1"),
        ("a{99999999999999999999}", "too large"),
    ],
)
def test_an_expression_that_does_not_compile_says_where(pattern: str, why: str) -> None:
    assert refusal(pattern).startswith(f'"{pattern}" is ')
    assert why in refusal(pattern)


def test_an_expression_nested_a_thousand_deep_is_refused() -> None:
    assert "too deeply nested" in refusal("(" * 900 + ")" * 900)


@pytest.mark.alone
@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "((.+)+)+#", "(.|.)*!", "(?:(?:.*)*)*#" * 4])
def test_an_expression_that_backtracks_without_end_is_refused_in_time(pattern: str) -> None:
    groups = (ModuleGroup("a" * 60, "Linear", "other", 4, 4, "a" * 60 + "!b.{}." + "a" * 60, tuple(range(40))),)
    start_s = time.monotonic()
    sentence = refusal(pattern, groups)
    assert time.monotonic() - start_s < 0.3
    assert "takes too long" in sentence or "matches nothing" in sentence


def test_nested_repetition_on_long_names_is_stopped_by_the_clock() -> None:
    groups = (ModuleGroup("a" * 60, "Linear", "other", 4, 4, "a" * 60 + "!"),)
    assert "takes too long" in refusal("(a|aa)+(a|aa)+b", groups)


def test_an_expression_of_absurd_length_is_refused() -> None:
    assert "at most 2000" in refusal("a" * 5000)


def test_a_preset_that_does_not_apply_names_those_that_do() -> None:
    only_attention = tuple(group for group in LLAMA if group.role == "query")
    assert refusal("mlp", only_attention).endswith("all-linear, attention, qk, qv would match")


def test_names_of_a_part_are_full_and_of_a_whole_are_short() -> None:
    group = next(group for group in LLAMA if group.name == "q_proj")
    assert names_of(LLAMA, [group]).names == ("q_proj",)
    part = group.narrowed(["model.layers.5.self_attn.q_proj"])
    assert names_of(LLAMA, part).names == ("model.layers.5.self_attn.q_proj",)


def test_experts_that_are_modules_narrow_to_the_layers_and_experts_matched() -> None:
    path = "model.layers.{}.mlp.experts.{}.w1"
    group = ModuleGroup("w1", "Linear", "mlp", 8, 16, path, layers=(0, 1, 2), inner=(0, 1))
    assert group.count == 6
    parts = group.narrowed([path.format(0, 0), path.format(2, 0), path.format(1, 0), path.format(1, 1)])
    assert {(part.layers, part.inner) for part in parts} == {((0, 2), (0,)), ((1,), (0, 1))}
    assert sorted(name for part in parts for name in part.module_names()) == sorted(
        [path.format(0, 0), path.format(2, 0), path.format(1, 0), path.format(1, 1)]
    )
