"""The Runs page: what is in the table, and an address that says what it is narrowed to, its order and its columns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from app.kinds import KINDS
from db import runs
from db.conditions import MetricField
from db.session import Database
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]


@pytest.fixture
def filled(database: Database) -> Database:
    stored.lora_and_dora(database)
    oom = stored.failure("out_of_memory", "The weights alone need 14.5 GiB")
    stored.store(database, stored.init_document("mistral-7b"), oom)
    with database.writing() as session:
        runs.set_tags(session, [1], ["paper"])
    return database


def ids(app: AppTest) -> list[int]:
    return list(app.dataframe[0].value["id"])


def test_an_empty_database_says_what_to_do_next(open_page: Open) -> None:
    app = open_page("runs")
    assert "No run is stored yet" in words(app)
    assert [button.label for button in app.button] == ["Import", "Launch a run"]


def test_every_run_is_a_row_and_bad_ones_carry_their_sentence(open_page: Open, filled: Database) -> None:
    table = open_page("runs").dataframe[0].value
    assert list(table["id"]) == [5, 4, 3, 2, 1]
    assert table["problem"].iloc[0] == "The weights alone need 14.5 GiB"
    assert table["init_s"].iloc[-1] == pytest.approx(0.21)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "Out of memory"}, [5]),
        ({"adapter": "LoRA"}, [5, 1]),
        ({"model": "TinyLlama 1.1B", "adapter": "LoRA"}, [1]),
        ({"tag": "paper"}, [1]),
        ({"q": "14.5"}, [5]),
        ({"q": "zero_b"}, [3]),
    ],
)
def test_filters_come_from_the_address(
    open_page: Open, filled: Database, query: dict[str, str], expected: list[int]
) -> None:
    assert ids(open_page("runs", **query)) == expected


def test_a_filter_value_that_no_run_has_is_ignored(open_page: Open, filled: Database) -> None:
    assert len(ids(open_page("runs", state="nonsense"))) == 5


def test_filters_that_nothing_passes_say_so(open_page: Open, filled: Database) -> None:
    assert "No run passes these filters" in words(open_page("runs", q="no such thing"))


def test_archived_runs_are_hidden_until_asked_for(open_page: Open, filled: Database) -> None:
    with filled.writing() as session:
        runs.archive(session, [2])
    app = open_page("runs")
    assert ids(app) == [5, 4, 3, 1]
    app.toggle(key="archived").set_value(True).run()
    assert ids(app) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("state = 'Out of memory' OR tag = paper", [5, 1]),
        ("adapter.options.use_dora = true AND init_time_s < 1", [4, 3]),
        ("init_peak_extra_bytes >= 200MiB", [2]),
        ("NOT init_time_s > 0", [5]),
        ("environment.packages.peft = 0.21.2 AND strategy != stock", [4, 3]),
        ("note ~ '%'", []),
    ],
)
def test_a_filter_expression_comes_from_the_address(
    open_page: Open, filled: Database, expression: str, expected: list[int]
) -> None:
    app = open_page("runs", filter=expression)
    if expected:
        assert ids(app) == expected
    else:
        assert "No run passes these filters" in words(app)


def test_a_filter_that_is_wrong_is_shown_with_a_caret_under_the_character(open_page: Open, filled: Database) -> None:
    app = open_page("runs", filter="adapter = LoRA AND init_tim_s < 1")
    assert "did you mean init\\_time\\_s" in app.error[0].value
    assert app.code[0].value == "adapter = LoRA AND init_tim_s < 1\n" + " " * 19 + "^"
    assert len(app.dataframe) == 0, "a list that the filter did not narrow would mislead"
    app.text_input(key="filter").set_value("adapter = LoRA").run()
    assert ids(app) == [5, 1]
    assert not app.error


def test_markup_in_a_filter_is_shown_as_text(open_page: Open, filled: Database) -> None:
    app = open_page("runs", filter="**x**:red[y] = 1")
    assert "\\*\\*x\\*\\*\\:red\\[y\\] is no field" in app.error[0].value


def test_filters_that_nothing_passes_can_be_cleared_at_once(open_page: Open, filled: Database) -> None:
    app = open_page("runs", filter="id = 99", q="x", adapter="LoRA")
    (clear,) = [button for button in app.button if button.label == "Clear the filters"]
    clear.click().run()
    assert ids(app) == [5, 4, 3, 2, 1]
    assert app.text_input(key="filter").value == ""


def test_where_every_run_is_archived_one_button_shows_them(open_page: Open, filled: Database) -> None:
    with filled.writing() as session:
        runs.archive(session, [1, 2, 3, 4, 5])
    app = open_page("runs")
    assert "Every run is archived" in words(app)
    (show,) = [button for button in app.button if button.label == "Show archived runs"]
    show.click().run()
    assert ids(app) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"sort": "init_time_s"}, [1, 3, 4, 2, 5]),
        ({"sort": "init_time_s", "reverse": "true"}, [2, 4, 3, 1, 5]),
        ({"sort": "strategy"}, [4, 5, 2, 1, 3]),
        ({"reverse": "true"}, [1, 2, 3, 4, 5]),
        ({"sort": "no such field"}, [5, 4, 3, 2, 1]),
        ({"sort": "init_time_s", "filter": "init_time_s > 0.5"}, [4, 2]),
    ],
)
def test_the_order_comes_from_the_address(
    open_page: Open, filled: Database, query: dict[str, str], expected: list[int]
) -> None:
    assert ids(open_page("runs", **query)) == expected


def test_what_the_list_is_ordered_by_is_a_column(open_page: Open, filled: Database) -> None:
    table = open_page("runs", sort="adapter.rank").dataframe[0].value
    assert set(table["adapter.rank"]) == {16}


def test_columns_are_added_and_hidden_by_the_address(open_page: Open, filled: Database) -> None:
    app = open_page("runs", add="adapter_parameters", hide="Device")
    table = app.dataframe[0].value
    assert table["adapter_parameters"].iloc[1] == 12_615_680
    assert "device" not in table
    app.multiselect(key="add").set_value(["environment.packages.peft", "adapter.rank"]).run()
    table = app.dataframe[0].value
    assert list(table["environment.packages.peft"].fillna("")) == ["", *["0.21.2"] * 4]
    assert set(table["adapter.rank"]) == {16}


def test_the_choice_of_columns_is_remembered_while_other_pages_are_looked_at(open_page: Open, filled: Database) -> None:
    app = open_page("runs")
    app.multiselect(key="add").set_value(["adapter.rank"])
    app.multiselect(key="hide").set_value(["device"]).run()
    app.switch_page("views/queue.py").run()
    app.query_params.clear()
    app.switch_page("views/runs.py").run()
    table = app.dataframe[0].value
    assert "adapter.rank" in table
    assert "device" not in table


def test_a_long_list_has_pages_and_every_run_is_on_one(
    open_page: Open, filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.queued(filled, *(stored.init_document(seed=seed) for seed in range(498)))
    app = open_page("runs")
    assert ids(app) == list(range(503, 3, -1))
    assert "503 runs" in words(app)
    assert ids(open_page("runs", page="2")) == [3, 2, 1]
    assert ids(open_page("runs", page="9"))[0] == 503, "there is no such page"
    assert ids(open_page("runs", page="2", q="zero_b")) == [3]


def test_selected_runs_go_to_compare_and_stay_selected_when_the_list_changes(open_page: Open, filled: Database) -> None:
    app = open_page("runs")
    app.session_state["selected_runs"] = [2, 4]
    app.text_input(key="filter").set_value("adapter = dora").run()
    assert "**2 runs selected**" in words(app)
    labels = [button.label for button in app.button]
    assert "Compare" in labels
    assert "Archive" in labels
    (compare,) = [button for button in app.button if button.label == "Compare"]
    compare.click().run()
    assert app.query_params["ids"] == "4,2"
    assert app.title[0].value == "Compare"


def test_without_a_selection_all_shown_runs_can_be_compared(open_page: Open, filled: Database) -> None:
    app = open_page("runs", q="zero_b")
    assert "Compare all shown" not in [button.label for button in app.button], "one run compares with nothing"
    app = open_page("runs", adapter="DoRA")
    (compare,) = [button for button in app.button if button.label == "Compare all shown"]
    compare.click().run()
    assert app.query_params["ids"] == "4,3,2"


def test_the_median_in_the_table_is_of_the_variant_that_the_kind_is_about(open_page: Open, database: Database) -> None:
    stored.one_of_each_kind(database)
    bare = stored.document("inference", adapter=None)
    stored.store(database, bare, stored.inference_result({"base": 3.0, "merged": 4.0}))
    with database.reading() as session:
        rows = [row for row in runs.list_runs(session) if row.kind in KINDS]
        fields = {row.id: MetricField(KINDS[row.kind].COMPARED, KINDS[row.kind].main_variant(row)) for row in rows}
        medians = runs.medians(
            session, list(fields), {*fields.values(), *(MetricField(f.name) for f in fields.values())}
        )
    for run_id, field in fields.items():
        assert medians[run_id, MetricField(field.name)] == medians[run_id, field]
