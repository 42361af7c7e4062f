"""Derivatives of primitives that only some versions of JAX have, by a lowering of the test's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backpass.ir.builder import Builder
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Value
from backpass.ir.ops import OPS
from backpass.ir.types import type_of
from ops.draws import positive, real

pytestmark = pytest.mark.usefixtures("float64")


def polynomial(x, *factors):
    """The constant first."""
    total = sum((a * x**k for k, a in enumerate(factors)), 0.0)
    return jnp.asarray(total)


FORMULAS = {
    "log2": (jnp.log2, [positive(3)]),
    "one_minus_square": (lambda x: 1 - x * x, [real(3)]),
    "polynomial of nothing": (polynomial, [real(3), real(3, seed=1)]),
    "polynomial, a line": (polynomial, [real(3), real(seed=1), real(seed=2)]),
    "polynomial": (polynomial, [real(3), real(3, seed=1), real(seed=2), real(3, seed=3), real()]),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("left_out", [None, 0, 1, 2])
def test_derivative(name: str, left_out: int | None) -> None:
    """By all operands, and by all but one."""
    formula, args = FORMULAS[name]
    op = replace(OPS[name.split()[0].strip(",")], lower=lambda args, *_: [formula(*args)])
    needs = [i != left_out for i in range(len(args))]
    b, inputs = Builder(OPS), [Value(type_of(x)) for x in args]
    (out,) = b.emit(op, inputs)
    (node,), ct = b.nodes, Value(out.type)
    cts = op.vjp(b, node, [ct], needs)
    assert [each is not None for each in cts] == [
        need and not (name == "polynomial of nothing" and i == 0) for i, need in enumerate(needs)
    ]
    graph = b.graph("f", [*inputs, ct], [each for each in cts if each is not None])
    cotangent = real(*out.shape, seed=9)
    wanted = jax.vjp(lambda *xs: formula(*xs) + jnp.zeros(out.shape), *args)[1](cotangent)
    wanted = [want for want, each in zip(wanted, cts, strict=True) if each is not None]
    for ours, want in zip(evaluate(graph, *args, cotangent), wanted, strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-12)
