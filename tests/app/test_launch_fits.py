"""What Launch says before anything runs: the predicted peak of every run, and whether it fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app import state
from app.widgets import fits
from app.widgets.predictions import Predicted
from db import runs
from db.session import Database
from engine.catalog import fitting
from engine.result import Device
from engine.spec import Measured, parse_spec, spec_hash
from tests.app import predicted, stored
from tests.app.reading import words

Open = Callable[..., AppTest]
GIB = 2**30
CPU = Device("cpu", "cpu", "Test CPU", 16 * GIB, ("bfloat16",))
GPU = Device("cuda:0", "cuda", "Test GPU", 8 * GIB, ("bfloat16",))


def preview(app: AppTest) -> pd.DataFrame:
    return next(table.value for table in app.dataframe if "Expected" in table.value)


def choose(app: AppTest, key: str, values: list[Any]) -> AppTest:
    app.get_by_key(key).set_value(values).run()
    assert not app.exception, app.exception
    return app


@pytest.fixture
def lora_and_dora(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AppTest]:
    """The page with LoRA and DoRA on the smallest model, on a machine with 10 GiB free."""
    monkeypatch.setattr(state, "free_memory_bytes", lambda: 10 * GIB)

    def open_() -> AppTest:
        app = open_page("launch", kind="train")
        app.text_input(key="launch_train_context_length").set_value("64").run()
        choose(app, "launch_models", ["tiny-test"])
        return choose(app, "launch_adapters", ["lora", "dora"])

    return open_


def specs(app: AppTest, database: Database) -> list[dict[str, Any]]:
    """What the page would launch, from what it queues."""
    app.button(key="launch_button").click().run()
    with database.reading() as session:
        return [row.spec for row in runs.queued_and_running(session) if row.kind == "train"]


def asked(database: Database) -> list[str]:
    """The adapters that predictions are under way for, one per spec, in the order of the alphabet."""
    with database.reading() as session:
        rows = [row for row in runs.queued_and_running(session) if row.kind == "predict"]
    adapters = [spec["adapter"] for row in rows for spec in row.spec["of"]]
    return sorted("full" if one is None else "dora" if one["options"].get("use_dora") else "lora" for one in adapters)


def test_the_page_asks_for_what_it_shows_and_takes_back_what_it_shows_no_more(
    lora_and_dora: Callable[[], AppTest], database: Database
) -> None:
    app = lora_and_dora()
    before = asked(database)
    assert {"dora", "lora"} <= set(before)
    assert list(preview(app)[fits.PEAK]) == [fits.WAITING] * 2
    app.run()
    assert asked(database) == before, "nothing is asked for twice"
    choose(app, "launch_models", ["minimind-26m"])
    with database.reading() as session:
        models = {row.model for row in runs.queued_and_running(session)}
    assert models == {"minimind-26m"}


def test_every_run_has_its_peak_and_whether_it_fits(lora_and_dora: Callable[[], AppTest], database: Database) -> None:
    lora, dora = specs(lora_and_dora(), database)
    predicted.store(database, lora, {"peak_bytes": 2.0 * GIB})
    predicted.store(database, dora, {"peak_bytes": 12.0 * GIB})
    app = lora_and_dora()
    table = preview(app)
    assert list(table[fits.PEAK]) == ["2.00 GiB", "12.0 GiB"]
    assert [list(word) for word in table[fits.FITS]] == [["fits"], ["will not fit"]]
    assert "1 run will not fit" in app.warning[0].value
    assert "10.0 GiB are free" in app.warning[0].value.replace("\\", "")
    assert app.button(key="launch_button").label == "Launch 2 runs", "it warns, and keeps nobody from trying"


def test_what_cannot_be_predicted_says_why(lora_and_dora: Callable[[], AppTest], database: Database) -> None:
    lora, dora = specs(lora_and_dora(), database)
    predicted.store(database, lora, {"peak_bytes": 2.0 * GIB})
    predicted.refuse(database, dora, "strategy: must be <b>stock</b>")
    app = lora_and_dora()
    assert list(preview(app)[fits.PEAK]) == ["2.00 GiB", "–"]
    assert "1 run not predicted: strategy: must be" in words(app).replace("\\", "")
    assert "<b>" not in words(app)


def test_a_combination_that_cannot_run_is_not_predicted(open_page: Open, database: Database) -> None:
    app = choose(open_page("launch"), "launch_models", ["tiny-test"])
    choose(app, "launch_strategies_init", ["zero_b_norm"])
    table = preview(app).set_index("Adapter")
    assert table.loc["LoRA", "Problem"]
    assert table.loc["LoRA", fits.PEAK] == "–"
    assert asked(database) == ["dora"]


def spec(**fields: Any) -> Measured:
    found = parse_spec(stored.document("train", "tiny-test", **fields))
    assert isinstance(found, Measured)
    return found


def of_peak(peak_bytes: float, wanted: Measured, **more: Any) -> Predicted:
    return Predicted(spec_hash(wanted), metrics={("peak_bytes", None): peak_bytes, **more.pop("metrics", {})}, **more)


def test_on_a_cpu_the_process_around_the_tensors_counts_and_the_runs_own_limit_holds() -> None:
    wanted = spec(memory_limit_bytes=4 * GIB)
    fit = fits.of(wanted, of_peak(4 * GIB, wanted), [CPU], 10 * GIB)
    assert fit is not None
    assert fit.needed_bytes == fitting.process_bytes(4 * GIB) > 4 * GIB
    assert (fit.memory_bytes, fit.word) == (4 * GIB, "will not fit")


def test_on_a_gpu_all_that_it_keeps_counts_against_all_that_it_has() -> None:
    wanted = spec(device="cuda:0")
    terms = ({"name": "tensors", "bytes": 6 * GIB}, {"name": "context", "bytes": GIB})
    fit = fits.of(wanted, of_peak(5 * GIB, wanted, device_terms=terms), [CPU, GPU], 1)
    assert fit is not None
    assert (fit.needed_bytes, fit.memory_bytes, fit.word) == (7 * GIB, 8 * GIB, "fits")
    assert fits.of(wanted, of_peak(5 * GIB, wanted), [CPU], 1) is None, "a device that is not here"


def test_without_a_prediction_nothing_is_said() -> None:
    wanted = spec()
    assert fits.of(wanted, None, [CPU], GIB) is None
    assert fits.of(wanted, Predicted(spec_hash(wanted), error="no"), [CPU], GIB) is None
    assert fits.sentences([wanted], {}, lambda spec: ([CPU], GIB)) == (None, [])
