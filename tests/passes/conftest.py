"""Passes are told by their text and their numbers, which XLA need not make faster."""

from collections.abc import Iterator

import pytest

from quick import quickly


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quickly():
        yield
