r"""Words, strings and positions of the text form; what the printer quotes, the parser unquotes.

    string ::= '"' (character | '\"' | '\\' | '\n' | '\t' | '\u{' hex '}')* '"'
    space  ::= blank | newline | '//' any* newline

A word is written bare where it holds safe characters alone, as a string elsewhere. Whatever is
not printable is escaped, so that a name can break neither a line nor a terminal.
"""

from __future__ import annotations

import re
from functools import lru_cache
from re import Match, Pattern
from typing import NoReturn

from .errors import ParseError

SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*)*")
BLANKS = re.compile(r"[ \t\r]*")
LINE_END = re.compile(r"[ \t\r]*(?://[^\n]*)?(?:\n|\Z)")
STRING = re.compile(r'"((?:[^"\\\n]|\\[^\n])*)"')

# Bare forms: of names (graphs, ops, attributes), of input names, of sources and scopes.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
PATH = re.compile(r"[A-Za-z_.\[][A-Za-z0-9_.\[\]'\-]*")
PLACE = re.compile(r"(?:(?!//)[!#-z|~])+")

_WINDOW = 100
_LONGEST = 300  # characters of a message
_UNSAFE = re.compile(r'["\\]|[^ -~]')
_CHARACTER = re.compile(r"[^ -~]")
_ESCAPED = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|(.))")
_SHORT = {"\n": "n", "\t": "t", '"': '"', "\\": "\\"}
_LONG = {short: character for character, short in _SHORT.items()}


def _escape(match: Match[str]) -> str:
    character = match.group()
    if character in _SHORT:
        return "\\" + _SHORT[character]
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"


def printable(text: str) -> str:
    """Text as a terminal may have it, on one line: what is not printable is escaped."""
    return text if text.isprintable() else _CHARACTER.sub(_escape, text)


def quote(text: str) -> str:
    """Write a string, quoted; everything that is not printable is escaped."""
    return f'"{_UNSAFE.sub(_escape, text)}"'


@lru_cache(maxsize=1024)
def word(text: str, bare: Pattern[str]) -> str:
    """Write a word: bare where `bare` matches the whole of it, quoted elsewhere."""
    return text if bare.fullmatch(text) else quote(text)


class Cursor:
    """A position in a text; every reader moves it forward or raises `ParseError`."""

    __slots__ = ("text", "pos")

    def __init__(self, text: str) -> None:
        """Start at the first character of `text`."""
        self.text = text
        self.pos = 0

    def skip(self) -> None:
        """Go past blanks, newlines and comments."""
        match = SPACE.match(self.text, self.pos)
        assert match is not None
        self.pos = match.end()

    def take(self, pattern: Pattern[str]) -> Match[str] | None:
        """Go past `pattern` if it matches here."""
        match = pattern.match(self.text, self.pos)
        if match is not None:
            self.pos = match.end()
        return match

    def at(self, token: str) -> bool:
        """Go past `token`, and space before it, if it stands here; otherwise stay."""
        before = self.pos
        self.skip()
        if self.text.startswith(token, self.pos):
            self.pos += len(token)
            return True
        self.pos = before
        return False

    def expect(self, token: str, why: str) -> None:
        """Go past `token`, and space before it. Raises `ParseError` where it is missing."""
        if not self.at(token):
            self.skip()
            self.fail(f"expected {token!r} {why}")

    def string(self) -> str | None:
        """Read a quoted string if one stands here."""
        start = self.pos
        match = self.take(STRING)
        if match is None:
            return None
        return _ESCAPED.sub(lambda m: self._unescape(m, start), match.group(1))

    def _unescape(self, match: Match[str], at: int) -> str:
        code, short = match.groups()
        if code is not None and int(code, 16) < 0x110000:
            return chr(int(code, 16))
        if short in _LONG:
            return _LONG[short]
        self.fail(f"unknown escape {match.group()!r} in a string", at)

    def word(self, bare: Pattern[str], what: str) -> str:
        """Read a word, bare or quoted. Raises `ParseError` where there is none."""
        match = self.take(bare)
        if match is not None:
            return match.group()
        text = self.string()
        if text is None:
            self.fail(f"expected {what}")
        return text

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raise a `ParseError` that shows the line and a caret under position `at`."""
        if len(message) > _LONGEST:  # it quotes a name
            message = f"{message[:_LONGEST]}..."
        pos = min(self.pos if at is None else at, len(self.text))
        start = self.text.rfind("\n", 0, pos) + 1
        end = self.text.find("\n", pos)
        line = self.text[start : len(self.text) if end < 0 else end]
        column = pos - start
        left = max(0, column - _WINDOW // 2)
        shown = "".join(c if c.isprintable() else " " for c in line[left : left + _WINDOW])
        number = self.text.count("\n", 0, pos) + 1
        raise ParseError(
            f"line {number}, column {column + 1}: {message}\n"
            f"    {shown}\n    {' ' * (column - left)}^"
        )
