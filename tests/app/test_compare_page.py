"""The Compare page: addresses, verdicts first, what differs, environments, charts, and what is typed by strangers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from db import runs
from db.models import Run
from db.session import Database
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]
HOSTILE = "<img src=x onerror=alert(1)> *bold*"


@pytest.fixture
def replicas(database: Database) -> list[int]:
    """Four replicas of LoRA, then of DoRA."""
    return [
        stored.store(
            database,
            stored.init_document(dora=dora),
            stored.result([seconds * (1 + step / 100)] * 3, peak_bytes=(200 if dora else 50) * 2**20),
        )
        for dora, seconds in ((False, 0.2), (True, 1.5))
        for step in range(4)
    ]


def ids(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


def labels(app: AppTest) -> list[str]:
    return [metric.label for metric in app.metric]


def test_without_runs_it_says_what_to_do_next(open_page: Open) -> None:
    app = open_page("compare")
    assert "Select two or more runs" in words(app)
    assert [button.label for button in app.button] == ["Choose runs"]


def test_the_verdict_comes_first_in_a_sentence(open_page: Open, replicas: list[int]) -> None:
    app = open_page("compare", ids=ids(replicas))
    assert "slower than LoRA · Stock PEFT" in words(app)
    assert "n \\= 4 runs each, p \\= 0\\.029" in words(app) or "n = 4 runs each, p = 0\\.029" in words(app)
    assert app.metric[0].delta == "baseline"
    assert app.metric[1].delta.endswith("slower")


def test_the_rule_is_beside_the_verdict(open_page: Open, replicas: list[int]) -> None:
    assert "Mann-Whitney" in words(open_page("compare", ids=ids(replicas)))


def test_unknown_and_deleted_runs_are_one_sentence_and_the_rest_is_shown(
    open_page: Open, database: Database, replicas: list[int]
) -> None:
    with database.writing() as session:
        runs.archive(session, [replicas[0]])
        runs.delete(session, [replicas[0]])
    app = open_page("compare", ids=f"{ids(replicas)},999,what")
    assert [warning.value for warning in app.warning] == [
        "Runs 1 and 999 are not stored here; deleted, perhaps; “what” in the address is no run id\\."
    ]
    assert len(app.metric) == 2


def test_the_address_sets_metric_baseline_and_grouping(open_page: Open, replicas: list[int]) -> None:
    app = open_page(
        "compare", ids=ids(replicas), metric="Peak extra memory", baseline="DoRA · Stock PEFT", group="adapter"
    )
    assert "Peak extra memory, lower is better" in words(app)
    app = open_page("compare", ids=ids(replicas), baseline="DoRA · Stock PEFT")
    assert app.metric[0].label == "DoRA · Stock PEFT"
    assert app.metric[0].delta == "baseline"
    assert app.metric[1].delta.endswith("faster")


def test_where_the_baseline_has_no_value_nothing_else_is_called_the_baseline(
    open_page: Open, database: Database
) -> None:
    measured = stored.store(database, stored.init_document(), stored.result([0.2] * 3))
    ended = stored.store(database, stored.init_document("mistral-7b"), stored.failure("out_of_memory", "no memory"))
    app = open_page("compare", ids=ids([measured, ended]), baseline="Mistral 7B v0.1")
    assert labels(app) == ["TinyLlama 1\\.1B"]
    assert not app.metric[0].delta
    assert list(app.dataframe[0].value["Verdict"]) == ["–", "baseline"]


def test_nonsense_in_the_address_is_ignored(open_page: Open, replicas: list[int]) -> None:
    app = open_page("compare", ids=ids(replicas), metric="nonsense", baseline="none", group="x", split="y", chart="z")
    assert len(app.metric) == 2


def test_only_fields_that_differ_are_in_the_table_and_can_be_searched(open_page: Open, replicas: list[int]) -> None:
    app = open_page("compare", ids=ids(replicas))
    table = app.dataframe[2].value
    assert set(table["Field"]) == {"adapter", "adapter.options.use_dora"}
    app.text_input(key="find").set_value("use_").run()
    assert list(app.dataframe[2].value["Field"]) == ["adapter.options.use_dora"]
    app.toggle(key="swap").set_value(True).run()
    assert list(app.dataframe[2].value["Run"]) == [str(run_id) for run_id in replicas]


def test_runs_of_one_configuration_say_so(open_page: Open, replicas: list[int]) -> None:
    assert "Nothing: these runs have the same configuration." in words(open_page("compare", ids=ids(replicas[:4])))


def test_kinds_are_compared_one_at_a_time(open_page: Open, database: Database, replicas: list[int]) -> None:
    merges = stored.one_of_each_kind(database)["merge"]
    app = open_page("compare", ids=ids(replicas + merges))
    assert "Runs of one kind are compared at a time." in words(app)
    assert len(app.metric) == 2
    app = open_page("compare", ids=ids(replicas + merges), kind="Merge")
    assert "LoRA · addmm" in labels(app)


def test_runs_without_numbers_are_said_to_have_none(open_page: Open, database: Database) -> None:
    failed = stored.store(database, stored.init_document(), stored.failure("failed", "It broke"))
    assert "hold no numbers" in words(open_page("compare", ids=str(failed)))


def test_different_environments_are_named_and_can_be_normalised(
    open_page: Open, database: Database, replicas: list[int]
) -> None:
    environment = {**copy.deepcopy(stored.ENVIRONMENT), "cpu": "Slow CPU"}
    elsewhere = [
        stored.store(
            database, stored.init_document(dora=dora), {**stored.result([seconds] * 3), "environment": environment}
        )
        for dora, seconds in ((False, 0.4), (True, 3.0))
    ]
    app = open_page("compare", ids=ids(replicas + elsewhere))
    assert "These runs differ in hardware" in words(app)
    app.toggle(key="normalise").set_value(True).run()
    assert not app.exception
    assert "times the baseline" in words(app)
    assert {metric.value for metric in app.metric} >= {"1.00×", "7.50×"}


def test_the_same_environment_everywhere_gives_no_warning(open_page: Open, replicas: list[int]) -> None:
    app = open_page("compare", ids=ids(replicas))
    assert "These runs differ" not in words(app)
    assert "normalise" not in [toggle.key for toggle in app.toggle]


@pytest.mark.parametrize("chart", ["One metric", "All of inference", "Two metrics", "Parallel"])
def test_every_view_draws_a_chart_with_a_text_for_those_who_cannot_see_it(
    open_page: Open, database: Database, chart: str
) -> None:
    found = stored.one_of_each_kind(database)["inference"]
    app = open_page("compare", ids=ids(found), chart=chart)
    charts = app.get("plotly_chart")
    assert charts
    assert all(figure.proto.alt for figure in charts)


@pytest.mark.parametrize("kind", ["merge", "train", "inference"])
def test_every_kind_can_be_compared(open_page: Open, database: Database, kind: str) -> None:
    found = stored.one_of_each_kind(database)[kind]
    app = open_page("compare", ids=ids(found), chart=f"All of {kind}")
    assert app.get("plotly_chart")
    assert len(app.dataframe) == 3


def test_what_people_typed_is_shown_as_text(open_page: Open, database: Database) -> None:
    found = stored.lora_and_dora(database)
    with database.writing() as session:
        for run_id in found:
            runs.rename(session, run_id, HOSTILE)
            runs.set_tags(session, [run_id], [f"{HOSTILE} {run_id % 2}"])
    app = open_page("compare", ids=ids(found), group="tag")
    assert "\\<img" in app.metric[0].label
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert "<img" not in json.dumps(figure["layout"].get("title", "")) + json.dumps(
        [trace.get("y") for trace in figure["data"]]
    )


def test_plain_stock_comes_beside_training_runs_when_asked_for(open_page: Open, database: Database) -> None:
    found = stored.one_of_each_kind(database)["train"]
    app = open_page("compare", ids=ids(found))
    before = len(app.dataframe[0].value)
    app.multiselect(key="variants").set_value(["stock"]).run()
    assert len(app.dataframe[0].value) == before
    alone = open_page("compare", ids=str(found[2]))
    assert list(alone.dataframe[0].value["Group"]) == ["LoRA · Stock PEFT", "LoRA · Stock PEFT, checkpointing"]
    alone.multiselect(key="variants").set_value([]).run()
    assert len(alone.dataframe[0].value) == 1


def test_no_chosen_variant_means_all_of_them(open_page: Open, database: Database) -> None:
    app = open_page("compare", ids=str(stored.one_of_each_kind(database)["inference"][0]))
    before = len(app.dataframe[0].value)
    app.multiselect(key="variants").set_value([]).run()
    assert len(app.dataframe[0].value) == before == 4


def test_sample_data_says_so(open_page: Open, database: Database, replicas: list[int]) -> None:
    with database.writing() as session:
        session.execute(update(Run).where(Run.id.in_(replicas[4:])).values(origin="sample"))
    app = open_page("compare", ids=ids(replicas))
    assert "sample data among them" in words(app).replace("\\", "")
    assert labels(app)[1].endswith("sample data")
    assert "in 1 group · sample data" in words(open_page("compare", ids=ids(replicas[4:]))).replace("\\", "")


def test_a_presented_comparison_has_no_controls_but_shows_the_same(open_page: Open, replicas: list[int]) -> None:
    app = open_page("compare", ids=ids(replicas), present="1", baseline="DoRA · Stock PEFT", find="use_")
    assert not app.selectbox
    assert not app.multiselect
    assert not app.text_input
    assert list(app.dataframe[2].value["Field"]) == ["adapter.options.use_dora"]
    assert app.metric[0].label == "DoRA · Stock PEFT"
    assert len(app.get("plotly_chart")) == 1
