"""The fenced blocks of a page, and whether what was printed is what the page shows.

A page has four kinds: `python` runs, `sh` are commands that run, `output` is what the block before
it prints, and `text` is neither run nor compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.joinpath("docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
KINDS = {"python", "sh", "output", "text"}

_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:\A|\n)\n {4}(?! *[-*\d])\S[^\n]*")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line in the page."""

    kind: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks, in order."""
    return [
        Block(found[1], found[2], page.count("\n", 0, found.start()) + 2)
        for found in _FENCED.finditer(page)
    ]


def unfenced(page: str) -> list[str]:
    """First lines of code that is indented in place of fenced, which nothing would run."""
    prose = _FENCED.sub("", page)
    return [*map(str.strip, _INDENTED.findall(prose)), *re.findall(r"^ +```.*", prose, re.M)]


def inline(page: str) -> list[str]:
    """What stands in backquotes within prose and tables."""
    return [" ".join(text.split()) for text in _INLINE.findall(_FENCED.sub("", page))]


def file_of(block: Block) -> str | None:
    """`model.py` where a block begins with `# model.py`: it is that file as well."""
    found = re.match(r"# (\w+\.py)\n", block.text)
    return found and found[1]


def matches(shown: str, printed: str) -> bool:
    """Compare by words; `...` in what is shown stands for anything, rules have any length."""
    parts = (re.escape(part) for part in _words(shown).split("..."))
    return re.fullmatch(".*".join(parts), _words(printed)) is not None


def _words(text: str) -> str:
    return " ".join(re.sub(r"-{2,}", "--", text).split())
