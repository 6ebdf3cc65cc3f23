"""Keeps secrets out of what a process writes: logs, errors and results.

Secrets are the values of environment variables whose names say so, passwords in addresses, and tokens of the hub. What
a person typed into a spec or a note is not changed: it is stored as it is.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from typing import TextIO, cast

MASK = "***"
_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE
)
# Shorter values are switches and numbers, which would be hidden wherever they occur.
_LEAST_CHARACTERS = 8
_IN_ADDRESS = re.compile(r"(://[^\s/@:'\"]*:)[^\s/'\"]+@")
_OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_IN_HEADER = re.compile(r"(\bBearer )[\w.~+/=-]+", re.IGNORECASE)


def masked(text: str) -> str:
    """The text with ``***`` in place of every secret in it."""
    expression = _known(tuple(value for name, value in os.environ.items() if _NAMES.search(name)))
    if expression is not None:
        text = expression.sub(MASK, text)
    text = _IN_ADDRESS.sub(rf"\1{MASK}@", text)
    text = _IN_HEADER.sub(rf"\1{MASK}", text)
    return _OF_THE_HUB.sub(MASK, text)


def masked_value(name: str, value: str) -> str:
    """The value of an environment variable without secrets; nothing is left of it where the name says it is one."""
    return MASK if _NAMES.search(name) else masked(value)


def masking(stream: TextIO) -> TextIO:
    """A stream that writes to another one what is left of each text when its secrets are hidden."""
    return cast(TextIO, stream if isinstance(stream, _Masking) else _Masking(stream))


class _Masking:
    """Whatever else is asked of the stream is the other one's to answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without its secrets; its own length is returned, as callers expect."""
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@functools.lru_cache(maxsize=4)
def _known(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds each of these values, the longest first: one may be a part of another."""
    long = sorted({value for value in values if len(value) >= _LEAST_CHARACTERS}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, long))) if long else None
