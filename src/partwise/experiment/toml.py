"""TOML beyond the standard library: on which line each key stands, and writing.

A path is a tuple of keys, and of numbers in arrays: `("client", 0, "max_norm")`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

__all__ = ["KeyPath", "decode_error", "locate", "parse", "write"]

KeyPath = tuple[str | int, ...]

_library = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")


def parse(text: str) -> dict[str, object]:
    """The table a TOML text stands for.

    Raises:
        ValueError: it is not TOML; `decode_error` reads the error.
    """
    try:
        found: dict[str, object] = _library.loads(text)
    except RecursionError as error:
        raise ValueError("Arrays or inline tables are nested too deeply") from error
    return found


def decode_error(error: ValueError, text: str) -> tuple[int, str]:
    """Line and complaint of an error that `parse` raised."""
    message = str(error)
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if at is None:
        return 1, message
    return int(at[1] or text.count("\n") + 1), message[: at.start()]


# ---- where is what --------------------------------------------------------------------------------------------------


def locate(text: str) -> dict[KeyPath, int]:
    r"""Key path -> the line, from 1, on which its key or its table's header stands.

    Args:
        text: TOML that `parse` accepts.

    Example:
        >>> locate('seed = 1\n[[client]]\nname = "Clip"\n')
        {('seed',): 1, ('client',): 2, ('client', 0): 2, ('client', 0, 'name'): 3}
    """
    return _Scanner(text).lines


class _Scanner:
    """Walks through TOML that is known to be well-formed, and notes where each key is."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._tables_in: dict[KeyPath, int] = {}  # arrays of tables: how many elements so far
        self.lines: dict[KeyPath, int] = {}
        here: KeyPath = ()
        while self._blank() < len(text):
            if text.startswith("[", self._at):
                here = self._header()
            else:
                self._pair(here)

    def _note(self, path: KeyPath) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], line)

    def _blank(self) -> int:
        """Skip blanks, line ends and comments."""
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at

    def _space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _header(self) -> KeyPath:
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        *outer, last = self._key()
        path = (*self._resolved(outer), last)
        if is_array:
            self._tables_in[path] = self._tables_in.get(path, 0) + 1
        path = self._resolved([last], path[:-1])
        self._note(path)
        self._at += 2 if is_array else 1
        return path

    def _resolved(self, keys: Sequence[str], path: KeyPath = ()) -> KeyPath:
        """The path of a header, with the number of the element that is open in each array of tables."""
        for key in keys:
            path = (*path, key)
            if path in self._tables_in:
                path = (*path, self._tables_in[path] - 1)
        return path

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = (*table, *self._key())
        after, self._at = self._at, start
        self._note(path)
        self._at = after + 1  # the equals sign
        self._space()
        self._value(path)

    def _key(self) -> list[str]:
        """A dotted key; the scanner is left at what follows it."""
        keys = []
        while True:
            self._space()
            if self._text[self._at] in "\"'":
                start = self._at
                self._string()
                keys.append(next(iter(parse(f"{self._text[start : self._at]} = 0"))))
            else:
                found = _BARE_KEY.match(self._text, self._at)
                assert found is not None
                keys.append(found[0])
                self._at = found.end()
            self._space()
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        match self._text[self._at]:
            case '"' | "'":
                self._string()
            case "[":
                for number, _ in enumerate(self._elements("]")):
                    self._note((*path, number))
                    self._value((*path, number))
            case "{":
                for _ in self._elements("}"):
                    self._pair(path)
            case _:
                found = _BARE_VALUE.match(self._text, self._at)
                assert found is not None
                self._at = found.end()

    def _elements(self, close: str) -> Iterator[None]:
        """Stops at each element of an array or inline table."""
        self._at += 1
        while self._blank() < len(self._text) and self._text[self._at] != close:
            yield
            self._blank()
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        close = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(close)
        while not self._text.startswith(close, self._at):
            self._at += 2 if self._text[self._at] == "\\" and quote == '"' else 1
        self._at += len(close)
        if len(close) == 3:  # up to two quotes more belong to the string itself
            while self._text.startswith(quote, self._at):
                self._at += 1


# ---- writing --------------------------------------------------------------------------------------------------------


def write(table: Mapping[str, object]) -> str:
    """A table as TOML: scalars first, tables under headers of their own.

    Example:
        >>> print(write({"seed": 1, "client": [{"name": "Clip", "max_norm": 5.0}]}), end="")
        seed = 1
        <BLANKLINE>
        [[client]]
        name = "Clip"
        max_norm = 5.0
    """
    return "\n".join(_lines(table, ())).lstrip("\n") + "\n"


def _lines(table: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{_key(key)} = {_inline(value)}"
    for key, value in table.items():
        header = ".".join(_key(k) for k in (*path, key))
        if isinstance(value, Mapping):
            yield from ["", f"[{header}]", *_lines(value, (*path, key))]
        elif isinstance(value, list | tuple) and _is_tables(value):
            for element in value:
                yield from ["", f"[[{header}]]", *_lines(element, (*path, key))]


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(e, Mapping) for e in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, which also wants DEL escaped
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _inline(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return str(float(value))  # infinity and nan are inf and nan in TOML too
        case str() | PurePath():
            return _quoted(str(value))
        case Mapping():
            return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }" if value else "{}"
        case list() | tuple():
            return "[" + ", ".join(map(_inline, value)) + "]"
        case _:
            raise TypeError(
                f"write(): TOML has strings, numbers, booleans, arrays and tables, got {value!r}. Leave it out."
            )
