"""Rules are tested in double precision, and compiled quickly: there are a thousand of them."""

from collections.abc import Iterator

import jax
import pytest

from quick import quickly


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True), quickly():
        yield
