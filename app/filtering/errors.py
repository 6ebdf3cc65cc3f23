"""What is wrong with a filter expression, where, and how that is shown."""

from __future__ import annotations

import unicodedata

_SHOWN_AROUND = 48


class FilterError(ValueError):
    """A filter that cannot be used: one sentence, and the position of the character at fault (from 0)."""

    def __init__(self, sentence: str, position: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.position = position


def pointed(text: str, position: int) -> str:
    """The expression on one line, of a long one the part around the position, and a caret under the character."""
    start = max(position - _SHOWN_AROUND, 0)
    end = position + _SHOWN_AROUND
    before = ("…" if start else "") + _printable(text[start:position])
    after = _printable(text[position:end]) + ("…" if end < len(text) else "")
    return f"{before}{after}\n{' ' * _width(before)}^"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _width(text: str) -> int:
    """Columns in a font of one width: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
