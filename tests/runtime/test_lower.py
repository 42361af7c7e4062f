"""Graph -> a function of arrays: values, weak types, lines and scopes, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backpass.ir import parse
from backpass.runtime.lower import lowered

TEXT = """backpass.ir 1

graph "f"(%0: f32[3] x, %1: f32[]* y) {
  %2: f32[3] = sin(%0)                    @ model.py:4 block
  %3: f32[3] = mul(%2, %1)                @ model.py:5 block/scale
  return %3, %1, 2.0:f32*, %0
}
"""


@pytest.fixture
def function():
    graph = parse(TEXT)
    return lowered(graph, [value.type for value in graph.outputs])


X = np.arange(3, dtype=np.float32)


def test_values_and_types(function):
    for call in (function, jax.jit(function)):
        product, weak, literal, through = call(X, 2.0)
        np.testing.assert_allclose(product, 2 * np.sin(X), rtol=1e-6)
        assert [jax.typeof(v).weak_type for v in (product, weak, literal)] == [False, True, True]
        np.testing.assert_array_equal(through, X)


def test_scopes_reach_the_program(function):
    text = jax.jit(function).lower(X, 2.0).as_text(debug_info=True)
    assert "block/sin" in text and "block/scale/mul" in text


def test_transformations(function):
    np.testing.assert_allclose(
        jax.vmap(function, (0, None))(np.stack([X, X]), 2.0)[0][1], 2 * np.sin(X), rtol=1e-6
    )
    slope = jax.grad(lambda x: jnp.sum(function(x, 2.0)[0]))(X)
    np.testing.assert_allclose(slope, 2 * np.cos(X), rtol=1e-6)


def test_number_of_arguments(function):
    with pytest.raises(TypeError, match="f takes 2 arguments, got 1"):
        function(X)
