"""Which line of which file is the user's.

A stack runs from the user's program through libraries (Flax, Optax) and JAX into backpass. The
user's line is the innermost one outside all of these; where a function of a library was traced by
itself, the library's own line is the best there is.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from functools import cache
from typing import Any

import jax

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NAMES = ("compiler", "dynamic", "ir", "passes", "runtime")
_LAYERS = tuple(os.path.join(_PACKAGE, name, "") for name in _NAMES)
JAX_FOLDER = os.path.join(os.path.dirname(os.path.abspath(jax.__file__)), "")
_MACHINERY = (*_LAYERS, JAX_FOLDER, "<")
_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(os.path.join(_PATHS[key], "") for key in ("stdlib", "purelib", "platlib"))


@cache
def rank(file: str) -> int:
    """0 for the user's files, 1 for installed libraries, 2 for JAX and backpass."""
    if file.startswith(_MACHINERY):
        return 2
    return 1 if file.startswith(_LIBRARIES) else 0


def innermost(lines: Iterable[tuple[str, int | None]]) -> str:
    """`file:line` of the user among stack entries, innermost first; the empty string for none."""
    best: tuple[str, int | None] | None = None
    for file, line in lines:
        kind = rank(file)
        if kind == 0:
            return shortened(file, line)
        if kind == 1 and best is None:
            best = file, line
    return shortened(*best) if best else ""


def user_line(traceback: Any) -> str:
    """`file:line` of the user's code in a JAX traceback, or the empty string."""
    if traceback is None:
        return ""
    return innermost((frame.file_name, frame.line_num) for frame in traceback.frames)


def shortened(file: str, line: object) -> str:
    """`file:line`, relative where the file lies below the working directory."""
    return f"{_relative(file, os.getcwd())}:{line}"


@cache
def _relative(file: str, folder: str) -> str:
    relative = os.path.relpath(file, folder) if os.path.isabs(file) else file
    return file if relative.startswith("..") else relative
