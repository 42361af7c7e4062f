"""A browser for the tests of the page."""

import pytest

from ir.chromium import browser, found


@pytest.fixture(scope="session")
def chromium():
    if found() is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in $CHROMIUM")
    with browser() as wire:
        yield wire
