"""Several threads at one compiled function; `stress.threads` does the same for hundreds of rounds."""

import gc

import pytest

from stress.threads import CASES

DEAR = ("budget_same", "budget_different")  # several compiles in each round


@pytest.mark.parametrize("name", [name for name in CASES if name not in DEAR])
def test_threads_get_what_one_thread_gets(name):
    CASES[name](6, 0)
    assert gc.isenabled()


@pytest.mark.parametrize("name", DEAR)
def test_threads_settle_on_a_plan_once(name):
    CASES[name](3, 0)
