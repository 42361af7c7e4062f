"""How the tests reach the benchmarks, which are scripts and not part of the package."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports `benchmarks/NAME.py`, or that of a folder there, as a script beside it does."""
    monkeypatch.syspath_prepend(BENCHMARKS / "memory")
    monkeypatch.syspath_prepend(BENCHMARKS / "fusion")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module
