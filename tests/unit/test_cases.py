"""The five claims: that their data is whole, and that each rule gives every verdict it can, from runs made up here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from engine import catalog
from engine.cases import (
    WORDS,
    Case,
    Observation,
    Ratio,
    Size,
    Verdict,
    case,
    cases,
    observe,
    predicted_ratios,
    verdict,
)
from engine.catalog.requirements import problems
from engine.result import Device
from engine.spec import Measured, SpecError, spec_hash

GIB = 2**30
CPU = Device("cpu", "cpu", "Test CPU", 24 * GIB, ("float32", "bfloat16", "float16"))
GPU = Device("cuda:0", "cuda", "Test GPU", 80 * GIB, ("float32", "bfloat16", "float16"))
IDS = [known.id for known in cases()]
SIZES: tuple[Size, ...] = ("here", "published", "test")
Values = Mapping[str | tuple[str, str], float | Iterable[float]]


def seen(run_id: int, spec: Measured, values: Values, **fields: Any) -> Observation:
    """A run that succeeded undisturbed, with these metrics."""
    metrics: dict[tuple[str, str | None], tuple[float, ...]] = {}
    for key, found in values.items():
        name = key if isinstance(key, tuple) else (key, None)
        metrics[name] = tuple(found) if isinstance(found, Iterable) else (found,)
    whole: dict[str, Any] = {
        "run_id": run_id,
        "spec": spec,
        "spec_hash": spec_hash(spec),
        "state": "succeeded",
        "failed_checks": (),
        "disturbed": False,
        "metrics": metrics,
    }
    return Observation(**(whole | fields))


def judged(case_id: str, observations: Iterable[Observation], size: Size = "here") -> Verdict:
    return verdict(case(case_id), list(observations), {"cpu"}, size)


def by_label(found: Verdict, start: str) -> Ratio:
    return next(ratio for ratio in found.ratios if ratio.label.startswith(start))


# --- runs as each case's sweep would leave them -----------------------------------------------------------------------


def init_runs(ratio: float, *, rounds: int = 2, bent: bool = False) -> list[Observation]:
    """LoRA takes 0.2 s, DoRA ``ratio`` times as long, in proportion to its modules unless ``bent``."""
    lora, dora, *others = case("init").sweep("here").specs
    modules = {spec_hash(lora): 154, spec_hash(dora): 154}
    modules |= {spec_hash(spec): count for spec, count in zip(others, (154, 35, 77), strict=True)}
    runs, number = [], itertools.count(1)
    for _ in range(rounds):
        for spec in (lora, dora, *others):
            count = modules[spec_hash(spec)]
            share = count / 154 if not bent else (1.0 if count == 154 else 77 / count)
            seconds = 0.2 if spec is lora else 0.22 if spec.strategy != "stock" else 0.2 * ratio * share
            runs.append(seen(next(number), spec, {"init_time_s": [seconds] * 3, "adapted_modules": count}))
    return runs


def merge_runs(exact: float, rounded: float, kept: float = 0.5) -> list[Observation]:
    """``+=`` needs these shares of w + delta's peak in float32 and in bfloat16."""
    runs = []
    for number, spec in enumerate(case("merge").sweep("here").specs, 1):
        share = exact if spec.dtype == "float32" else rounded
        share = {"out_of_place": 1.0, "stock": share}.get(spec.strategy, 0.01)
        values = {"merge_peak_extra_bytes": 100 * share, "merge_retained_extra_bytes": 0.0}
        failed: tuple[str, ...] = ()
        if spec.strategy == "out_of_place" and spec.dtype == "bfloat16":
            values["merge_retained_extra_bytes"] = 100 * kept
            failed = ("weight_dtype_kept", "merged_model_runs", "saved_and_reloaded") if kept else ()
        runs.append(seen(number, spec, values, failed_checks=failed))
    return runs


def memory_runs(shares: Mapping[int, float], out_of_memory: Iterable[tuple[int, str]] = ()) -> list[Observation]:
    """LoRA needs these shares of full fine-tuning's peak; pairs of a length and a side that ran out of memory."""
    runs, lost = [], set(out_of_memory)
    for number, spec in enumerate(case("train_memory").sweep("here").specs, 1):
        length, side = spec.train.context_length, "full" if spec.adapter is None else "lora"
        if (length, side) in lost:
            runs.append(seen(number, spec, {"peak_rss_bytes": 23 * GIB}, state="out_of_memory"))
        elif length in shares:
            runs.append(seen(number, spec, {"peak_bytes": 1000 * (1.0 if side == "full" else shares[length])}))
    return runs


def inference_runs(overheads: list[float], fused: float = 1.05) -> list[Observation]:
    main, *others = case("inference").sweep("here").specs
    values = {
        ("overhead_ratio", "adapter"): overheads,
        ("overhead_ratio", "fused"): [fused] * 11,
        ("overhead_ratio", "merged"): [1.0] * 11,
    }
    return [seen(1, main, values)] + [
        seen(number, spec, {("overhead_ratio", "adapter"): overheads}) for number, spec in enumerate(others, 2)
    ]


def speed_runs(every: list[float], some: float = 0.8, head: float = 0.4) -> list[Observation]:
    """A round per entry: LoRA on every linear layer takes so many times full fine-tuning's step."""
    full, lora, query_key, last = case("train_speed").sweep("here").specs
    runs, number = [], itertools.count(1)
    for round_number, ratio in enumerate(every):
        pace = 1 + 0.1 * round_number  # the machine slows down from round to round, which is no one's fault
        for spec, times in ((full, 1.0), (lora, ratio), (query_key, some), (last, head)):
            values = {"step_time_s": [pace * times] * 3, "gradient_depth_layers": 0 if spec is last else 8}
            runs.append(seen(next(number), spec, values))
    return runs


ENOUGH = {
    "init": init_runs(5.0),
    "merge": merge_runs(1.0, 0.05),
    "train_memory": memory_runs({128: 0.2, 512: 0.3, 1024: 0.4, 2048: 0.5}),
    "inference": inference_runs([1.1] * 11),
    "train_speed": speed_runs([1.1, 1.1, 1.1]),
}
TIMED = ["init", "inference", "train_speed"]
COUNTED = ["merge", "train_memory"]


# --- the data ---------------------------------------------------------------------------------------------------------


def test_there_are_five_cases_in_the_order_of_their_numbers() -> None:
    assert [(known.id, known.number) for known in cases()] == [
        ("init", 1),
        ("merge", 2),
        ("train_memory", 3),
        ("inference", 4),
        ("train_speed", 5),
    ]


@pytest.mark.parametrize("known", cases(), ids=IDS)
def test_each_claim_is_said_in_two_sentences_with_a_source_and_its_rule_in_one(known: Case) -> None:
    assert known.claim.replace("Mistral 7B", "").count(". ") <= 1
    assert known.sources
    assert all(source.url.startswith("https://github.com/") for source in known.sources)
    assert ". " not in known.rule
    for text in (known.claim, known.truth, known.rule, *(advice.text for advice in known.advice)):
        assert text.endswith(".")


@pytest.mark.parametrize("known", cases(), ids=IDS)
def test_no_spec_is_twice_in_a_sweep(known: Case) -> None:
    for size in SIZES:
        hashes = [spec_hash(spec) for spec in known.sweep(size).specs]
        assert len(hashes) == len(set(hashes))


@pytest.mark.parametrize("known", cases(), ids=IDS)
def test_sizes_share_no_spec_so_that_the_tests_model_never_answers_for_a_real_one(known: Case) -> None:
    sizes = [{spec_hash(spec) for spec in known.sweep(size).specs} for size in SIZES]
    assert not any(one & other for one, other in itertools.combinations(sizes, 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", cases(), ids=IDS)
def test_every_spec_can_run_on_the_device_that_its_sweep_names(known: Case, size: Size) -> None:
    sweep = known.sweep(size)
    devices = [CPU, GPU] if sweep.device_kind == "cuda" else [CPU]
    assert [str(problem) for spec in sweep.specs for problem in problems(spec, devices, None)] == []
    assert {spec.model for spec in sweep.specs} == {sweep.model}


def test_this_machine_is_measured_on_the_models_that_say_something_about_the_claims() -> None:
    models = {known.id: known.sweep("here").model for known in cases()}
    assert models == dict.fromkeys(IDS, "tinyllama-1.1b") | {"train_speed": "minimind-26m"}
    assert {known.sweep("test").model for known in cases()} == {"tiny-test"}


def test_all_five_sweeps_here_promise_less_than_twenty_minutes() -> None:
    assert sum(known.sweep("here").minutes or 99 for known in cases()) < 20


@pytest.mark.parametrize("known", cases(), ids=IDS)
def test_the_snippet_of_each_advice_is_python(known: Case) -> None:
    for advice in known.advice:
        if advice.spec is not None:
            compile(catalog.snippet(advice.spec), advice.text, "exec")


@pytest.mark.parametrize("known", cases(), ids=IDS)
def test_the_sweep_by_default_is_enough_for_its_rule(known: Case) -> None:
    sweep = known.sweep("here")
    found = judged(known.id, ENOUGH[known.id])
    assert found.have == found.need <= len(sweep.specs) * sweep.replicas
    assert max(len([run for run in ENOUGH[known.id] if run.spec == spec]) for spec in sweep.specs) <= sweep.replicas


# --- what every rule has in common ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", IDS)
def test_without_runs_there_is_not_enough_data(case_id: str) -> None:
    found = judged(case_id, [])
    assert (found.word, found.have, found.key_value) == ("not enough data yet", 0, None)
    assert all(ratio.measured is None for ratio in found.ratios)


@pytest.mark.parametrize("case_id", IDS)
def test_the_made_up_runs_hold_in_direction_as_long_as_nothing_is_wrong_with_them(case_id: str) -> None:
    found = judged(case_id, ENOUGH[case_id])
    assert found.word == "holds in direction"
    assert found.key_value is not None


@pytest.mark.parametrize("case_id", IDS)
def test_runs_whose_checks_failed_prove_nothing(case_id: str) -> None:
    spoiled = [dataclasses.replace(run, failed_checks=("weights_equal",)) for run in ENOUGH[case_id]]
    found = judged(case_id, spoiled)
    assert (found.word, found.have) == ("not enough data yet", 0)
    assert f"{len(spoiled)} with failed checks" in found.sentence


@pytest.mark.parametrize("state", ["failed", "cancelled", "timed_out", "lost"])
@pytest.mark.parametrize("case_id", IDS)
def test_runs_without_a_result_do_not_count(case_id: str, state: Any) -> None:
    found = judged(case_id, [dataclasses.replace(run, state=state) for run in ENOUGH[case_id]])
    assert (found.word, found.have) == ("not enough data yet", 0)


@pytest.mark.parametrize("case_id", TIMED)
def test_seconds_of_disturbed_runs_do_not_count(case_id: str) -> None:
    found = judged(case_id, [dataclasses.replace(run, disturbed=True) for run in ENOUGH[case_id]])
    assert (found.word, found.have) == ("not enough data yet", 0)
    assert "disturbed" in found.sentence


@pytest.mark.parametrize("case_id", COUNTED)
def test_counted_bytes_of_disturbed_runs_do_count(case_id: str) -> None:
    found = judged(case_id, [dataclasses.replace(run, disturbed=True) for run in ENOUGH[case_id]])
    assert found.word == "holds in direction"


@pytest.mark.parametrize("case_id", IDS)
def test_one_missing_run_that_the_rule_needs_keeps_it_from_deciding(case_id: str) -> None:
    whole = judged(case_id, ENOUGH[case_id])
    words = set()
    for run in ENOUGH[case_id]:
        found = judged(case_id, [other for other in ENOUGH[case_id] if other is not run])
        words.add((found.word, whole.have - found.have))
    assert words <= {("not enough data yet", 1), ("holds in direction", 0)}
    assert ("not enough data yet", 1) in words


@pytest.mark.parametrize("case_id", [known for known in IDS if known != "train_memory"])
def test_runs_out_of_memory_decide_nothing_and_are_named(case_id: str) -> None:
    found = judged(case_id, [dataclasses.replace(run, state="out_of_memory", metrics={}) for run in ENOUGH[case_id]])
    assert (found.word, found.have) == ("not enough data yet", 0)
    assert "ran out of memory here" in found.sentence


@pytest.mark.parametrize("case_id", IDS)
def test_runs_of_another_sweep_are_passed_over(case_id: str) -> None:
    found = judged(case_id, ENOUGH[case_id], "test")
    assert (found.word, found.have) == ("not enough data yet", 0)


@pytest.mark.parametrize("case_id", IDS)
def test_the_order_in_which_runs_are_handed_in_does_not_matter(case_id: str) -> None:
    assert judged(case_id, reversed(ENOUGH[case_id])) == judged(case_id, ENOUGH[case_id])


@pytest.mark.parametrize("case_id", ["train_memory", "inference", "train_speed"])
def test_a_published_sweep_on_a_gpu_is_not_testable_without_one(case_id: str) -> None:
    without, with_one = (verdict(case(case_id), [], kinds, "published") for kinds in ({"cpu"}, {"cpu", "cuda"}))
    assert (without.word, with_one.word) == (WORDS[4], "not enough data yet")
    assert verdict(case(case_id), ENOUGH[case_id], {"cpu"}, "here").word == "holds in direction"


# --- 1: init ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "word"), [(25.0, "holds here"), (5.0, "holds in direction"), (1.2, "does not hold here")]
)
def test_dora_beside_lora_decides_the_first_case(ratio: float, word: str) -> None:
    found = judged("init", init_runs(ratio))
    assert found.word == word
    assert found.key_value == pytest.approx(ratio)


def test_seconds_that_do_not_grow_with_the_modules_keep_the_first_claim_from_holding_here() -> None:
    found = judged("init", init_runs(25.0, bent=True))
    assert found.word == "holds in direction"
    assert "not on a straight line" in found.sentence


def test_the_slowest_round_decides_the_first_case_not_the_median() -> None:
    first, second = init_runs(30.0, rounds=1), init_runs(19.0, rounds=1)
    later = [dataclasses.replace(run, run_id=run.run_id + 100) for run in second]
    found = judged("init", first + later)
    assert found.word == "holds in direction"
    assert (by_label(found, "Stock").low, by_label(found, "Stock").high) == (pytest.approx(19), pytest.approx(30))


@pytest.mark.parametrize(
    ("slow", "fast", "word"),
    [(2, 2, "not enough data yet"), (3, 3, "does not hold here"), (4, 1, "holds in direction")],
)
def test_where_rounds_of_the_first_case_disagree_the_lower_quartile_of_five_decides(
    slow: int, fast: int, word: str
) -> None:
    later = [dataclasses.replace(run, run_id=run.run_id + 100) for run in init_runs(1.2, rounds=fast)]
    assert judged("init", init_runs(5.0, rounds=slow) + later).word == word


def test_shares_of_the_modules_stand_beside_what_a_straight_line_gives() -> None:
    half = by_label(judged("init", init_runs(5.0)), "77 of 154")
    assert (half.measured, half.published, half.x) == (pytest.approx(0.5), 0.5, 77)


# --- 2: merge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exact", "rounded", "word"),
    [(0.67, 0.67, "holds here"), (1.0, 0.05, "holds in direction"), (1.0, 0.9, "does not hold here")],
)
def test_peaks_in_both_dtypes_decide_the_second_case(exact: float, rounded: float, word: str) -> None:
    found = judged("merge", merge_runs(exact, rounded))
    assert found.word == word
    assert found.key_value == pytest.approx(exact)


def test_what_merging_out_of_place_does_to_half_precision_is_its_finding_not_a_flaw_of_the_run() -> None:
    runs = merge_runs(1.0, 0.05)
    assert any(run.failed_checks for run in runs)
    assert "weights become float32" in judged("merge", runs).sentence


def test_the_same_failed_checks_on_merging_in_place_make_the_run_worthless() -> None:
    runs = [
        dataclasses.replace(run, failed_checks=("weight_dtype_kept",)) if run.spec.strategy == "stock" else run
        for run in merge_runs(1.0, 0.05)
    ]
    found = judged("merge", runs)
    assert (found.word, found.have) == ("not enough data yet", 2)


# --- 3: train memory --------------------------------------------------------------------------------------------------

BOTH_OUT = [(2048, "full"), (2048, "lora")]


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ({128: 0.42, 512: 0.55, 1024: 0.8}, "holds here"),
        ({128: 0.3, 512: 0.32, 1024: 0.4}, "holds in direction"),
        ({128: 0.5, 512: 0.51, 1024: 0.52}, "does not hold here"),
        ({128: 0.6, 512: 0.5, 1024: 0.8}, "does not hold here"),
    ],
)
def test_the_ratio_by_length_decides_the_third_case(shares: dict[int, float], word: str) -> None:
    assert judged("train_memory", memory_runs(shares, BOTH_OUT)).word == word


def test_out_of_memory_is_a_result_of_the_third_case_and_is_named() -> None:
    found = judged("train_memory", memory_runs({128: 0.42, 512: 0.55, 1024: 0.8}, BOTH_OUT))
    assert found.have == found.need
    assert by_label(found, "2048").measured is None
    assert by_label(found, "2048").note == "full fine-tuning and LoRA ran out of memory"
    assert "At 2048 tokens full fine-tuning and LoRA ran out of memory." in found.sentence


def test_a_length_at_which_only_lora_fits_has_no_ratio() -> None:
    found = judged("train_memory", memory_runs({128: 0.42, 512: 0.55, 1024: 0.8, 2048: 0.9}, [(2048, "full")]))
    assert by_label(found, "2048").measured is None
    assert by_label(found, "2048").note == "full fine-tuning ran out of memory"


def test_one_length_that_fits_has_no_shape() -> None:
    lost = [(length, side) for length in (512, 1024, 2048) for side in ("full", "lora")]
    found = judged("train_memory", memory_runs({128: 0.4}, lost))
    assert found.word == "not enough data yet"
    assert "Fewer than two lengths" in found.sentence


def test_the_length_from_which_little_is_saved_lies_between_the_lengths_around_it() -> None:
    found = judged("train_memory", memory_runs({128: 0.4, 512: 0.7, 1024: 0.9}, BOTH_OUT))
    assert "less than 20 % from about 768 tokens on" in found.sentence


def test_published_ratios_are_those_of_the_published_table() -> None:
    ratios = {ratio.x: ratio.published for ratio in judged("train_memory", []).ratios}
    assert [round(ratios[length] or 0, 2) for length in (512, 1024)] == [0.52, 0.76]


# --- 4: inference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overheads", "word"),
    [
        ([1.9] * 11, "holds here"),
        ([1.1] * 11, "holds in direction"),
        ([1.0, 1.01] * 5 + [1.0], "does not hold here"),
        ([0.9] * 4 + [1.2] * 7, "not enough data yet"),
        ([0.9] * 2 + [1.2] * 9, "holds in direction"),
    ],
)
def test_the_lower_quartile_of_the_repeats_decides_the_fourth_case(overheads: list[float], word: str) -> None:
    assert judged("inference", inference_runs(overheads)).word == word


def test_repeats_of_the_fourth_case_that_disagree_take_three_runs() -> None:
    run, *_ = inference_runs([0.9] * 4 + [1.2] * 7)
    runs = [dataclasses.replace(run, run_id=number) for number in (1, 2, 3)]
    found = judged("inference", runs[:2])
    assert (found.word, found.have, found.need) == ("not enough data yet", 2, 3)
    assert judged("inference", runs).word == "does not hold here"


def test_the_fourth_case_shows_fused_and_merged_beside_stock() -> None:
    found = judged("inference", inference_runs([1.2] * 11, fused=1.06))
    assert [ratio.measured for ratio in found.ratios] == [pytest.approx(value) for value in (1.2, 1.06, 1.0, 1.2, 1.2)]


# --- 5: train speed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "some", "head", "word"),
    [
        ([1.7, 1.6, 1.8], 0.8, 0.4, "holds here"),
        ([1.7, 1.6, 1.8], 1.1, 0.4, "holds in direction"),
        ([1.7, 1.6, 1.8], 0.8, 0.9, "holds in direction"),
        ([1.1, 1.05, 1.2], 0.8, 0.4, "holds in direction"),
        ([0.9, 0.95, 1.0], 0.8, 0.4, "does not hold here"),
        ([0.95, 1.1, 1.1], 0.8, 0.4, "not enough data yet"),
        ([0.95, 1.1, 1.1, 1.1, 1.1], 0.8, 0.4, "holds in direction"),
        ([0.95, 0.95, 1.1, 1.1, 1.1], 0.8, 0.4, "does not hold here"),
    ],
)
def test_step_times_of_each_round_decide_the_fifth_case(
    every: list[float], some: float, head: float, word: str
) -> None:
    assert judged("train_speed", speed_runs(every, some, head)).word == word


def test_a_machine_that_slows_down_from_round_to_round_spreads_no_ratio() -> None:
    found = judged("train_speed", speed_runs([1.1, 1.1, 1.1], some=0.8, head=0.4))
    assert [ratio.low for ratio in found.ratios] == [pytest.approx(value) for value in (1.1, 0.8, 0.4)]
    assert [ratio.high for ratio in found.ratios] == [pytest.approx(value) for value in (1.1, 0.8, 0.4)]


def test_a_run_whose_partner_of_the_round_is_missing_is_compared_with_the_nearest() -> None:
    runs = speed_runs([1.1, 1.1, 1.1, 1.1])
    found = judged("train_speed", runs[1:])  # without full fine-tuning of the first round
    lora = by_label(found, "r = 2, every")
    # The first run meets the full fine-tuning of the second round, whose pace is 1.1 times slower.
    assert (lora.low, lora.high) == (pytest.approx(1.0), pytest.approx(1.1))
    assert (found.word, found.have, found.need) == ("not enough data yet", 15, 20)
    assert "5 runs of each setting decide" in found.sentence


def test_the_depth_that_gradients_reach_stands_beside_the_ratio() -> None:
    assert (
        by_label(judged("train_speed", ENOUGH["train_speed"]), "r = 2, output head").note == "gradients reach 0 blocks"
    )


# --- stored runs ------------------------------------------------------------------------------------------------------


def test_a_stored_run_is_seen_with_its_repeats_failed_checks_and_disturbance() -> None:
    spec = case("train_speed").sweep("here").specs[0]
    checks = [{"name": "loss_finite", "passed": True}, {"name": "gradients_nonzero", "passed": False}]
    metrics = [("step_time_s", None, 1.0), ("step_time_s", "stock", 3.0), ("step_time_s", None, 2.0)]
    found = observe(7, spec.model_dump(mode="json"), "succeeded", checks, 0.11, metrics)
    assert found.metrics == {("step_time_s", None): (1.0, 2.0), ("step_time_s", "stock"): (3.0,)}
    assert (found.spec_hash, found.failed_checks, found.disturbed) == (spec_hash(spec), ("gradients_nonzero",), True)
    assert not observe(7, spec.model_dump(mode="json"), "succeeded", None, None, []).disturbed


def test_a_stored_spec_of_another_version_is_refused_with_its_field() -> None:
    with pytest.raises(SpecError, match="kind"):
        observe(7, {"kind": "dream"}, "succeeded", [], None, [])


def test_predicted_peaks_give_the_ratios_that_the_same_peaks_measured_would_give() -> None:
    peaks = {run.spec_hash: {key: values[0] for key, values in run.metrics.items()} for run in ENOUGH["train_memory"]}
    found = predicted_ratios(case("train_memory"), case("train_memory").sweep("here"), peaks)
    assert found == judged("train_memory", ENOUGH["train_memory"]).ratios
    assert all(ratio.measured for ratio in found)


def test_ratios_without_a_prediction_have_no_value() -> None:
    sweep = case("train_memory").predicted[0]
    first, second = (spec_hash(spec) for spec in sweep.specs[:2])
    known = {first: {("peak_bytes", None): 4.0 * GIB}, second: {("peak_bytes", None): 1.0 * GIB}}
    found = predicted_ratios(case("train_memory"), sweep, known)
    assert [ratio.measured for ratio in found] == [0.25] + [None] * (len(found) - 1)


def test_the_third_claim_is_predicted_for_larger_models_at_every_published_length() -> None:
    sweeps = case("train_memory").predicted
    assert [sweep.model for sweep in sweeps] == ["tinyllama-1.1b", "mistral-7b", "llama-3.1-8b", "llama-3.3-70b"]
    lengths = [[spec.train.context_length for spec in sweep.specs[::2]] for sweep in sweeps]
    assert lengths == [[512, 1024, 1536, 2048], *[[512, 1024, 1536, 2048, 4096]] * 3]
