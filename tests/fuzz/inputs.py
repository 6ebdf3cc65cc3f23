"""What the parsers are given: valid documents with a few things changed in them, and texts made of their own words.

Everything is drawn by hypothesis from a fixed seed, so each run of the tests tries the same inputs.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLOWEST_S = 1.0
"""No input may take a parser longer than this."""
LONGEST_SENTENCE = 1000

INPUTS = {
    "spec": 4500,
    "spec as text": 1500,
    "what a machine says of a spec": 1000,
    "filter": 6000,
    "filter over stored runs": 700,
    "import": 2000,
    "bytes of an import": 1500,
    "model folder": 500,
    "safetensors header": 800,
    "run ids in an address": 1500,
    "numbers in a field": 1500,
}
"""How many inputs each test tries."""

_NASTY_TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "a\nb",
    "\ud800",
    "\u202e",
    "é" * 300,
    "x" * 6000,
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "~root",
    "~nobody-of-this-name",
    ".",
    "file:///etc/passwd",
    "https://user:secret@host/x",
    "owner/name",
    "owner/--name",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "${HOME}",
    "%s%n",
    "'; DROP TABLE runs; --",
    "__class__",
    "(a+)+$",
    "(((((a*)*)*)*)*)*b",
    "(?P<x>a)(?P=x)",
    "[",
    "\\",
    ".*",
    "a{1,65535}{1,65535}",
    "lora",
    "cuda:999",
    "null",
    "NaN",
    "1e999",
)
_NASTY_NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, -0.0)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NASTY_NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(_NASTY_TEXTS),
    st.text(max_size=12),
)
_SHORT = st.lists(_SCALARS, max_size=3)
ANYTHING = st.one_of(
    _SCALARS,
    _SCALARS,
    _SHORT,
    st.dictionaries(st.text(max_size=6), _SCALARS, max_size=3),
    st.just({}),
    st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.sampled_from((2, 30, 200))),
    st.builds(lambda depth: json.loads('{"a":' * depth + "1" + "}" * depth), st.sampled_from((2, 30, 200))),
)
"""Values of every JSON type, the awkward ones of each more often than others."""


def changed(documents: list[Any]) -> st.SearchStrategy[Any]:
    """One of the documents with one to four values replaced, removed or put under another name, anywhere in it."""
    paths = [(document, sorted(_paths(document), key=str)) for document in documents]
    changes = st.lists(
        st.tuples(st.integers(0, 2**16), st.sampled_from(("replace", "replace", "remove", "add")), ANYTHING),
        min_size=1,
        max_size=4,
    )
    return st.builds(_with_changes, st.sampled_from(paths), changes)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in _paths(item, (*path, key)))]


def _with_changes(chosen: tuple[Any, list[tuple[Any, ...]]], changes: list[tuple[int, str, Any]]) -> Any:
    document, paths = copy.deepcopy(chosen[0]), chosen[1]
    for number, what, drawn in changes:
        path, value = paths[number % len(paths)], copy.deepcopy(drawn)
        if not path:
            if number % 7 == 0 and what == "replace":
                document = value
            continue
        parent = document
        for key in path[:-1]:
            parent = _child(parent, key)
        if isinstance(parent, dict):
            if what == "remove":
                parent.pop(path[-1], None)
            else:
                parent[path[-1] if what == "replace" else str(value)[:20]] = value
        elif isinstance(parent, list):
            if what == "remove":
                del parent[:1]
            else:
                parent[: 1 if what == "replace" else 0] = [value]
    return document


def _child(parent: Any, key: Any) -> Any:
    if isinstance(parent, dict):
        return parent.get(key)
    return parent[key] if isinstance(parent, list) and isinstance(key, int) and key < len(parent) else None


def damaged(texts: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the texts cut off, or with a few bytes replaced, doubled or taken out."""
    edits = st.lists(
        st.tuples(st.integers(0, 2**20), st.integers(0, 12), st.one_of(st.binary(max_size=6), _PIECES)), max_size=4
    )
    return st.builds(_edited, st.sampled_from(texts), edits, st.one_of(st.none(), st.none(), st.integers(0, 2**20)))


_PIECES = st.sampled_from(
    [*(bytes([byte]) for byte in b'{}[]",:\\-'), b"\\u", b"\\ud800", b"1e9", b"NaN", b"9" * 5000, b"[" * 3000]
)


def _edited(text: bytes, edits: list[tuple[int, int, bytes]], end: int | None) -> bytes:
    for place, length, piece in edits:
        start = place % (len(text) + 1)
        text = text[:start] + piece + text[start + length :]
    return text if end is None else text[: end % (len(text) + 1)]


def words_of(words: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Texts of a language's own words in any order, with others between."""
    word = st.one_of(st.sampled_from(words), st.sampled_from(words), st.sampled_from(_NASTY_TEXTS), st.text(max_size=5))
    return st.one_of(
        st.lists(word, max_size=12).map(" ".join), st.lists(word, max_size=8).map("".join), st.text(max_size=40)
    )


def is_readable(_value: Any, refusal: Exception) -> bool:
    """Whether a refusal is one line that can be read."""
    return str(refusal).isprintable()


def try_all(
    name: str,
    drawn: st.SearchStrategy[Any],
    parse: Callable[[Any], object],
    *refusals: type[Exception],
    is_fit: Callable[[Any, Any], bool] = is_readable,
) -> None:
    """Give a parser as many inputs as ``INPUTS`` says: each is taken, or refused with one sentence, within a second.

    Args:
        refusals: what the parser may raise; anything else is a traceback somebody would see.
        is_fit: whether a refusal of an input says what it should.
    """
    tried = 0

    @settings(
        max_examples=INPUTS[name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def one(value: Any) -> None:
        nonlocal tried
        tried += 1
        refusal, took_s = _refusal(parse, value, refusals)
        if took_s > SLOWEST_S:
            # The machine may have been busy with something else; an input that is slow is slow again.
            refusal, took_s = _refusal(parse, value, refusals)
        assert took_s <= SLOWEST_S, f"{took_s:.1f} s"
        if refusal is not None:
            assert 0 < len(str(refusal)) <= LONGEST_SENTENCE, refusal
            assert is_fit(value, refusal), refusal

    one()
    assert tried >= INPUTS[name], f"only {tried} inputs of {name}"


def _refusal(
    parse: Callable[[Any], object], value: Any, refusals: tuple[type[Exception], ...]
) -> tuple[Exception | None, float]:
    start_s = time.perf_counter()
    try:
        parse(value)
    except refusals as error:
        return error, time.perf_counter() - start_s
    return None, time.perf_counter() - start_s
