"""Every op's rules against its lowering: types, and first and second derivatives."""

import jax
import numpy as np
import pytest

from backpass.ir.builder import Builder
from backpass.ir.graph import Value
from backpass.ir.op import no_gradient
from backpass.ir.ops import OPS
from backpass.ir.parser import parse
from backpass.ir.types import type_of
from ops.cases import CASES, ELSEWHERE
from ops.harness import Case, no_regions
from ops.measure import derivatives, inner

DIFFERENTIABLE = [c for c in CASES if OPS[c.op].vjp not in (None, no_gradient) and c.active]
# Their attributes hold devices and layouts, which have no text.
OPAQUE = ("device_put", "sharding_constraint", "layout_constraint")

pytestmark = pytest.mark.usefixtures("float64")


def test_every_op_has_a_case() -> None:
    assert set(OPS) - {case.op for case in CASES} == set(ELSEWHERE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_rule_tells_what_the_lowering_gives(case: Case) -> None:
    b, op = Builder(OPS), OPS[case.op]
    told = b.emit(op, [Value(type_of(x)) for x in case.args], case.attrs)
    outs = jax.eval_shape(lambda *args: op.lower(args, case.attrs, (), no_regions), *case.args)
    assert [value.type for value in told] == [type_of(out) for out in outs]
    flops = op.flops(b.nodes[0])
    assert isinstance(flops, int)
    assert flops >= 0


@pytest.mark.parametrize("case", [c for c in CASES if c.op not in OPAQUE], ids=str)
def test_text_of_a_node_is_read_back(case: Case) -> None:
    b = Builder(OPS)
    inputs = [Value(type_of(x)) for x in case.args]
    graph = b.graph("f", inputs, b.emit(case.op, inputs, case.attrs))
    assert parse(str(graph)) == graph


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_vjp(case: Case) -> None:
    """Against finite differences and `jax.vjp`; then the VJP of the VJP against JAX's."""
    found = derivatives(case)
    if not case.kinks:
        slope = (inner(found.cts, found.ahead) - inner(found.cts, found.behind)) / found.width
        assert inner(found.first, found.directions) == pytest.approx(slope, rel=1e-5, abs=1e-6)
    if case.peer:
        assert_close(found.first, found.jax_first, case)
    if case.peer and case.orders > 1:
        assert_close(found.second, found.jax_second, case)


def assert_close(got, want, case: Case) -> None:
    """Compare; the operands' own cotangents, which come first, as `case.within` shows them."""
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        show = case.within if i < len(case.active) else np.asarray
        x, y = show(np.asarray(x)), show(np.asarray(y))
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)
