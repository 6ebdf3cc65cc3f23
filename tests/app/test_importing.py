"""The import dialog: what becomes of each file, said in one sentence."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets.importing import Outcome, outcome_text
from db import runs
from db.session import Database
from engine.spec import parse_spec, spec_hash
from tests.app import stored


def _page() -> None:
    from app.widgets import importing

    importing.import_dialog()


@pytest.fixture
def dialog(database: Database) -> AppTest:
    return AppTest.from_function(_page, default_timeout=30)


def document(seed: int = 0, **changes: Any) -> dict[str, Any]:
    spec = parse_spec(stored.init_document(seed=seed))
    return {"spec": spec.model_dump(mode="json"), "spec_hash": spec_hash(spec), **stored.result([1.0]), **changes}


def upload(dialog: AppTest, *files: tuple[str, bytes]) -> list[str]:
    """Drop these files on the dialog; returns what it says of each."""
    dialog.run()
    dialog.file_uploader[0].set_value([(name, data, "application/json") for name, data in files]).run()
    assert not dialog.exception, dialog.exception
    return [alert.value for alert in [*dialog.error, *dialog.success]]


def count(database: Database) -> int:
    with database.reading() as session:
        return len(runs.list_runs(session))


def test_every_file_gets_its_own_sentence_and_a_bad_one_does_not_keep_a_good_one_out(
    dialog: AppTest, database: Database
) -> None:
    good = gzip.compress(json.dumps([document(seed) for seed in range(3)]).encode())
    bad = json.dumps([document(7), document(8, state="running")]).encode()
    assert upload(dialog, ("bad.json", bad), ("good.json.gz", good)) == [
        "**bad\\.json**: document 2\\: state\\: must be one of succeeded, failed, out\\_of\\_memory, cancelled, "
        "timed\\_out, lost, not 'running'\\.",
        "**good\\.json\\.gz**: 3 runs imported\\.",
    ]
    assert count(database) == 3
    assert "Show them" in [button.label for button in dialog.button]


def test_the_dialog_stores_a_file_once_however_often_it_runs(dialog: AppTest, database: Database) -> None:
    upload(dialog, ("one.json", json.dumps(document()).encode()))
    dialog.run()
    assert [alert.value for alert in dialog.success] == ["**one\\.json**: 1 run imported\\."]
    assert count(database) == 1


def test_the_name_of_a_file_is_shown_as_text(dialog: AppTest) -> None:
    (said,) = upload(dialog, ("<img src=x onerror=alert(1)>[a](javascript:alert(2)).json", b"{}"))
    assert "\\<img src\\=x onerror\\=alert\\(1\\)\\>\\[a\\]\\(javascript\\:" in said


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (Outcome(new=1), "1 run imported."),
        (Outcome(new=2, known=1), "2 runs imported, 1 was here already."),
        (Outcome(known=3), "Nothing new: all of its 3 runs were here already."),
        (Outcome(known=1), "Nothing new: its run was here already."),
        (Outcome(refusal="is empty"), "is empty."),
    ],
)
def test_what_became_of_a_file_is_one_sentence(outcome: Outcome, sentence: str) -> None:
    assert outcome_text(outcome) == sentence
