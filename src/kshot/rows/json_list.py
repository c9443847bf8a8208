"""Items of a .json file that holds one list, parsed one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from kshot.errors import ExampleError
from kshot.rows.text_files import MAX_LINE_BYTES, has_invalid_bytes, reason_of_json

_CHUNK = 2**20  # characters read at once, at least
_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each item after its place, or an `ExampleError` in place of one that is not UTF-8.

    Raises:
        ExampleError: This is no list, or an item cannot be parsed: nobody knows where the next begins.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        text = _Window(file)
        if (start := text.take()) != "[":
            raise _no_list(path, f"{start!r} at its start" if start else "an empty file")
        number = 0
        while (following := text.peek()) != "]":
            if number and following != ",":
                raise _no_list(path, f"no ',' after item {number}")
            if number:
                text.take()
            number += 1
            try:
                row = text.item()
            except (ValueError, RecursionError) as error:
                reason = reason_of_json(error) if isinstance(error, json.JSONDecodeError) else str(error)
                raise _no_list(path, f"{reason} in item {number}") from error
            yield f"item {number}", row
        text.take()
        if text.peek():
            raise _no_list(path, f"{text.peek()!r} after its end")


def _no_list(path: Path, got: str) -> ExampleError:
    return ExampleError(f"{path}: expected a JSON list of objects, got {got}", reason="unreadable")


class _Window:
    """The part of a file that is being parsed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at = "", 0

    def peek(self) -> str:
        """Return the next character that is no white space; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def take(self) -> str:
        """Return the next character that is no white space, and pass it."""
        character = self.peek()
        self._at += len(character)
        return character

    def item(self) -> Any:
        """Parse the next value; the window grows until it holds the value and what follows."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > MAX_LINE_BYTES or not self._grow():
                    raise
                continue
            if end < len(self._text) or not self._grow():
                break
        raw, self._at = self._text[self._at : end], end
        if has_invalid_bytes(raw):
            return ExampleError("expected UTF-8, got other bytes; save it as UTF-8", reason="invalid_utf8")
        return value

    def _grow(self) -> bool:
        """Read at least as much again as is unparsed, so that a long item is parsed few times."""
        rest = self._text[self._at :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._at = rest + more, 0
        return bool(more)
