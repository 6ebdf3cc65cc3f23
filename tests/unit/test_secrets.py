"""Secrets are hidden in what is written, and nothing else is."""

from __future__ import annotations

import io
import traceback

import pytest

from engine.measure.environment import environment
from engine.secrets import masked, masking

TOKEN = "kept-by-nobody-else-4711"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", TOKEN)
    monkeypatch.setenv("OTHER_TOKEN", f"{TOKEN}-and-more")
    monkeypatch.setenv("aws_secret_access_key", "a+b/c=d\\e.f*g")
    monkeypatch.setenv("SHORT_TOKEN", "1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for {TOKEN}.", "401 for ***."),
        (f"{TOKEN}-and-more", "***"),
        ("key=a+b/c=d\\e.f*g;", "key=***;"),
        (
            "postgresql+psycopg://lab:pa@ss:w?rd@db.example.org:5432/lab",
            "postgresql+psycopg://lab:***@db.example.org:5432/lab",
        ),
        ("https://:onlypassword@host/x", "https://:***@host/x"),
        ("'https://me:it@is@host/x' and b", "'https://me:***@host/x' and b"),
        ("Authorization: Bearer eyJhbGciOi.J9-_~+/=", "Authorization: Bearer ***"),
        ("token hf_AbCdEfGhIjKlMnOpQrSt is not valid", "token *** is not valid"),
        ("1 of 1 tokens at http://127.0.0.1:8501/run?id=1", "1 of 1 tokens at http://127.0.0.1:8501/run?id=1"),
        ("12:30:01 engine: owner@host, a://b, hf_short", "12:30:01 engine: owner@host, a://b, hf_short"),
    ],
)
def test_secrets_are_hidden_and_the_rest_stays(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_what_is_printed_and_raised_is_written_without_them() -> None:
    written = io.StringIO()
    stream = masking(written)
    print("token", TOKEN, file=stream)
    stream.writelines([f"one {TOKEN}\n", "two\n"])
    try:
        raise ValueError(f"no {TOKEN} here")
    except ValueError:
        traceback.print_exc(file=stream)
    assert TOKEN not in written.getvalue()
    assert written.getvalue().startswith("token ***\none ***\ntwo\n")
    assert "ValueError: no *** here" in written.getvalue()
    assert masking(stream) is stream


def test_the_environment_of_a_result_names_settings_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_REGISTRY_PASSWORD", "short")
    monkeypatch.setenv("CUDA_CACHE_PATH", f"/cache/{TOKEN}")
    monkeypatch.setenv("OMP_SCHEDULE", "static")
    variables = environment()["variables"]
    assert variables["CUDA_REGISTRY_PASSWORD"] == "***"
    assert variables["CUDA_CACHE_PATH"] == "/cache/***"
    assert variables["OMP_SCHEDULE"] == "static"
    assert "MY_SERVICE_TOKEN" not in variables
