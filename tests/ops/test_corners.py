"""Corners of every op: half precision, complex numbers, empty arrays, scalars, points of no slope.

The cases here are made from those of the case table: the first of each op.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import entr, logsumexp, xlog1py, xlogy

import backpass as bp
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Graph
from backpass.ir.op import no_gradient
from backpass.ir.ops import OPS, elementwise, special
from backpass.ir.types import is_inexact, type_of
from ops.cases import CASES
from ops.harness import Case, backward_graph, operands, primal
from ops.measure import inner, like

pytestmark = pytest.mark.usefixtures("float64")

FLOAT, COMPLEX = np.dtype(float), np.dtype(complex)


def _is_real(case: Case) -> bool:
    return all(np.asarray(case.args[i]).dtype == FLOAT for i in case.active)


def first_of_each_op() -> list[Case]:
    """The first case of each op with a gradient, by real operands that are not empty."""
    found: dict[str, Case] = {}
    for case in CASES:
        fits = OPS[case.op].vjp not in (None, no_gradient) and case.active and _is_real(case)
        if fits and all(type_of(x).size for x in case.args):
            found.setdefault(case.op, case)
    return list(found.values())


FIRST = first_of_each_op()


def cotangents(f: Any, xs: Sequence[Any], case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [case.seen(like(rng, out)) for out in jax.eval_shape(f, *xs)]


def with_operands(case: Case, xs: Sequence[Any]) -> Case:
    args = list(case.args)
    for i, x in zip(case.active, xs, strict=True):
        args[i] = x
    return replace(case, args=tuple(args))


def run(*programs: tuple[Graph, Sequence[Any]]) -> list[list[Any]]:
    """Results of graphs with their arguments, by one program."""
    graphs, args = zip(*programs, strict=True)

    def all_of_them(args: Any) -> Any:
        return [evaluate(graph, *xs) for graph, xs in zip(graphs, args, strict=True)]

    return jax.jit(all_of_them)([list(xs) for xs in args])


# Half precision

# LAPACK, FFT, complex numbers and the samplers have no half precision.
WIDE = frozenset(
    "cholesky triangular_solve tridiagonal_solve lu qr eigh svd eig fft complex conj "
    "random_gamma".split()
)
# Slopes that are large numbers, or differences of such.
ROUGH = {"digamma": 20, "lgamma": 8, "polygamma": 8, "zeta": 8, "regularized_incomplete_beta": 8}


def of_dtype(case: Case, dtype: Any) -> Case:
    """The same case with all floating and complex operands cast."""
    return replace(case, args=tuple(_cast(x, dtype) for x in case.args))


def _cast(x: Any, dtype: Any) -> Any:
    return np.asarray(x).astype(dtype) if is_inexact(type_of(x).dtype) else x


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("case", [c for c in FIRST if c.op not in WIDE], ids=lambda c: c.op)
def test_half_precision(case: Case, dtype: str) -> None:
    """The cotangent has the operand's dtype, and the value of double precision, rounded."""
    small = of_dtype(case, jnp.dtype(dtype))
    large = of_dtype(small, FLOAT)
    given = cotangents(primal(large), operands(large), large)
    programs = []
    for each in (small, large):
        outs = jax.eval_shape(primal(each), *operands(each))
        cts = [ct.astype(out.dtype) for ct, out in zip(given, outs, strict=True)]
        given = cts  # those of double precision are the short ones
        programs.append((backward_graph(each), [*each.args, *cts]))
    found, exact = run(*programs)
    tolerance = float(jnp.finfo(dtype).eps) * 8 * ROUGH.get(case.op, 1)
    for got, want in zip(found, exact, strict=True):
        assert got.dtype == jnp.dtype(dtype)
        slack = tolerance * float(np.max(np.abs(want), initial=0.0))
        np.testing.assert_allclose(np.asarray(got).astype(float), want, tolerance, slack)


# Complex numbers


def turned(case: Case) -> Case:
    """The same case with complex operands."""
    by = [x + 0.3j * (x[..., ::-1] if np.ndim(x) else x) for x in operands(case)]
    return of_dtype(with_operands(case, by), COMPLEX)


def accepts_complex(case: Case) -> bool:
    other = turned(case)
    with jax.enable_x64(True):
        try:
            jax.eval_shape(primal(other), *operands(other))
        except (TypeError, ValueError, NotImplementedError):
            return False
    return True


# Order is no smooth matter in the plane, vectors have a phase (the case table has theirs), and
# the attributes of `conj` and of a cast name a dtype.
REAL = frozenset(
    "sort top_k max min reduce_max reduce_min cummax cummin clamp reduce_window_max "
    "reduce_window_min select_and_scatter_add select_and_gather_add eigh svd eig conj "
    "convert_element_type".split()
)
TURNED = [c for c in FIRST if c.op not in REAL and not c.kinks and accepts_complex(c)]


@pytest.mark.parametrize("case", TURNED, ids=lambda c: c.op)
def test_complex(case: Case) -> None:
    """Against `jax.vjp` and finite differences along a complex direction."""
    other = turned(case)
    f, xs = primal(other), operands(other)
    cts = cotangents(f, xs, other)
    rng = np.random.default_rng(2)
    steps = [case.within(like(rng, x)) for x in xs]
    ends = [[x + by * d for x, d in zip(xs, steps, strict=True)] for by in (1e-6, -1e-6)]

    @jax.jit
    def program(args: Any, ends: Any, cts: Any) -> Any:
        found = evaluate(backward_graph(other), *args, *cts)
        want = jax.vjp(f, *operands(replace(other, args=args)))[1](tuple(cts)) if case.peer else ()
        return found, [f(*end) for end in ends], want

    found, (ahead, behind), want = program(other.args, ends, cts)
    slope = (inner(cts, ahead) - inner(cts, behind)) / 2e-6
    assert inner(found, steps) == pytest.approx(slope, rel=1e-4, abs=1e-6)
    if case.peer:
        for got, expected in zip(found, want, strict=True):
            got, expected = case.within(np.asarray(got)), case.within(np.asarray(expected))
            np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


# Shapes

ELEMENTWISE = {op.name for op in (*elementwise.OPS, *special.OPS)} - {
    "convert_element_type",
    "add_any",
}
ONE = [((),), ((0,),), ((1,),), ((2, 0, 3),)]
TWO = [
    ((), (3,)),
    ((3,), ()),
    ((3, 1), (1, 4)),
    ((), ()),
    ((0,), ()),
    ((0, 1), (1, 3)),
    ((0,), (0,)),
]
SHAPED = [c for c in FIRST if c.op in ELEMENTWISE and len(c.args) <= 2 and c.peer]


@pytest.mark.parametrize("case", SHAPED, ids=lambda c: c.op)
def test_scalars_empty_arrays_and_broadcasting(case: Case) -> None:
    """Each operand's cotangent has its shape, and JAX's value."""
    pairs = ONE if len(case.args) == 1 else TWO
    cases = [replace(case, args=tuple(map(np.resize, case.args, shapes))) for shapes in pairs]
    cts = [cotangents(primal(small), operands(small), small) for small in cases]

    @jax.jit
    def program(cts: Any) -> Any:
        return [
            (evaluate(backward_graph(small), *small.args, *ct), _by_jax(small, ct))
            for small, ct in zip(cases, cts, strict=True)
        ]

    for small, (found, wanted) in zip(cases, program(cts), strict=True):
        for got, want, x in zip(found, wanted, operands(small), strict=True):
            assert (got.shape, got.dtype) == (x.shape, x.dtype)
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def _by_jax(case: Case, cts: Any) -> Any:
    return jax.vjp(primal(case), *map(np.asarray, operands(case)))[1](tuple(cts))


# Points of no slope: JAX's choice

ZERO, TIE, INF = np.zeros(3), np.array([1.0, 2.0, 2.0, 1.0]), np.inf
POINTS: dict[str, tuple[Any, ...]] = {
    "x**2.0 at 0": (lambda x: x**2.0, ZERO),
    "x**0.5 at 0": (lambda x: x**0.5, ZERO),
    "x**-1 at 0": (lambda x: x**-1, ZERO),
    "0**y": (lambda y: jnp.zeros(3) ** y, np.array([0.0, 1.0, 2.5])),
    "(-2)**y": (lambda y: jnp.full(3, -2.0) ** y, np.array([0.0, 1.0, 2.0])),
    "sqrt at 0": (jnp.sqrt, ZERO),
    "rsqrt at 0": (jax.lax.rsqrt, ZERO),
    "cbrt at 0": (jnp.cbrt, ZERO),
    "log at 0": (jnp.log, ZERO),
    "log1p at -1": (jnp.log1p, np.array([-1.0, 0.0])),
    "norm at 0": (jnp.linalg.norm, ZERO),
    "norm 1 at 0": (lambda x: jnp.linalg.norm(x, 1), ZERO),
    "norm inf with ties": (lambda x: jnp.linalg.norm(x, jnp.inf), TIE),
    "safe norm at 0": (lambda x: jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x))), ZERO),
    "where over a bad branch": (lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0), np.array([0.0, 1])),
    "max with ties": (jnp.max, TIE),
    "min with ties": (jnp.min, TIE),
    "maximum with ties": (lambda x: jnp.maximum(x, x[::-1]), TIE),
    "maximum of x and x": (lambda x: jnp.maximum(x, x), TIE),
    "minimum with a constant": (lambda x: jnp.minimum(x, 2.0), TIE),
    "maximum of nan": (lambda x: jnp.maximum(x, 1.0), np.array([np.nan, 1.0, 2.0])),
    "max of nan": (jnp.max, np.array([np.nan, 1.0, 2.0])),
    "nanmax": (jnp.nanmax, np.array([np.nan, 1.0, 2.0])),
    "nansum": (jnp.nansum, np.array([np.nan, 1.0, 2.0])),
    "relu at 0": (jax.nn.relu, ZERO),
    "relu6 at its ends": (jax.nn.relu6, np.array([0.0, 6.0, 7.0])),
    "leaky relu at 0": (jax.nn.leaky_relu, ZERO),
    "abs at 0": (jnp.abs, np.array([0.0, -0.0, 1.0])),
    "sign at 0": (jnp.sign, ZERO),
    "clip at its ends": (lambda x: jnp.clip(x, -1, 1), np.array([-1.0, 1.0, 2.0])),
    "clip by x": (lambda x: jnp.clip(jnp.array([0.0, 1.0, 3.0]), x, x + 1), np.array([0.0, 1, 1])),
    "logsumexp of -inf": (logsumexp, np.array([-INF, 0.0, 1.0])),
    "logsumexp of nothing but -inf": (logsumexp, np.array([-INF, -INF])),
    "softmax of -inf": (lambda x: jax.nn.softmax(x) @ jnp.arange(3.0), np.array([-INF, 0.0, 1.0])),
    "logaddexp of -inf": (lambda x: jnp.logaddexp(x, x), np.array([-INF, 0.0])),
    "logaddexp with -inf": (lambda x: jnp.logaddexp(x, -INF), np.array([-INF, 0.0])),
    "softplus far out": (jax.nn.softplus, np.array([-1e3, 0.0, 1e3])),
    "log_sigmoid far out": (jax.nn.log_sigmoid, np.array([-1e3, 0.0, 1e3])),
    "sigmoid far out": (jax.nn.sigmoid, np.array([-1e3, 0.0, 1e3])),
    "tanh far out": (jnp.tanh, np.array([-1e3, 0.0, 1e3])),
    "gelu far out": (jax.nn.gelu, np.array([-1e3, 0.0, 1e3])),
    "expm1 far out": (jnp.expm1, np.array([-1e3, 0.0])),
    "prod with one zero": (jnp.prod, np.array([0.0, 2.0, 3.0])),
    "prod with two zeros": (jnp.prod, np.array([0.0, 2.0, 0.0])),
    "cumprod with zeros": (jnp.cumprod, np.array([2.0, 0.0, 3.0, 0.0])),
    "arctan2 at the origin": (lambda x: jnp.arctan2(x, x), ZERO),
    "hypot at the origin": (lambda x: jnp.hypot(x, x), ZERO),
    "x / x at 0": (lambda x: x / x, ZERO),
    "sinc at 0": (jnp.sinc, np.array([0.0, 0.5, 1.0])),
    "xlogy at 0": (lambda x: xlogy(x, x), np.array([0.0, 1.0])),
    "xlogy of 0 by y": (lambda y: xlogy(0.0, y), np.array([0.0, 1.0])),
    "xlog1py at 0": (lambda x: xlog1py(x, x), np.array([0.0, 1.0])),
    "entr at 0": (entr, np.array([0.0, 1.0, 0.5])),
    "std of a constant": (jnp.std, np.ones(3)),
    "var of a constant": (jnp.var, np.ones(3)),
    "median with ties": (jnp.median, TIE),
    "sort with ties": (lambda x: jnp.sort(x) @ jnp.arange(4.0), TIE),
    "sort of pairs, one of which is read": (
        lambda x: jax.lax.sort((x, x * x), num_keys=1)[1] @ jnp.arange(4.0),
        np.array([0.5, -2.0, 3.0, 1.0]),
    ),
    "argsort with ties": (lambda x: x[jnp.argsort(x)] @ jnp.arange(4.0), TIE),
    "top_k with ties": (lambda x: jax.lax.top_k(x, 2)[0] @ jnp.arange(2.0), TIE),
    "fmod at 0": (lambda x: jnp.fmod(x, 2.0), np.array([0.0, 2.0, -3.0])),
    "mod at a multiple": (lambda x: jnp.mod(x, 2.0), np.array([0.0, 2.0, -3.0])),
    "complex abs at 0": (lambda x: jnp.abs(x + 1j * x), ZERO),
    "angle at 0": (lambda x: jnp.angle(x + 1j * x), np.array([1.0, 2.0])),
    "complex sqrt at 0": (lambda x: jnp.sqrt(x + 0j).real, np.array([1.0, 4.0])),
    "i0e at 0": (jax.lax.bessel_i0e, ZERO),
    "i1e at 0": (jax.lax.bessel_i1e, ZERO),
    "erfinv at its ends": (jax.lax.erf_inv, np.array([-1.0, 0.0, 1.0])),
    "arcsin at its ends": (jnp.arcsin, np.array([-1.0, 0.0, 1.0])),
    "arccosh at 1": (jnp.arccosh, np.array([1.0, 2.0])),
    "arctanh at 1": (jnp.arctanh, np.array([1.0, 0.5])),
}


@pytest.mark.filterwarnings("ignore::backpass.ZeroGradientWarning")
@pytest.mark.parametrize("name", POINTS)
def test_where_there_is_no_slope_jax_decides(name: str) -> None:
    f, x = POINTS[name]

    def loss(x):
        return jnp.sum(f(x))

    found, wanted = bp.compile(bp.grad(loss))(x), jax.jit(jax.grad(loss))(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.int32])
def test_a_power_of_zero_has_the_slope_of_jax(kind: Any) -> None:
    """A floating exponent 0 gives NaN, an integer one 0."""

    def fun(x: Any) -> Any:
        return jnp.sum(x ** jnp.zeros(3, kind))

    np.testing.assert_array_equal(bp.grad(fun)(ZERO), jax.grad(fun)(ZERO))


def test_the_table_is_walked() -> None:
    assert len(FIRST) > 90
    assert len(TURNED) > 40
    assert all(is_inexact(np.asarray(case.args[i]).dtype) for case in FIRST for i in case.active)


def test_eigenvalues_have_a_second_derivative_without_a_word_about_vectors():
    """The first one asks for vectors, whose derivative the program need not vouch for then."""
    x = np.array([[1.0, 0.3, 0.1], [0.2, 2.0, 0.4], [0.5, 0.1, 4.0]])

    def cubes(t, vouched):
        sides = {"compute_left_eigenvectors": True, "compute_right_eigenvectors": False}
        values, _ = jax.lax.linalg.eig(x + t * x.T, **sides, enable_eigvec_derivs=vouched)
        return jnp.sum(values.real**3)

    ours = bp.grad(bp.grad(cubes))(0.1, False)
    np.testing.assert_allclose(ours, jax.grad(jax.grad(cubes))(0.1, True), rtol=1e-8)
