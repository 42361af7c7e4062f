"""Functions of samples divided in two parts, in NumPy: the loop's body, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backpass.ir import verify
from backpass.ir.errors import BatchError
from backpass.ir.graph import Graph
from backpass.passes import Dce, Microbatch
from passes.texts import assert_same_values, compiled

X = np.zeros((6, 5, 7), np.float32)  # six samples; no other size is even


def in_parts(fun, *args, first=jnp.sin) -> Graph:
    """The body of a loop over the parts of `fun`'s last argument, once its values are compared."""
    given = compiled(lambda *args: fun(*args[:-1], first(args[-1])), *args, X)
    found = Microbatch(2)(given)
    verify(found)
    found = Dce()(found)
    loops = [node for node in found.nodes if node.regions and node.regions[0].name == "part"]
    assert_same_values(found, given)
    (loop,) = loops
    return loop.regions[0]


def used_much(x):
    """More arithmetic than what `x` is made by."""
    return jnp.cos(x[..., None] + jnp.arange(99.0))


def assert_refused(fun, why: str, *args, first=jnp.sin) -> None:
    """`fun` ties the samples of its last argument together; there is much to do with its result."""

    def step(*args):
        return jax.tree.map(used_much, fun(*args[:-1], first(args[-1])))

    with pytest.raises(BatchError) as met:
        Microbatch(2)(compiled(step, *args, X))
    assert f": {why}" in str(met.value)
