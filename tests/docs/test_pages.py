"""Every page does what it says: its Python and its commands run, and print what it shows."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from docs.blocks import KINDS, PAGES, ROOT, blocks_of, file_of, inline, matches, unfenced
from docs.commands import LONG, look_up, run
from stress.cache import off

TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, as a reader has it; what was imported or set there is forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    off()
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks_of(TEXTS[page])])
def test_blocks_run_in_order(page, folder, capsys, monkeypatch):
    """Python in one namespace, commands in one folder; `output` is what the block before printed."""
    namespace, printed = {"__name__": "page"}, None
    for block in blocks_of(TEXTS[page]):
        if block.kind == "python":
            name = file_of(block)
            if name:
                Path(name).write_text(block.text)
            source = block.text if name else "\n" * (block.line - 1) + block.text
            exec(compile(source, name or Path(page).name, "exec"), namespace)
            printed = capsys.readouterr().out
        elif block.kind == "sh":
            lines = [line for line in block.text.splitlines() if shlex.split(line, comments=True)]
            printed = "".join(run(line, capsys, monkeypatch) for line in lines)
        elif block.kind == "output":
            assert printed is not None, f"{page}:{block.line}: nothing was run before"
            assert matches(block.text, printed), f"{page}:{block.line} shows not this:\n{printed}"


@pytest.mark.parametrize("page", TEXTS)
def test_blocks_are_of_a_known_kind(page):
    """So that nothing which looks like code is passed over."""
    blocks = blocks_of(TEXTS[page])
    assert [block for block in blocks if block.kind not in KINDS] == []
    assert unfenced(TEXTS[page]) == []
    assert TEXTS[page].count("\n```") == 2 * len(blocks)


def test_readme_fits_a_terminal():
    """Commands of 80 columns, as they are pasted."""
    blocks = [block.text for block in blocks_of(TEXTS["README.md"]) if block.kind == "sh"]
    assert blocks and [ln for text in blocks for ln in text.splitlines() if len(ln) > 80] == []


PROSE = {
    **TEXTS,
    **{
        f"benchmarks/{name}": (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
        for name in ("README.md", "fusion/README.md", "memory/README.md")
    },
}
COMMANDS = sorted({text for page in PROSE.values() for text in inline(page) if " " in text})


@pytest.mark.parametrize("begins", [begins for begins, _, _ in LONG])
def test_commands_in_prose_exist(begins, monkeypatch):
    """A number names the command that measures it: the script is there and takes these arguments."""
    found = [text for text in COMMANDS if re.match(begins, text)]
    assert found, begins
    for text in found:
        look_up(shlex.split(text), monkeypatch)


def test_what_is_printed_is_compared():
    """By words, with `...` for anything."""
    assert matches("a ... c", "a  b\nb c\n") and matches("-----\nx", "--\nx\n")
    assert not matches("a c", "a b c") and not matches("a ...", "b c")
    assert matches("f32[...] 1.5", "f32[3,4]   1.5") and not matches("1.5", "1x5")
