"""What holds for every test: devices, how the tree is collected, how hypothesis draws."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from quick import set_flags

# `python -m pytest` puts the root first, where `ir` is the package's layer and not `tests/ir`.
ROOT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

set_flags()
os.environ["BACKPASS_DEVICE"] = "cpu"  # plans are the same on every machine: nothing is measured

settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("test")


class PlainCheckout:
    """Collects the repository's root as a folder, though it has an `__init__.py`.

    pytest would import it under the name of the folder that it was cloned into, as a second copy
    of the package.
    """

    @staticmethod
    @pytest.hookimpl
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PlainCheckout())


def pytest_collection_finish() -> None:
    """What is imported stays; tracing makes many objects that are soon gone without being sought."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """A test that turns doubles on turns them off again."""
    before = jax.config.jax_enable_x64
    yield
    assert jax.config.jax_enable_x64 == before, "the test leaves jax_enable_x64 to those after it"


@pytest.fixture(autouse=True)
def nothing_settled() -> None:
    """Plans do not hang on the budgets of the tests before."""
    from backpass.compiler.settled import forget

    forget()
