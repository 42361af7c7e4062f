"""The form of a gradient is a choice: what rules emit, and what they must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.ir.builder import Builder
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Value
from backpass.ir.ops import OPS
from backpass.ir.types import type_of
from ops.cases_indexing import GATHERS, WINDOWS, flags
from ops.draws import distinct, real, tied
from ops.harness import Case, backward_graph

pytestmark = pytest.mark.usefixtures("float64")


def ops_of(case: Case) -> set[str]:
    return {node.op.name for node in backward_graph(case).nodes[1:]}


ONE_HOT = (
    "one row",
    "one column, kept",
    "take along the last axis",
    "take along the first axis",
    "vmapped row",
    "batch and window",
    "swapped batches",
)


@pytest.mark.parametrize("label", GATHERS)
def test_one_pick_for_each_row_is_a_select(label: str) -> None:
    shape, indices, numbers, sizes = GATHERS[label]
    attrs = {"dimension_numbers": numbers, "slice_sizes": sizes, "fill_value": None}
    found = ops_of(Case("gather", (real(*shape), indices), attrs | flags("fill")))
    scatters = {name for name in found if name.startswith("scatter")}
    assert scatters == (set() if label in ONE_HOT else {"scatter-add"})


@pytest.mark.parametrize("label", [label for label in WINDOWS if label != "global"])
def test_pooling_needs_no_select_and_scatter(label: str) -> None:
    shape, attrs = WINDOWS[label]
    assert "select_and_scatter_add" not in ops_of(
        Case("reduce_window_max", (distinct(*shape),), attrs)
    )


def test_large_windows_are_left_to_select_and_scatter() -> None:
    shape, attrs = WINDOWS["global"]
    found = ops_of(Case("reduce_window_max", (distinct(*shape),), attrs))
    assert found == {"select_and_scatter_add"}


def test_what_a_window_picks_is_scattered_back() -> None:
    """The derivative of select-and-scatter's by its operand; dilated windows have no such op."""
    b, attrs = Builder(OPS), dict(WINDOWS["overlapping"][1])
    x = Value(type_of(real(7, 6)))
    attrs["select_prim"] = "ge"
    (out,) = b.emit("select_and_gather_add", [x, x], attrs)
    (node,) = b.nodes
    ct = Value(out.type)
    assert OPS[node.op.name].vjp(b, node, [ct], [False, True]) == [None, None]
    assert OPS[node.op.name].vjp(b, node, [ct], [True, False])[1] is None
    assert [node.op.name for node in b.nodes[1:]] == ["select_and_scatter_add"]


@pytest.mark.parametrize("shape, products", [((3, 3), 4), ((4, 3), 7), ((3, 4), 7)])
def test_nothing_leaves_the_range_of_a_square_matrix(shape, products) -> None:
    attrs = {"full_matrices": False, "compute_uv": True, "subset_by_index": None, "algorithm": None}
    graph = backward_graph(Case("svd", (real(*shape),), attrs))
    assert [node.op.name for node in graph.nodes].count("dot_general") == products


def test_average_pooling_in_tiles_is_a_broadcast() -> None:
    shape, attrs = WINDOWS["tiles"]
    found = ops_of(Case("reduce_window_sum", (real(*shape),), attrs))
    assert found == {"broadcast_in_dim", "reshape"}


@pytest.mark.parametrize("x, y, contract, batch", [
    ((2, 3), (3, 4), ((1,), (0,)), ((), ())),
    ((3, 2), (3, 4), ((0,), (0,)), ((), ())),
    ((3, 2), (4, 3), ((0,), (1,)), ((), ())),
    ((2, 3), (4, 3), ((1,), (1,)), ((), ())),
    ((2, 5, 3), (3, 4), ((2,), (0,)), ((), ())),
    ((2, 3, 4), (2, 4, 5), ((2,), (1,)), ((0,), (0,))),
    ((2, 4, 3), (2, 5, 4), ((1,), (2,)), ((0,), (0,))),
])  # fmt: skip
def test_gradients_of_products_are_products_alone(x, y, contract, batch) -> None:
    """Operands change places where that spares a transpose."""
    attrs = {"precision": None, "preferred_element_type": None}
    case = Case(
        "dot_general", (real(*x), real(*y)), attrs | {"dimension_numbers": (contract, batch)}
    )
    assert ops_of(case) == {"dot_general"}


def test_sort_is_not_run_again() -> None:
    b, x = Builder(OPS), Value(type_of(distinct(9)))
    b.emit("sort", [x], {"dimension": 0, "is_stable": True, "num_keys": 1})
    node = b.nodes.pop()
    (out,), pullback = OPS["sort"].linearise(b, node, [True], None)
    ct = Value(out.type)
    (found,) = pullback(b, [ct])
    assert [n.op.name for n in b.nodes].count("sort") == 1
    graph = b.graph("sort_vjp", [x, ct], [out, found])
    values, g = distinct(9), real(9)
    want, back = jax.vjp(jnp.sort, values)
    got = evaluate(graph, values, g)
    np.testing.assert_array_equal(got[0], want)
    np.testing.assert_array_equal(got[1], back(jnp.asarray(g))[0])


def test_unneeded_cotangents_cost_nothing() -> None:
    b = Builder(OPS)
    x, y = Value(type_of(real(3))), Value(type_of(real(3)))
    (out,) = b.emit("mul", [x, y])
    found = OPS["mul"].vjp(b, b.nodes[0], [Value(out.type)], [False, True])
    assert found[0] is None
    assert len(b.nodes) == 2


@pytest.mark.parametrize("reverse", [False, True])
def test_running_logsumexp_of_minus_infinities_has_a_gradient(reverse: bool) -> None:
    """JAX gives NaN here."""
    x = np.array([-np.inf, -np.inf, 1.0, -np.inf])
    case = Case("cumlogsumexp", (x,), {"axis": 0, "reverse": reverse})
    (found,) = evaluate(backward_graph(case), x, np.ones(4))
    assert np.isfinite(found).all()


def test_power_zero_of_zero_is_that_of_jax() -> None:
    """NaN by the base, which a test of JAX's own holds it to; 0 by the exponent."""
    case = Case("pow", (np.zeros(1), np.zeros(1)))
    found = evaluate(backward_graph(case), *case.args, np.ones(1))
    np.testing.assert_array_equal(np.ravel(found), jax.grad(jax.lax.pow, (0, 1))(0.0, 0.0))


def test_pooling_ties_go_to_the_first() -> None:
    shape, attrs = WINDOWS["tiles with a rest"]
    x = np.zeros_like(tied(*shape))
    case = Case("reduce_window_max", (x,), attrs)
    (found,) = evaluate(backward_graph(case), x, np.ones((2, 2)))
    want = np.zeros(shape)
    want[0:4:2, 0:6:3] = 1
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("name", ["exp", "sin", "tanh", "sqrt", "log1p"])
def test_the_accuracy_of_a_value_is_none_of_its_derivative(name: str) -> None:
    def fun(x):
        return getattr(jax.lax, name)(x, accuracy=jax.lax.AccuracyMode.HIGHEST)

    np.testing.assert_allclose(bp.grad(fun)(0.3), jax.grad(getattr(jax.lax, name))(0.3), rtol=1e-9)


def test_erfc_has_a_derivative_in_every_version() -> None:
    found = bp.grad(bp.grad(jax.lax.erfc))(0.3)
    np.testing.assert_allclose(found, jax.grad(jax.grad(jax.lax.erfc))(0.3), rtol=1e-9)
