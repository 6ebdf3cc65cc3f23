"""Sentences that quote what somebody typed or a file holds: always one readable line of bounded length."""

from __future__ import annotations

LONGEST = 800
"""Characters of a sentence with what it quotes."""


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text on one line, cut where it is longer; what cannot be seen or would turn the line around is marked."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
