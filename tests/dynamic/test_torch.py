"""The dynamic mode beside PyTorch: the same programs, the same values and kinds of error."""

import warnings

import pytest

from dynamic.behaviours import CASES
from dynamic.sides import HAS_TORCH, Ours, Theirs, outcome, same

pytestmark = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed (extra 'bench')")


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = outcome(CASES[name], Theirs())
        ours = outcome(CASES[name], Ours())
    same(ours, theirs)


def test_there_are_enough():
    assert len(CASES) >= 150
