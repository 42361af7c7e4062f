"""How the tests reach the examples, which are scripts and not part of the package."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def load_example() -> Iterator[Callable[[str], ModuleType]]:
    """Imports `examples/NAME.py` as Python does that runs it: with its folder on the path.

    Tests of a file share the module, and so what it has compiled.
    """

    with pytest.MonkeyPatch.context() as patch:

        @cache
        def load(name: str) -> ModuleType:
            spec = importlib.util.spec_from_file_location(
                f"examples_{name}", EXAMPLES / f"{name}.py"
            )
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)  # where dataclasses look
            spec.loader.exec_module(module)
            return module

        patch.syspath_prepend(EXAMPLES)
        yield load
