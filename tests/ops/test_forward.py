"""Forward mode of every op, which transposes its VJP, against reverse mode and JAX's own."""

import jax
import numpy as np
import pytest

from backpass.ir import evaluate
from backpass.ir.builder import Builder
from backpass.ir.graph import Value
from backpass.ir.ops import OPS
from backpass.ir.types import type_of
from backpass.ir.verifier import verify
from backpass.passes.autodiff import Forward, linearised
from ops.harness import Case, backward_graph, operands, primal
from ops.measure import inner, like
from ops.test_rules import DIFFERENTIABLE

pytestmark = pytest.mark.usefixtures("float64")


# JAX's own two modes choose different ones of equal maxima; ours agree with its reverse mode.
TIES = ("reduce_window_max-overlapping, ties", "reduce_window_min-overlapping, ties")
# Tangents and cotangents are rounded, each for itself.
ROUNDING = ("reduce_precision",)


def node_graph(case: Case):
    b = Builder(OPS)
    inputs = [Value(type_of(x)) for x in case.args]
    return b.graph(case.op, inputs, b.emit(case.op, inputs, case.attrs))


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_jvp(case: Case) -> None:
    """`J t` against `jax.jvp`, and `ct . J t` against `J^T ct . t`."""
    rng = np.random.default_rng(0)
    graph = node_graph(case)
    active = [i in case.active for i in range(len(case.args))]
    joint = Forward().region(graph, active)
    verify(joint)
    directions = [case.within(like(rng, x)) for x in operands(case)]
    cts = [case.seen(like(rng, v)) for v in graph.outputs if v.type.is_inexact]
    first, second, residuals = linearised(graph, active)
    count = len(graph.outputs)

    @jax.jit
    def program(args, xs, directions, cts):
        kept = evaluate(first, *args)
        given = [args[i] if kind == "input" else kept[count + i] for kind, i in residuals]
        return (
            evaluate(joint, *args, *directions),
            evaluate(second, *given, *directions),
            evaluate(backward_graph(case), *args, *cts),
            jax.jvp(primal(case), xs, directions) if case.peer else ((), ()),
        )

    found, again, pulled, (primals, wanted) = program(
        case.args, tuple(operands(case)), tuple(directions), cts
    )
    outs, tangents = found[:count], found[count:]
    inexact = [x for x, v in zip(outs, graph.outputs, strict=True) if v.type.is_inexact]
    if case.peer and str(case) not in TIES:
        close(map(case.seen, inexact), map(case.seen, primals))
        close([case.seen(t) for t in tangents], [case.seen(t) for t in wanted])
    if case.op not in ROUNDING:
        there, back = inner(cts, tangents), inner(pulled, directions)
        assert there == pytest.approx(back, rel=1e-7, abs=1e-7, nan_ok=True)
    close(again, tangents)


def close(got, want) -> None:
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)
