"""A few wrong rules, each found by the op's cases and by programs of the fuzzer."""

from collections.abc import Iterator
from itertools import count

import jax
import pytest

from fuzz.inject import Pool, by_cases, by_fuzzing, pool
from fuzz.mutations import MUTATIONS, Mutation

pytestmark = pytest.mark.filterwarnings("ignore::backpass.ZeroGradientWarning")
QUICK = ("sin: sine for cosine", "dot_general: no gradient by the second", "scan: not reversed")
CHOSEN = [mutation for mutation in MUTATIONS if str(mutation) in QUICK]


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def programs() -> Pool:
    """Which programs the seeds give depends on what this JAX has: so many that each op is met."""
    found: list = []
    for seed in count():
        found += pool([seed])
        if all(sum(m.op in names for _, names in found) >= 5 for m in CHOSEN):
            return found


@pytest.mark.parametrize("mutation", CHOSEN, ids=str)
def test_a_wrong_rule_is_found(mutation: Mutation, programs) -> None:
    assert by_cases(mutation)[0] > 0
    assert by_fuzzing(mutation, programs)[0] > 0


def test_the_table_is_right_afterwards(programs) -> None:
    """A mutation ends where its block ends."""
    wrong = next(m for m in MUTATIONS if str(m) == QUICK[0])
    assert by_fuzzing(wrong, programs)[0] > 0
    assert by_cases(Mutation("sin", "nothing", lambda rule: rule))[0] == 0
    assert by_fuzzing(Mutation("sin", "nothing", lambda rule: rule), programs)[0] == 0
