"""From stored runs to groups, fields and standings: real rows, read back from a database."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.comparison import board, environments, fields, selection
from app.comparison.board import Board
from db import runs
from db.models import Run
from db.session import Database, open_database
from tests.app import stored

GIB = 2**30


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    opened = open_database()
    stored.devices(opened)
    yield opened
    opened.close()


def built(database: Database, ids: list[int], **how: Any) -> Board:
    with database.reading() as session:
        rows = runs.get_rows(session, ids)
        return board.build(rows, runs.environments(session, ids), runs.metric_values(session, run_ids=ids), **how)


def labels_of(found: Board) -> list[str]:
    return [group.label for group in found.groups]


def init(database: Database, seconds: float, *, environment: dict[str, Any] | None = None, **fields: Any) -> int:
    outcome = stored.result([seconds, seconds * 1.01, seconds * 0.99])
    return stored.store(
        database, stored.init_document(**fields), {**outcome, "environment": environment or stored.ENVIRONMENT}
    )


def other(**changes: Any) -> dict[str, Any]:
    """The environment with parts of it changed."""
    return {**copy.deepcopy(stored.ENVIRONMENT), **changes}


def test_fields_have_the_dotted_names_of_the_filter(database: Database) -> None:
    found = built(database, [init(database, 0.2, dora=True)]).flats[1]
    assert found["strategy"] == "stock"
    assert found["adapter"] == "DoRA"
    assert found["adapter.options.use_dora"] is True
    assert found["adapter.rank"] == 16
    assert found["environment.packages.peft"] == "0.21.2"


def test_only_fields_that_differ_are_named() -> None:
    flats = {1: {"a": 1, "b": True, "c": "x", "state": "failed"}, 2: {"a": 1, "b": 1, "d": None, "state": "succeeded"}}
    assert fields.differing(flats) == ["b", "c"]


def test_a_run_without_a_recorded_environment_does_not_differ_in_it() -> None:
    flats = {
        1: {"environment.cpu": "A", "a": 1},
        2: {"a": 1},
        3: {"environment.cpu": "A", "environment.gpus": "B", "a": 1},
    }
    assert fields.differing(flats) == ["environment.gpus"]


def test_replicas_are_one_group(database: Database) -> None:
    found = built(database, [init(database, 0.2), init(database, 0.21), init(database, 1.5, dora=True)])
    assert labels_of(found) == ["LoRA · Stock PEFT", "DoRA · Stock PEFT"]
    assert found.groups[0].run_ids == (1, 2)


def test_the_same_spec_elsewhere_is_another_group_named_by_its_versions(database: Database) -> None:
    newer = other(packages={**stored.ENVIRONMENT["packages"], "peft": "0.22.0"})
    found = built(database, [init(database, 0.2), init(database, 0.3, environment=newer)])
    assert labels_of(found) == ["LoRA · Stock PEFT, peft 0.21.2", "LoRA · Stock PEFT, peft 0.22.0"]


def test_a_commit_or_some_mib_of_memory_do_not_part_replicas(database: Database) -> None:
    moved = other(commit="fffffff", memory_bytes=16 * GIB + 2**20)
    assert len(built(database, [init(database, 0.2), init(database, 0.3, environment=moved)]).groups) == 1


def test_runs_with_a_failed_check_are_never_pooled(database: Database) -> None:
    good = init(database, 0.2)
    bad = stored.store(database, stored.init_document(), stored.result([0.2], failed_check=True))
    assert labels_of(built(database, [good, bad])) == ["LoRA · Stock PEFT", "LoRA · Stock PEFT, check failed"]


def test_sample_data_is_never_pooled_with_other_runs_and_its_groups_say_so(database: Database) -> None:
    ids = [init(database, 0.2), init(database, 0.3), init(database, 1.5, dora=True)]
    with database.writing() as session:
        session.execute(update(Run).where(Run.id.in_(ids[1:])).values(origin="sample"))
    found = built(database, ids)
    assert labels_of(found) == ["LoRA · Stock PEFT", "LoRA · Stock PEFT, sample data", "DoRA · Stock PEFT, sample data"]
    assert labels_of(built(database, ids, by=["adapter"])) == ["DoRA, sample data", "LoRA", "LoRA, sample data"]
    assert labels_of(built(database, ids[1:])) == ["LoRA · Stock PEFT", "DoRA · Stock PEFT"], "there is nothing else"


def test_names_of_groups_are_what_differs(database: Database) -> None:
    ids = []
    for rank in (16, 8):
        document = stored.init_document()
        document["adapter"]["rank"] = rank
        ids.append(stored.store(database, document, stored.result([0.2])))
    assert labels_of(built(database, ids)) == ["rank 8", "rank 16"]


def test_groups_that_differ_in_seed_only_are_still_told_apart(database: Database) -> None:
    ids = [init(database, 0.2, seed=seed) for seed in (1, 2)]
    assert labels_of(built(database, ids)) == ["LoRA · Stock PEFT, seed 1", "LoRA · Stock PEFT, seed 2"]


def test_any_field_can_make_the_groups(database: Database) -> None:
    found = built(database, stored.lora_and_dora(database), by=["adapter"])
    assert labels_of(found) == ["DoRA", "LoRA"]
    assert found.groups[0].run_ids == (2, 3, 4)


def test_variants_of_inference_are_groups_and_what_no_strategy_touches_is_pooled(database: Database) -> None:
    found = built(database, stored.one_of_each_kind(database)["inference"])
    assert labels_of(found) == [
        "Base model",
        "LoRA · Disabled",
        "LoRA · Stock PEFT",
        "LoRA · Fused",
        "LoRA · Merged",
    ]
    assert len(found.group("Base model").run_ids) == 2
    assert len(found.group("LoRA · Fused").run_ids) == 1


def test_a_base_model_without_adapter_is_the_base_of_the_others(database: Database) -> None:
    ids = [
        stored.store(database, stored.document("inference", adapter=None), stored.inference_result({"base": 13.0})),
        stored.store(database, stored.document("inference"), stored.inference_result({"base": 13.1, "adapter": 9.0})),
    ]
    assert built(database, ids).group("Base model").run_ids == tuple(ids)


def test_plain_stock_beside_a_training_run_is_pooled_with_plain_stock_runs(database: Database) -> None:
    ids = stored.one_of_each_kind(database)["train"]
    assert built(database, ids).group("LoRA · Stock PEFT").run_ids == (ids[1], ids[2])
    assert built(database, ids, sides=[]).group("LoRA · Stock PEFT").run_ids == (ids[1],)


def test_views_of_one_metric_are_metrics_of_their_own(database: Database) -> None:
    outcome = stored.result([0.2])
    outcome["metrics"].append(stored.metric("init_peak_extra_rss_bytes", "bytes", 5.0, variant="anonymous"))
    found = built(database, [stored.store(database, stored.init_document(), outcome)])
    assert "init_peak_extra_rss_bytes@anonymous" in board.metrics(found)
    assert board.title("init_peak_extra_rss_bytes@anonymous") == "Peak extra RSS (anonymous)"


def test_a_run_out_of_memory_keeps_its_group_and_says_why_it_has_no_value(database: Database) -> None:
    ids = [
        init(database, 0.2),
        stored.store(database, stored.init_document("mistral-7b"), stored.failure("out_of_memory", "no memory")),
    ]
    found = built(database, ids)
    last = board.standings(found, "init_time_s", found.groups[0].label)[-1]
    assert board.sentence(found, last, None) == "Mistral 7B v0.1 has no init time: out of memory."
    assert list(found.frame[found.frame["run_id"] == ids[1]]["state"]) == ["out_of_memory"]


def test_variants_inside_a_run_are_decided_by_its_repeats(database: Database) -> None:
    found = built(database, [stored.one_of_each_kind(database)["inference"][1]])
    standing = {line.group.label: line for line in board.standings(found, "decode_tokens_per_s", "LoRA · Stock PEFT")}
    verdict = standing["LoRA · Fused"].verdict
    assert verdict is not None
    assert (verdict.word, verdict.evidence) == ("faster", "n = 5 repeats, p = 0.008")
    assert standing["LoRA · Stock PEFT"].verdict is None


def test_steps_of_several_lengths_are_compared_by_speed_at_first(database: Database) -> None:
    ids = [
        stored.store(
            database,
            stored.document("train", train={"context_length": length}),
            stored.train_result([1.0], trainable=5),
        )
        for length in (512, 1024)
    ]
    assert board.first_metric(built(database, ids)) == "train_tokens_per_s"
    assert board.first_metric(built(database, ids[:1])) == "step_time_s"


def test_normalising_divides_by_the_baseline_of_the_same_environment(database: Database) -> None:
    slow = other(cpu="Slow CPU")
    ids = [
        init(database, 0.2),
        init(database, 1.0, dora=True),
        init(database, 0.4, environment=slow),
        init(database, 2.4, environment=slow, dora=True),
    ]
    found = built(database, ids)
    scaled = board.normalise(found, found.groups[0].label)
    medians = {line.group.run_ids[0]: line for line in board.standings(scaled, "init_time_s", found.groups[0].label)}
    assert {key: line.summary.median for key, line in medians.items() if line.summary} == pytest.approx(
        {ids[0]: 1.0, ids[1]: 5.0, ids[2]: 1.0, ids[3]: 6.0}
    )
    # Each is held against the baseline beside it, which itself has no verdict.
    assert medians[ids[2]].verdict is None
    assert medians[ids[3]].baseline == medians[ids[2]].group.label
    assert board.value_text(scaled, "init_time_s", 6.0) == "6.00×"


def test_groups_whose_environment_has_no_baseline_are_named(database: Database) -> None:
    ids = [init(database, 0.2), init(database, 1.0, dora=True, environment=other(cpu="Slow CPU"))]
    found = built(database, ids)
    assert board.without_baseline(found, found.groups[0].label) == [found.groups[1].label]
    assert list(board.normalise(found, found.groups[0].label).frame["run_id"].unique()) == [ids[0]]


def test_charts_count_each_of_several_runs_once(database: Database) -> None:
    found = built(database, [init(database, 0.2), init(database, 0.3), init(database, 1.0, dora=True)])
    drawn = board.charted(found)
    rows = drawn[drawn["name"] == "init_time_s"]
    assert rows.groupby("group")["value"].count().to_dict() == {"LoRA · Stock PEFT": 2, "DoRA · Stock PEFT": 3}


def test_the_warning_names_what_differs_by_category() -> None:
    one = environments.identity(stored.ENVIRONMENT)
    two = environments.identity(
        other(
            cpu="Slow CPU",
            packages={"torch": "2.13.0", "peft": "0.22.0"},
            variables={"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        )
    )
    text = environments.sentence(environments.differences([one, two])) or ""
    assert text.startswith("These runs differ in hardware (CPU Test CPU / Slow CPU), versions (")
    assert "peft 0.21.2 / 0.22.0" in text
    assert "transformers 5.23.0 / not recorded" in text
    assert text.endswith(
        "allocator settings (MALLOC_ARENA_MAX not recorded / 1)"
        " and environment variables (OMP_NUM_THREADS not recorded / 1)."
    )
    assert environments.sentence(environments.differences([one, one])) is None


def test_ids_in_an_address_are_read_as_far_as_they_can_be() -> None:
    asked = selection.parse_ids("3, 1,3,nonsense,-2,<b>,99999999999999999999,٣")
    assert asked.ids == (3, 1)
    assert asked.unreadable == ("nonsense", "-2", "<b>", "99999999999999999999", "٣")
    sentence = selection.missing_sentence(asked, {1}) or ""
    assert sentence == "Run 3 is not stored here; deleted, perhaps; “nonsense” in the address is no run id."
    assert selection.parse_ids(selection.ids_text([3, 1])).ids == (3, 1)


def test_more_runs_than_can_be_told_apart_are_left_out_and_counted() -> None:
    asked = selection.parse_ids(",".join(map(str, range(1, 251))))
    assert len(asked.ids) == selection.MOST_RUNS
    assert "50 are left out" in (selection.missing_sentence(asked, asked.ids) or "")


def test_a_normalised_baseline_of_several_runs_is_exactly_one(database: Database) -> None:
    ids = [init(database, seconds) for seconds in (0.2, 0.25, 0.3)] + [init(database, 1.0, dora=True)]
    found = built(database, ids)
    scaled = board.normalise(found, found.groups[0].label)
    first = board.standings(scaled, "init_time_s", found.groups[0].label)[0].summary
    assert first is not None
    assert first.median == pytest.approx(1.0)
