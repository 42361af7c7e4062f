"""Every function of the table, at every argument."""

import pytest
from models.comparison import assert_same_gradients, draw, weighted
from models.functions import POSITIVE, TABLE


@pytest.mark.parametrize("name", TABLE)
def test_gradient_is_that_of_jax(name):
    function, shapes = TABLE[name]
    low = 0.2 if name in POSITIVE else None
    args = [draw(seed, *shape, low=low, high=0.9) for seed, shape in enumerate(shapes)]
    assert_same_gradients(
        lambda *xs: weighted(function(*xs)), *args, argnums=tuple(range(len(args)))
    )
