"""Predictions are kept under their keys and found again, sentences too."""

from __future__ import annotations

import time
from typing import Any

from db import predictions
from db.session import Database

COURSE = [{"number": 0, "part": "forward", "bytes": {"parameters": 7}}]


def entry(key: str, peak: float | None = 1.0, error: str | None = None, **more: Any) -> dict[str, Any]:
    metrics = [] if peak is None else [{"name": "peak_bytes", "value": peak}]
    problem = None if error is None else {"field": "device", "text": error}
    return {"key": key, "spec_hash": f"hash of {key}", "error": problem, "metrics": metrics, **more}


def store(database: Database, *entries: dict[str, Any], card: str | None = None) -> tuple[str, ...]:
    with database.writing() as session:
        return predictions.store(session, entries, card)


def find(database: Database, *keys: str, with_course: bool = False) -> dict[str, dict[str, Any]]:
    with database.reading() as session:
        return predictions.find(session, keys, with_course=with_course)


def test_what_was_stored_is_found_by_its_key(database: Database) -> None:
    assert store(database, entry("a", 5.0), entry("b")) == ("a", "b")
    found = find(database, "a", "never")
    assert time.time() - found["a"].pop("created_at") < 60
    assert found == {"a": entry("a", 5.0)}


def test_a_sentence_is_stored_like_a_prediction(database: Database) -> None:
    store(database, entry("a", None, "must be cpu to be predicted"))
    assert find(database, "a")["a"]["error"]["text"] == "must be cpu to be predicted"


def test_a_later_prediction_takes_the_place_of_an_earlier_one(database: Database) -> None:
    store(database, entry("a", 1.0))
    store(database, entry("a", 2.0), entry("a", 3.0))
    assert find(database, "a")["a"]["metrics"][0]["value"] == 3.0


def test_the_course_is_read_only_where_it_is_asked_for(database: Database) -> None:
    store(database, entry("a", course=COURSE))
    assert "course" not in find(database, "a")["a"]
    assert find(database, "a", with_course=True)["a"]["course"] == COURSE


def test_entries_without_a_key_are_left_out(database: Database) -> None:
    without = {name: value for name, value in entry("a").items() if name != "key"}
    assert store(database, without) == ()


def test_more_keys_than_one_statement_takes_are_found(database: Database) -> None:
    keys = [f"{number:05d}" for number in range(1200)]
    store(database, *map(entry, keys), card="h100-80gb")
    assert set(find(database, *keys)) == set(keys)
