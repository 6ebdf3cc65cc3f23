"""Form fields that take several values, and the parsing of what people type into them.

What is typed is only ever parsed as numbers or words, never evaluated. Bounds are checked by the spec.
"""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

MAX_VALUES = 20
_LARGEST = 2**63


class FieldError(ValueError):
    """What was typed cannot be read; the text is one sentence that names the field."""


def parse_numbers(label: str, text: str, *, whole: bool) -> list[int | float]:
    """Numbers separated by commas or spaces, without repetition, in the order given; empty for empty text.

    Raises:
        FieldError: one sentence naming the first word that is no such number.
    """
    values: list[int | float] = []
    for word in text.replace(",", " ").replace(";", " ").split():
        try:
            value: int | float = int(word) if whole else float(word)
        except ValueError:
            kind = "a whole number" if whole else "a number"
            raise FieldError(f"{label}: {word[:40]!r} is not {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldError(f"{label}: must be finite, not {word[:40]}")
        if abs(value) > _LARGEST:
            raise FieldError(f"{label}: {word[:40]} is more than any field takes")
        if value not in values:
            values.append(value)
    if len(values) > MAX_VALUES:
        raise FieldError(f"{label}: at most {MAX_VALUES} values make a sweep, not {len(values)}")
    return values


def parse_list(label: str, text: str, *, whole: bool) -> list[Any] | None:
    """One list of whole numbers or words separated by commas; None for empty text."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return None
    return list(parse_numbers(label, text, whole=True)) if whole else words


def numbers(
    label: str, default: str, *, whole: bool, key: str, help: str | None = None, placeholder: str = "PEFT's default"
) -> list[int | float]:
    """A text field for one or more numbers; empty text is no number.

    Raises:
        FieldError: when what was typed cannot be read.
    """
    st.session_state.setdefault(key, default)
    text = st.text_input(label, key=key, help=help, persist_state="session", placeholder=placeholder)
    return parse_numbers(label, text, whole=whole)


def chips(label: str, options: list[Any], default: list[Any], *, key: str, **kwargs: Any) -> list[Any]:
    """Chips of which several may be on; the page keeps them while other pages are open."""
    if key not in st.session_state:
        st.session_state[key] = default
    else:
        # Options change with the model and the machine; a chip that is gone cannot stay chosen.
        st.session_state[key] = [value for value in st.session_state[key] if value in options]
    return list(st.pills(label, options, selection_mode="multi", key=key, persist_state="session", **kwargs))
