"""Result documents out of a file's bytes: JSON, as it is or packed with gzip, one document or a list of them.

Unpacks and decodes a piece at a time, so that neither a file of thousands of runs nor one made to fill the memory takes
more than one document's worth of it. Knows files only: what a document must hold is in ``db.documents``.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 2**20
_LARGEST_DOCUMENT_BYTES = 64 * 2**20
_SPACE = re.compile(r"[ \t\r\n]+")
# What may be left of a value that the end of the text cuts in two: nothing, a number, an escape or a word.
_CUT = re.compile(r"\s*(?:-?[\d.]*(?:[eE][+-]?\d*)?|\\?u[0-9a-fA-F]{0,4}|[a-zI-]\w{0,8})\s*\Z")


class FileRefused(ValueError):
    """A file that holds no documents that can be read. The text is one sentence without the file's name."""


def documents(data: bytes, largest_bytes: int) -> Iterator[tuple[Any, bool]]:
    """Each document in the file, and whether it stands alone and not in a list.

    Raises:
        FileRefused: when the file holds more than ``largest_bytes``, is damaged, no JSON or cut off.
    """
    text = _Text(_pieces(data, largest_bytes))
    first = text.peek()
    if not first:
        raise FileRefused("is empty")
    is_alone = first != "["
    if not is_alone:
        text.skip()
        if text.peek() == "]":
            raise FileRefused("holds no runs")
    while True:
        yield text.document(), is_alone
        if is_alone:
            break
        following = text.peek()
        if not following:
            raise FileRefused("is cut off; export or copy it again")
        if following not in ",]":
            raise FileRefused("is not valid JSON")
        text.skip()
        if following == "]":
            break
    if text.peek():
        raise FileRefused("is not valid JSON: something follows its end")


class _Text:
    """The text that is not read yet; as little of it as one document needs is in memory."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._position = 0

    def peek(self) -> str:
        """The next character that is no white space, empty at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._grow():
                return ""

    def skip(self) -> None:
        """Go past the character that was peeked at."""
        self._position += 1

    def document(self) -> Any:
        """The JSON value that starts here."""
        if not self.peek():
            raise FileRefused("is cut off; export or copy it again")
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._buffer, self._position)
                return value
            except RecursionError:
                raise FileRefused("is no list of results: its JSON is nested too deep") from None
            except json.JSONDecodeError as error:
                if not self._is_cut(error):
                    raise FileRefused("is not valid JSON") from None
                if not self._grow():
                    raise FileRefused("is cut off; export or copy it again") from None
            except ValueError:
                raise FileRefused("is not valid JSON: a number in it is too long") from None

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend what the decoder complains of."""
        is_started = self._buffer[self._position] in "[{"
        is_open = error.msg.startswith("Unterminated string") or _CUT.match(self._buffer, error.pos) is not None
        return is_started and is_open

    def _grow(self) -> bool:
        """Read on, at least as much as is here, so that a long document is decoded a few times only."""
        left = self._buffer[self._position :]
        if len(left) > _LARGEST_DOCUMENT_BYTES:
            raise FileRefused(f"holds a document of more than {_LARGEST_DOCUMENT_BYTES // 2**20} MiB")
        read: list[str] = []
        while sum(map(len, read)) < max(len(left), 1):
            piece = next(self._pieces, None)
            if piece is None:
                break
            read.append(piece)
        self._buffer, self._position = left + "".join(read), 0
        return bool(read)


def _pieces(data: bytes, largest_bytes: int) -> Iterator[str]:
    """The file's text, unpacked and decoded, in pieces of about a million characters."""
    file: io.BufferedIOBase = io.BytesIO(data)
    if data.startswith(_GZIP_MAGIC):
        file = gzip.GzipFile(fileobj=file)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    size_bytes = 0
    while True:
        try:
            piece = file.read(_PIECE_BYTES)
        except EOFError:
            raise FileRefused("is cut off; export or copy it again") from None
        except (OSError, zlib.error):
            raise FileRefused("is damaged and cannot be unpacked; export or copy it again") from None
        size_bytes += len(piece)
        if size_bytes > largest_bytes:
            raise FileRefused(f"holds more than {largest_bytes // 2**20} MiB; export fewer runs at a time")
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError:
            raise FileRefused("is neither JSON nor JSON packed with gzip") from None
        if text:
            yield text
        if not piece:
            return
