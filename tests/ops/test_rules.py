"""Every op's rules against its lowering: types, and first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backpass.ir.builder import Builder
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Value
from backpass.ir.op import no_gradient
from backpass.ir.ops import OPS
from backpass.ir.types import type_of
from ops.cases import CASES, ELSEWHERE
from ops.harness import (
    Case,
    backward_graph,
    gradient_graph,
    inner,
    like,
    no_regions,
    operands,
    primal,
)

DIFFERENTIABLE = [c for c in CASES if OPS[c.op].vjp not in (None, no_gradient) and c.active]
TWICE = [c for c in DIFFERENTIABLE if c.orders > 1]
SMOOTH = [c for c in DIFFERENTIABLE if not c.kinks]
STEP = 1e-6

pytestmark = pytest.mark.usefixtures("float64")


def test_every_op_has_a_case() -> None:
    cases = {case.op for case in CASES}
    assert set(OPS) - cases == set(ELSEWHERE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_rule_tells_what_the_lowering_gives(case: Case) -> None:
    b, op = Builder(OPS), OPS[case.op]
    told = b.emit(op, [Value(type_of(x)) for x in case.args], case.attrs)
    outs = jax.eval_shape(lambda *args: op.lower(args, case.attrs, (), no_regions), *case.args)
    assert [value.type for value in told] == [type_of(out) for out in outs]
    flops = op.flops(b.nodes[0])
    assert isinstance(flops, int)
    assert flops >= 0


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_vjp_agrees_with_finite_differences(case: Case) -> None:
    """<g, (f(x + h d) - f(x - h d)) / 2h> = <pullback(g), d>."""
    rng, f, xs = np.random.default_rng(0), jax.jit(primal(case)), operands(case)
    cts = cotangents(rng, case)
    directions = [case.within(like(rng, x)) for x in xs]
    ahead, behind = (
        f(*(x + sign * STEP * d for x, d in zip(xs, directions, strict=True))) for sign in (1, -1)
    )
    slope = (inner(cts, ahead) - inner(cts, behind)) / (2 * STEP)
    graph = backward_graph(case)
    found = jax.jit(lambda *args: evaluate(graph, *args))(*case.args, *cts)
    assert inner(found, directions) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_vjp_agrees_with_jax(case: Case) -> None:
    graph, cts = backward_graph(case), cotangents(np.random.default_rng(1), case)

    @jax.jit
    def both(args, xs, cts):
        return evaluate(graph, *args, *cts), jax.vjp(primal(case), *xs)[1](cts)

    assert_close(*both(case.args, operands(case), cts), case)


@pytest.mark.parametrize("case", TWICE, ids=str)
def test_second_derivative_agrees_with_jax(case: Case) -> None:
    """The VJP of the VJP, by operands and by cotangents, along random directions."""
    rng, xs = np.random.default_rng(2), operands(case)
    cts, seconds = cotangents(rng, case), [like(rng, x) for x in xs]
    graph = backward_graph(case)
    wrt = [*case.active, *range(len(case.args), len(graph.inputs))]
    twice = gradient_graph(graph, wrt)

    def first(xs, cts):
        return jax.vjp(primal(case), *xs)[1](cts)

    @jax.jit
    def both(args, xs, cts, seconds):
        by_xs, by_cts = jax.vjp(first, xs, cts)[1](tuple(seconds))
        return evaluate(twice, *args, *cts, *seconds), [*by_xs, *by_cts]

    assert_close(*both(case.args, xs, cts, seconds), case)


def cotangents(rng: np.random.Generator, case: Case) -> tuple[jax.Array, ...]:
    outs = jax.eval_shape(primal(case), *operands(case))
    return tuple(jnp.asarray(like(rng, out)) for out in outs)


def assert_close(got, want, case: Case) -> None:
    """Compare; the operands' own cotangents, which come first, as `case.within` shows them."""
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        show = case.within if i < len(case.active) else np.asarray
        x, y = show(np.asarray(x)), show(np.asarray(y))
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)
