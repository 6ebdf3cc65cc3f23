"""The grammar of filter expressions, and how what it reads becomes a condition on known fields."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

from app import formatting
from app.filtering.errors import FilterError
from app.filtering.fields import Known, KnownField, aliases
from app.filtering.values import UNITS, number, period
from db.conditions import And, Compare, Condition, EnvironmentField, MetricField, Not, Operator, Or

MAX_CHARACTERS = 2000
MAX_DEPTH = 20
MAX_VALUES = 200
MAX_METRICS = 8

# The lexer only tries what may come next, so a word is a field before an operator and a value after it.
_GRAMMAR = rf"""
start: any
any: all (_OR all)*
all: one (_AND one)*
?one: comparison | negated | "(" any ")"
negated: NOT one
comparison: FIELD OPERATOR value -> compared
          | FIELD [NOT] IN "(" value ("," value)* ")" -> listed
value: QUOTED | WORD UNIT?

_AND.3: /and(?![^\s()=!<>~,"'])/i
_OR.3: /or(?![^\s()=!<>~,"'])/i
NOT.3: /not(?![^\s()=!<>~,"'])/i
IN.3: /in(?![^\s()=!<>~,"'])/i
OPERATOR: "==" | "!=" | "<=" | ">=" | "=" | "<" | ">" | "~"
QUOTED: /"[^"]*"/ | /'[^']*'/
UNIT.3: /({"|".join(UNITS)})(?![^\s()=!<>~,"'])/
FIELD: /(?!(and|or|not|in)(?![^\s()=!<>~,"']))[^\s()=!<>~,"']+/i
WORD: /(?!(and|or|not|in)(?![^\s()=!<>~,"']))[^\s()=!<>~,"']+/i
%ignore /\s+/
"""


@dataclass(frozen=True, slots=True)
class _Value:
    """A value as typed: its text, where it starts, and whether it was in quotes and so is text in any case."""

    text: str
    position: int
    is_quoted: bool


@dataclass(frozen=True, slots=True)
class _Comparison:
    field: Token
    operator: str
    values: tuple[_Value, ...]
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class _Group:
    """``and``, ``or`` or ``not`` of other parts, and how deep that goes."""

    word: str
    parts: tuple[_Part, ...]
    depth: int


_Part = _Comparison | _Group


def parse(text: str, known: Known, zone: tzinfo | None = None) -> Condition | None:
    """The condition that an expression stands for, None for an empty one.

    Args:
        known: the fields there are.
        zone: the time zone in which days and minutes are meant, by default this machine's.

    Raises:
        FilterError: one sentence, and the position of the character at fault.
    """
    _check_characters(text)
    if not text.strip():
        return None
    try:
        part: Any = _parser().parse(text)
    except (UnexpectedToken, UnexpectedCharacters, UnexpectedEOF) as error:
        raise _syntax_error(text, error) from None
    comparisons = list(_comparisons(part))
    if sum(len(comparison.values) for comparison in comparisons) > MAX_VALUES:
        raise FilterError(
            f"A filter may compare with at most {MAX_VALUES} values.", comparisons[-1].field.start_pos or 0
        )
    metrics: set[MetricField] = set()
    for comparison in comparisons:
        entry = _field(comparison.field, known)
        if isinstance(entry.field, MetricField):
            metrics.add(entry.field)
        if len(metrics) > MAX_METRICS:
            raise FilterError(f"A filter may name at most {MAX_METRICS} metrics.", _position(comparison))
    return _condition(part, known, zone)


@functools.cache
def _parser() -> Lark:
    # Built while it parses, without recursion: an expression of a thousand parentheses is no danger.
    return Lark(_GRAMMAR, parser="lalr", transformer=_Build(), propagate_positions=False)


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    def start(self, part: _Part) -> _Part:
        return part

    def any(self, *parts: _Part) -> _Part:
        return _group("or", parts)

    def all(self, *parts: _Part) -> _Part:
        return _group("and", parts)

    def negated(self, word: Token, part: _Part) -> _Part:
        return _Group("not", (part,), _deeper((part,), word.start_pos or 0))

    def compared(self, field: Token, operator: Token, value: _Value) -> _Part:
        return _Comparison(field, "=" if operator == "==" else str(operator), (value,))

    def listed(self, field: Token, negated: Token | None, _in: Token, *values: _Value) -> _Part:
        return _Comparison(field, "=", values, is_negated=negated is not None)

    def value(self, word: Token, unit: Token | None = None) -> _Value:
        position = word.start_pos or 0
        if word.type == "QUOTED":
            return _Value(str(word)[1:-1], position, True)
        return _Value(f"{word} {unit}" if unit else str(word), position, False)


def _group(word: str, parts: tuple[_Part, ...]) -> _Part:
    return parts[0] if len(parts) == 1 else _Group(word, parts, _deeper(parts, _position(parts[0])))


def _deeper(parts: Sequence[_Part], position: int) -> int:
    depth = 1 + max(part.depth if isinstance(part, _Group) else 0 for part in parts)
    if depth > MAX_DEPTH:
        raise FilterError(f"A filter may nest at most {MAX_DEPTH} levels deep.", position)
    return depth


def _position(part: _Part) -> int:
    while isinstance(part, _Group):
        part = part.parts[0]
    return part.field.start_pos or 0


def _comparisons(part: _Part) -> list[_Comparison]:
    if isinstance(part, _Comparison):
        return [part]
    return [comparison for inner in part.parts for comparison in _comparisons(inner)]


def _condition(part: _Part, known: Known, zone: tzinfo | None) -> Condition:
    if isinstance(part, _Group):
        parts = tuple(_condition(inner, known, zone) for inner in part.parts)
        return Not(parts[0]) if part.word == "not" else And(parts) if part.word == "and" else Or(parts)
    entry = _field(part.field, known)
    found = tuple(_compare(entry, part.operator, value, zone) for value in part.values)
    condition = found[0] if len(found) == 1 else Or(found)
    return Not(condition) if part.is_negated else condition


def _field(word: Token, known: Known) -> KnownField:
    entry = known.find(word)
    if entry is None:
        nearest = known.nearest(word)
        meant = f"did you mean {_either(nearest)}?" if nearest else "the help beside the filter lists the fields."
        raise FilterError(f"{_short(word)} is no field; {meant}", word.start_pos or 0)
    return entry


def _compare(entry: KnownField, operator: Any, value: _Value, zone: tzinfo | None) -> Condition:
    try:
        return _readable(entry, operator, value, zone)
    except ValueError as error:
        raise FilterError(formatting.sentence(f"{entry.name} {error}"), value.position) from None


def _readable(entry: KnownField, operator: Operator, value: _Value, zone: tzinfo | None) -> Condition:
    """One comparison as a condition. Raises ``ValueError`` with the rest of a sentence."""
    if not value.is_quoted and value.text.casefold() in ("null", "none"):
        if operator not in ("=", "!="):
            raise ValueError(f"is compared with {value.text} by = or != only")
        return Compare(entry.field, operator, None)
    is_ordering = operator in ("<", "<=", ">", ">=")
    if entry.reads == "moment":
        return _moment(entry, operator, *period(value.text, zone))
    if entry.reads == "number":
        if operator == "~":
            raise ValueError("is a number: compare it with =, !=, <, <=, > or >=")
        return Compare(entry.field, operator, number(value.text, entry.dimension))
    if entry.reads == "text" and is_ordering:
        raise ValueError("is text: compare it with =, != or ~")
    if entry.reads == "text":
        return _text(entry, operator, value.text)
    if is_ordering and isinstance(entry.field, EnvironmentField) and entry.field.path[0] == "packages":
        raise ValueError("is a version: compare it with =, != or ~")
    if is_ordering:
        return Compare(entry.field, operator, number(value.text, entry.dimension))
    return _json(entry, operator, value)


def _text(entry: KnownField, operator: Operator, text: str) -> Condition:
    if operator == "~":
        return Compare(entry.field, operator, text)
    found = tuple(Compare(entry.field, "=", value) for value in aliases(entry.name, text))
    condition = found[0] if len(found) == 1 else Or(found)
    return condition if operator == "=" else Not(condition)


def _json(entry: KnownField, operator: Operator, value: _Value) -> Condition:
    """JSON holds numbers and texts: what reads as a number is looked for as both, unless it is in quotes."""
    text = Compare(entry.field, "~" if operator == "~" else "=", value.text)
    condition: Condition = text
    if operator != "~" and not value.is_quoted:
        try:
            condition = Or((Compare(entry.field, "=", number(value.text, entry.dimension)), text))
        except ValueError:
            condition = text
    return Not(condition) if operator == "!=" else condition


def _moment(entry: KnownField, operator: Operator, start: float, end: float) -> Condition:
    """A day is from its start to its end: after a day is after its end, on a day is between the two."""
    if operator == "~":
        raise ValueError("is a moment: compare it with =, !=, <, <=, > or >=")
    within = And((Compare(entry.field, ">=", start), Compare(entry.field, "<", end)))
    found: dict[Operator, Condition] = {
        "=": within,
        "!=": Not(within),
        "<": Compare(entry.field, "<", start),
        "<=": Compare(entry.field, "<", end),
        ">": Compare(entry.field, ">=", end),
        ">=": Compare(entry.field, ">=", start),
    }
    return found[operator]


def _check_characters(text: str) -> None:
    for position, character in enumerate(text[:MAX_CHARACTERS]):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise FilterError(f"A filter cannot hold the character U+{ord(character):04X}.", position)
    if len(text) > MAX_CHARACTERS:
        raise FilterError(f"A filter may have at most {MAX_CHARACTERS} characters, not {len(text)}.", MAX_CHARACTERS)


def _syntax_error(text: str, error: UnexpectedToken | UnexpectedCharacters | UnexpectedEOF) -> FilterError:
    """What was expected where the expression cannot be read on."""
    if isinstance(error, UnexpectedCharacters):
        position, expected = error.pos_in_stream or 0, set(error.allowed or ())
    elif isinstance(error, UnexpectedToken):
        is_at_end = error.token.type == "$END"
        position = len(text.rstrip()) if is_at_end else error.token.start_pos or 0
        expected = set(error.accepts or error.expected)
    else:
        position, expected = len(text.rstrip()), set(error.expected)
    if text[position : position + 1] in ('"', "'") and "QUOTED" in expected:
        return FilterError("This quotation mark is never closed.", position)
    if "QUOTED" in expected:
        return FilterError("A value is expected here; text with spaces goes in quotes.", position)
    if "OPERATOR" in expected:
        return FilterError("An operator is expected here: =, !=, <, <=, >, >=, ~ or in (…).", position)
    if "FIELD" in expected:
        return FilterError("A field is expected here, such as state, train.context_length or step_time_s.", position)
    if "LPAR" in expected or "IN" in expected:
        return FilterError("A list in parentheses is expected here: in (lora, dora).", position)
    if position >= len(text.rstrip()):
        return FilterError("A closing parenthesis is missing here.", position)
    if text[position] == ")":
        return FilterError("This parenthesis closes nothing.", position)
    if "COMMA" in expected and "_AND" not in expected:
        return FilterError("A comma or a closing parenthesis is expected here.", position)
    return FilterError("AND or OR is expected here.", position)


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
