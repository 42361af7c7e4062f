"""The models are compared in float64."""

from collections.abc import Iterator

import jax
import pytest

from quick import quickly


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True), quickly():
        yield
