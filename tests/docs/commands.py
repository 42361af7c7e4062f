"""Commands of a page: run as written, or, where that takes minutes, looked up."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from backpass.cli.main import main
from docs.blocks import ROOT


def run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command in the current folder and return what it prints on stdout."""
    words = shlex.split(line, comments=True)
    if look_up(words, monkeypatch):
        return ""
    if words[0] == "backpass":  # in this process, where JAX is imported already
        status = main(words[1:])
        assert status == 0 or (status == 1 and words[1] == "diff"), line
        return capsys.readouterr().out
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        line, shell=True, text=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"
    return ran.stdout


def look_up(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Check a command of the table without running it; False for one that is not in it."""
    command = " ".join(words)
    for begins, check, _ in LONG:
        if re.match(begins, command):
            check(words, monkeypatch)
            return True
    return False


class Taken(BaseException):
    """The words were taken; the script goes no further."""


@contextmanager
def parsed_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Programs end with `Taken` where they have read their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, argv=None, namespace=None):
        parse(parser, argv, namespace)
        raise Taken

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        yield patch


def subcommand(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes these words."""
    with parsed_only(monkeypatch), pytest.raises(Taken):
        main(list(words[1:]))


def arguments(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is there, and its parser takes these words."""
    words = words[words.index("python") + 1 :]
    named = words[0] == "-m"
    script = f"tests/{words[1].replace('.', '/')}.py" if named else words[0]
    with parsed_only(monkeypatch) as patch:
        patch.setattr(os, "execve", lambda *call: None)  # benchmarks start again to set malloc
        patch.setattr(sys, "argv", [script, *words[2 if named else 1 :]])
        patch.syspath_prepend(ROOT.joinpath(script).parent)
        with pytest.raises(Taken):
            runpy.run_path(str(ROOT / script), run_name="__main__")


def target(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Makefile has the targets, and the variables."""
    text = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name, given, _ = word.partition("=")
        assert re.search(rf"^{name} *:=" if given else rf"^{name}:", text, re.MULTILINE), word


def extras(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The extras that are asked for exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(names.split(",")) <= known.keys(), names


Check = Callable[[Sequence[str], pytest.MonkeyPatch], None]

# What begins a command, what is looked at in place of running it, and why it is not run.
LONG: tuple[tuple[str, Check, str], ...] = (
    (r"python benchmarks/\S+\.py", arguments, "minutes; tests/benchmarks runs it at a tiny size"),
    (r"backpass bench\b", subcommand, "minutes; tests/bench runs its suites at a tiny size"),
    (r"python examples/\S+\.py", arguments, "minutes; tests/examples runs it at a small size"),
    (r"PYTHONPATH=tests python -m ", arguments, "minutes; the tests beside it run a part"),
    (r"make\b", target, "minutes, and an environment of its own"),
    (r"(\.venv/bin/)?pip install ", extras, "the tests' environment has it already"),
)
