"""Every op's rules against its lowering: types, and first and second derivatives."""

import jax
import numpy as np
import pytest
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
    run_backward,
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
    op = OPS[case.op]
    told = op.shape([Value(type_of(x)) for x in case.args], case.attrs, ())
    outs = op.lower(case.args, case.attrs, (), no_regions)
    assert list(told) == [type_of(out) for out in outs]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flops_are_counted(case: Case) -> None:
    graph = _one_node(case)
    flops = graph.op.flops(graph)
    assert isinstance(flops, int)
    assert flops >= 0


def _one_node(case: Case):
    from backpass.ir.builder import Builder

    b = Builder(OPS)
    b.emit(case.op, [Value(type_of(x)) for x in case.args], case.attrs)
    return b.nodes[0]


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_vjp_agrees_with_finite_differences(case: Case) -> None:
    """<g, (f(x + h d) - f(x - h d)) / 2h> = <pullback(g), d>."""
    rng, f, xs = np.random.default_rng(0), primal(case), operands(case)
    cts = [like(rng, out) for out in f(*xs)]
    directions = [case.within(like(rng, x)) for x in xs]
    ahead, behind = (
        f(*(x + sign * STEP * d for x, d in zip(xs, directions, strict=True))) for sign in (1, -1)
    )
    slope = (inner(cts, ahead) - inner(cts, behind)) / (2 * STEP)
    assert inner(run_backward(case, cts), directions) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_vjp_agrees_with_jax(case: Case) -> None:
    rng = np.random.default_rng(1)
    outs, pullback = jax.vjp(primal(case), *operands(case))
    cts = [like(rng, out) for out in outs]
    want = pullback(tuple(jax.numpy.asarray(ct) for ct in cts))
    _assert_close(run_backward(case, cts), want, case)


@pytest.mark.parametrize("case", TWICE, ids=str)
def test_second_derivative_agrees_with_jax(case: Case) -> None:
    """The VJP of the VJP, by operands and by cotangents, along random directions."""
    rng, xs = np.random.default_rng(2), operands(case)
    outs, _ = jax.vjp(primal(case), *xs)
    cts = tuple(like(rng, out) for out in outs)

    def first(xs, cts):
        return jax.vjp(primal(case), *xs)[1](cts)

    found, pullback = jax.vjp(first, xs, tuple(map(jax.numpy.asarray, cts)))
    seconds = [like(rng, x) for x in found]
    by_xs, by_cts = pullback(tuple(map(jax.numpy.asarray, seconds)))
    graph = backward_graph(case)
    wrt = [*case.active, *range(len(case.args), len(graph.inputs))]
    got = evaluate(gradient_graph(graph, wrt), *case.args, *cts, *seconds)
    _assert_close(got, [*by_xs, *by_cts], case)


def _assert_close(got, want, case: Case) -> None:
    for x, y, i in zip(got, want, [*case.active, *[None] * len(got)], strict=False):
        projected = case.within if i is not None else np.asarray
        np.testing.assert_allclose(
            projected(np.asarray(x)), projected(np.asarray(y)), rtol=1e-7, atol=1e-9
        )
