"""Which line of a stack is the user's."""

import json
import os
import sysconfig

import jax
import numpy as np
import pytest

from backpass import ir
from backpass.ir.source import innermost, rank, shortened

MINE = "/home/somebody/model.py"
LIBRARY = os.path.join(sysconfig.get_paths()["purelib"], "flax", "linen.py")
JAX = jax.__file__
OURS = ir.__file__


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (MINE, 0),
        (LIBRARY, 1),
        (json.__file__, 1),
        (np.__file__, 1),
        (JAX, 2),
        (OURS, 2),
        ("<string>", 2),
    ],
)
def test_ranks(file, expected):
    assert rank(file) == expected


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([(JAX, 1), (LIBRARY, 2), (MINE, 3), (MINE, 4)], f"{MINE}:3"),
        ([(JAX, 1), (LIBRARY, 2), (LIBRARY, 3)], f"{LIBRARY}:2"),
        ([(JAX, 1), (LIBRARY, None)], f"{LIBRARY}:None"),
        ([(JAX, 1)], ""),
        ([], ""),
    ],
)
def test_the_innermost_line_of_the_user_or_of_a_library(stack, expected):
    """Relative paths, where the libraries lie below the working directory."""
    file, _, line = expected.rpartition(":")
    assert innermost(stack) == (shortened(file, line) if expected else "")


def test_paths_are_relative_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shortened(str(tmp_path / "a" / "model.py"), 3) == os.path.join("a", "model.py:3")
    assert shortened(MINE, 3) == f"{MINE}:3"
