"""Real text that every reader has at hand: the Python standard library of this interpreter."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

# Other people's packages, tests, and tables of data that happen to be written in Python.
SKIPPED = frozenset(
    "site-packages dist-packages test tests idle_test encodings pydoc_data __pycache__".split()
)


def read_library(limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Read about `limit` bytes of the standard library's source.

    Files come in the order of their paths, and every tenth is kept for validation: the split is the
    same each time, and no file is on both sides.

    Returns:
      Text to train on and text to validate on, `uint8[n]` and `uint8[m]`.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    size = count = 0
    for path in sorted(root.rglob("*.py")):
        if size >= limit or not SKIPPED.isdisjoint(path.relative_to(root).parts):
            continue
        text = path.read_bytes()
        count += 1
        size += len(text)
        sides[count % 10 == 0].append(text)
    training, validation = (np.frombuffer(b"".join(side), np.uint8) for side in sides)
    return training, validation


def entropy(text: np.ndarray) -> float:
    """Entropy of single bytes, `-sum_b p(b) log2 p(b)`, in bits per byte.

    No model that knows only how often each byte occurs can predict `text` better than this.
    """
    p = np.bincount(text) / text.size
    p = p[p > 0]
    return float(-np.sum(p * np.log2(p)))


def windows(text: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """Cut `int32[len(starts), context + 1]` from `text`: inputs and, one byte on, targets."""
    return text[starts[:, None] + np.arange(context + 1)].astype(np.int32)


def random_windows(text: np.ndarray, rng: np.random.Generator, batch: int, context: int):
    """A training batch: `batch` windows that start anywhere in `text`."""
    return windows(text, rng.integers(0, text.size - context, batch), context)


def even_windows(text: np.ndarray, count: int, context: int) -> np.ndarray:
    """A validation set: `count` windows spread evenly over `text`, the same each time."""
    return windows(text, np.linspace(0, text.size - context - 1, count).astype(int), context)
