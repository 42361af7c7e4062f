"""Every function of the table, at every argument. Some share a program, as compiling takes the time."""

import jax
import numpy as np
import pytest

import backpass as bp
from models.comparison import assert_close, batches, draw, weighted
from models.functions import POSITIVE, SECTIONS

GROUPS = {
    f"{section}: {batch}": {name: table[name] for name in names}
    for section, table in SECTIONS.items()
    for batch, names in batches(table).items()
}


def arguments(name, shapes):
    low = 0.2 if name in POSITIVE else None
    return tuple(draw(seed, *shape, low=low, high=0.9) for seed, shape in enumerate(shapes))


def slopes(rows, value_and_grad):
    """The value and the gradient of each function, by name."""

    def run(args):
        return {
            name: value_and_grad(
                lambda *xs, function=function: weighted(function(*xs)), tuple(range(len(shapes)))
            )(*args[name])
            for name, (function, shapes) in rows.items()
        }

    return run


# Some arguments, such as those of searchsorted, have no gradient: as it should be.
@pytest.mark.filterwarnings("ignore::backpass.ZeroGradientWarning")
@pytest.mark.parametrize("group", GROUPS)
def test_gradients_are_those_of_jax(group):
    rows = GROUPS[group]
    args = {name: arguments(name, shapes) for name, (_, shapes) in rows.items()}
    ours = bp.compile(slopes(rows, bp.value_and_grad), debug=True)
    theirs = jax.jit(slopes(rows, jax.value_and_grad))
    expected = theirs(args)
    assert_close(ours(args), expected)
    for name, (_, grads) in expected.items():
        assert any(np.any(np.asarray(grad) != 0) for grad in grads), f"{name} tests nothing"


def test_names_are_told_once():
    names = [name for table in SECTIONS.values() for name in table]
    assert len(names) == len(set(names)) > 300
    assert set(names) >= POSITIVE
