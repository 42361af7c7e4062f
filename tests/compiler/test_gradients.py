"""`bp.grad` and `bp.value_and_grad`: signatures, trees and types of `jax.grad`, wherever it is called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp

X = np.array([0.5, -1.0, 2.0], np.float32)
PARAMS = {"w": np.ones((3, 2), np.float32), "b": {"c": np.zeros(2, np.float32), "none": None}}
KINDS = {"grad": (bp.grad, jax.grad), "value_and_grad": (bp.value_and_grad, jax.value_and_grad)}


def same(found, expected):
    """Equal trees, shapes, dtypes and weak types, close numbers."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (np.shape(ours), ours.dtype) == (np.shape(theirs), theirs.dtype)
        if ours.dtype != jax.dtypes.float0:
            assert getattr(ours, "weak_type", False) == getattr(theirs, "weak_type", False)
            np.testing.assert_allclose(
                np.asarray(ours, np.complex128),
                np.asarray(theirs, np.complex128),
                rtol=2e-5,
                atol=1e-6,
            )


def network(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"] + params["b"]["c"]) ** 2)


def three(x, y, z=2.0):
    return jnp.sum(jnp.sin(x) * y) * z


CASES = {
    "array": (lambda x: jnp.sum(x**3), (X,), {}),
    "tree": (network, (PARAMS, X), {}),
    "second": (three, (X, X), {"argnums": 1}),
    "last": (three, (X, X), {"argnums": -1}),
    "pair": (three, (X, X), {"argnums": (0, 1)}),
    "pair, turned": (three, (X, X, 3.0), {"argnums": (2, 0)}),
    "one in a tuple": (three, (X, X), {"argnums": (1,)}),
    "list": (three, (X, X), {"argnums": [0, -1]}),
    "python number": (lambda x: x**3, (2.0,), {}),
    "python number of a strong loss": (lambda x: jnp.sum(X * x), (2.0,), {}),
    "numpy scalar": (lambda x: x**3, (np.float32(2),), {}),
    "tree of numbers": (lambda t: t["a"] * t["b"][0], ({"a": 2.0, "b": [3.0]},), {}),
    "empty tree": (lambda t, x: jnp.sum(x), ({}, X), {}),
    "aux": (lambda x: (jnp.sum(x * x), {"y": jnp.sin(x), "n": 3}), (X,), {"has_aux": True}),
    "aux is a list": (lambda x: [jnp.sum(x * x), [x, None]], (X,), {"has_aux": True}),
    "aux is none": (lambda x: (jnp.sum(x * x), None), (X,), {"has_aux": True}),
    "aux and pair": (lambda x, y: (jnp.vdot(x, y), x), (X, X), {"has_aux": True, "argnums": (0, 1)}),
    "integers": (lambda n, x: jnp.sum(n * x), (np.int32([1, 2, 3]), X), {"allow_int": True, "argnums": (0, 1)}),
    "tree with integers": (
        lambda t: jnp.sum(t["x"]) * t["n"], ({"x": X, "n": np.int32(3)},), {"allow_int": True}
    ),
    "booleans": (lambda m: jnp.sum(jnp.where(m, X, 0)), (X > 0,), {"allow_int": True}),
    "holomorphic": (lambda z: jnp.sum(z**3 + jnp.exp(z)), (np.complex64(X + 1j),), {"holomorphic": True}),
    "complex": (lambda z: jnp.sum(jnp.abs(z) ** 2 + z.real), (np.complex64(X + 2j),), {}),
    "bfloat16": (lambda x: jnp.sum(x * x), (jnp.bfloat16(X),), {}),
    "float16 to float32": (lambda x: jnp.sum(x.astype(jnp.float32) ** 2), (np.float16(X),), {}),
    "loss does not depend": (lambda x: jnp.float32(3.0), (X,), {}),
    "loss is a literal": (lambda x: 3.0, (X,), {}),
    "loss is the input": (lambda x: x, (2.0,), {}),
    "value of a literal": (lambda x: (x * 0 + 1.0, 2.0), (2.0,), {"has_aux": True}),
    "no elements": (lambda x: jnp.sum(x), (np.zeros((0, 3), np.float32),), {}),
    "partial": (functools.partial(three, z=5.0), (X, X), {}),
    "jitted": (jax.jit(three), (X, X), {"argnums": (0, 1)}),
    "ufunc": (jnp.sin, (0.5,), {}),
}  # fmt: skip

WAYS = {
    "eager": lambda f: f,
    "compile": lambda f: bp.compile(f, debug=True),
    "jit": jax.jit,
}


@functools.cache
def signature_of_jax(name, transform):
    fun, args, options = CASES[name]
    return jax.jit(transform(fun, **options))(*args)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_signature(name, kind, way):
    fun, args, options = CASES[name]
    ours, theirs = KINDS[kind]
    same(WAYS[way](ours(fun, **options))(*args), signature_of_jax(name, theirs))


def test_keywords_and_defaults():
    same(bp.grad(three)(X, X, z=3.0), jax.grad(three)(X, X, z=3.0))
    same(bp.grad(three)(X, y=X), jax.grad(three)(X, y=X))
    same(bp.compile(bp.grad(three))(X, y=X, z=1.0), jax.grad(three)(X, y=X, z=1.0))


def test_it_looks_like_the_function():
    assert (bp.grad(network).__name__, bp.value_and_grad(network).__wrapped__) == (
        "network",
        network,
    )


def test_other_arguments_are_not_traced():
    """As in `jax.grad`, Python control flow on what is not differentiated by is allowed."""

    def fun(x, n, name):
        return jnp.sum(x) * (2 if n > 1 and name == "a" else 3)

    assert float(bp.grad(fun)(X, 5, "a")[0]) == 2.0
    assert float(bp.grad(fun)(X, np.int32(0), "a")[0]) == 3.0


@pytest.mark.parametrize("wide", [False, True])
def test_precision_follows_x64(wide):
    with jax.enable_x64(wide):
        found = bp.grad(lambda x: jnp.sum(jnp.sin(x)))(np.linspace(0.0, 1.0, 3))
        assert found.dtype == (np.float64 if wide else np.float32)


# Composition

NESTS = {
    "vmap over examples": lambda g: jax.vmap(g(network), (None, 0))(PARAMS, np.stack([X, 2 * X])),
    "vmap over both": lambda g: jax.vmap(g(three))(np.stack([X, X]), np.stack([X, 2 * X])),
    "vmap, out of the last": lambda g: jax.vmap(g(three), (1, None), 1)(np.stack([X, X], 1), X),
    "vmap of vmap": lambda g: jax.vmap(jax.vmap(g(jnp.sin)))(np.stack([X, X])),
    "vmap of nothing": lambda g: jax.vmap(lambda i: g(jnp.sum)(X) * i)(X),
    "named axis": lambda g: jax.vmap(
        lambda x: g(lambda v: jnp.sum(v**2 * (1 + jax.lax.axis_index("i"))))(x), axis_name="i"
    )(np.stack([X, X])),
    "jit": lambda g: jax.jit(g(network))(PARAMS, X),
    "scan": lambda g: jax.lax.scan(
        lambda p, x: (jax.tree.map(lambda a, b: a - 0.1 * b, p, g(network)(p, x)), x[0]),
        PARAMS, np.stack([X, X]),
    ),
    "fori_loop": lambda g: jax.lax.fori_loop(0, 3, lambda i, x: x - 0.1 * g(lambda v: jnp.sum(v**4))(x), X),
    "while_loop": lambda g: jax.lax.while_loop(
        lambda x: jnp.sum(x**2) > 0.1, lambda x: x - 0.1 * g(lambda v: jnp.sum(v**2))(x), X
    ),
    "cond": lambda g: jax.lax.cond(X[0] > 0, g(lambda x: jnp.sum(x**2)), jnp.sin, X),
    "map": lambda g: jax.lax.map(g(lambda x: jnp.sum(x**3)), np.stack([X, X])),
    "jvp": lambda g: jax.jvp(g(lambda x: jnp.sum(x**3)), (X,), (X,)),
    "vjp": lambda g: jax.vjp(g(lambda x: jnp.sum(x**3)), X)[1](X),
    "jacfwd": lambda g: jax.jacfwd(g(lambda x: jnp.sum(jnp.sin(x) * x[0])))(X),
    "jacrev": lambda g: jax.jacrev(g(lambda x: jnp.sum(jnp.sin(x) * x[0])))(X),
    "of jvp": lambda g: g(lambda x: jax.jvp(lambda v: jnp.sum(v**3), (x,), (X,))[1])(X),
    "of vjp": lambda g: g(lambda x: jnp.sum(jax.vjp(lambda v: v**3, x)[1](X)[0]))(X),
    "of linearize": lambda g: g(lambda x: jnp.sum(jax.linearize(lambda v: v**3, x)[1](X)))(X),
    "of hessian": lambda g: g(lambda x: jnp.sum(jax.hessian(lambda v: jnp.sum(v**4))(x)))(X),
    "of jacfwd": lambda g: g(lambda x: jnp.sum(jax.jacfwd(lambda v: jnp.sin(v * x[0]))(x)))(X),
    "of vmap": lambda g: g(lambda x: jnp.sum(jax.vmap(lambda v: v**2 * x)(x)))(X),
    "of vmap of grad": lambda g: g(
        lambda w: jnp.sum(jax.vmap(g(lambda x: jnp.sum(jnp.sin(w * x))))(np.stack([X, 2 * X])) ** 2)
    )(X),
    "of grad": lambda g: g(lambda x: jnp.sum(g(lambda v: jnp.sum(v**4))(x)))(X),
    "of grad in grad": lambda g: g(
        lambda x: jnp.sum(x * g(lambda v: jnp.sum(v**2 * g(lambda u: jnp.sum(u**3 * v))(v)))(x))
    )(X),
    "of checkpoint": lambda g: g(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x)))))(X),
    "custom_vjp around": lambda g: g(straight)(X),
    "remat around": lambda g: jax.checkpoint(g(lambda x: jnp.sum(x**3)))(X),
    "twice by two": lambda g: g(lambda x, y: jnp.sum(g(three)(x, y) * y), (0, 1))(X, 2 * X),
    "closing over a variable": lambda g: g(lambda x: jnp.sum(g(lambda v: jnp.sum(v * x * x))(x)))(X),
    "stop_gradient": lambda g: g(lambda x: jnp.sum(x * jax.lax.stop_gradient(g(jnp.sum)(x) * x)))(X),
}  # fmt: skip


@jax.custom_vjp
def straight(x):
    return jnp.sum(jnp.round(x) * x)


straight.defvjp(lambda x: (straight(x), x), lambda x, g: (g * x,))

AROUND = {
    "eager": lambda call: call(),
    "compile": lambda call: bp.compile(call, debug=True)(),
    "jit": lambda call: jax.jit(call)(),
}


@functools.cache
def by_jax(program):
    return jax.jit(lambda: program(jax.grad))()


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", NESTS)
def test_nested(name, around):
    found = AROUND[around](lambda: NESTS[name](bp.grad))
    same(found, by_jax(NESTS[name]))


@pytest.mark.parametrize("around", AROUND)
def test_collective_without_a_derivative(around):
    """A clear error that names the op and its line, as JAX has none either.

    Those with one are in tests/compiler/test_sharding.py.
    """

    def call():
        grad = bp.grad(lambda v: jnp.sum(v * jax.lax.pmax(v, "i")))
        return jax.vmap(grad, axis_name="i")(np.stack([X, X]))

    with pytest.raises(bp.MissingRuleError, match="no VJP rule for 'pmax'") as caught:
        AROUND[around](call)
    assert "test_gradients.py:" in str(caught.value)


@pytest.mark.parametrize("outer", ["ours", "theirs"])
@pytest.mark.parametrize("inner", ["ours", "theirs"])
def test_mixed_with_jax(outer, inner):
    pick = {"ours": bp.grad, "theirs": jax.grad}
    both = pick[outer](lambda x: jnp.sum(jnp.sin(pick[inner](lambda v: jnp.sum(v**4))(x))))
    same(both(X), jax.grad(lambda x: jnp.sum(jnp.sin(jax.grad(lambda v: jnp.sum(v**4))(x))))(X))
    same(bp.compile(both)(X), jax.jit(both)(X))


def test_per_example_gradients_are_clipped():
    """Differentially private training: the norm of each example's gradient."""

    def clipped(grad):
        def run(params, xs):
            grads = jax.vmap(grad(network), (None, 0))(params, xs)
            norms = jnp.sqrt(sum(jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(grads)))
            scale = jnp.minimum(1, 1 / norms)
            return jax.tree.map(lambda g: jnp.einsum("b...,b->...", g, scale), grads)

        return run

    xs = np.stack([X, 2 * X, -X])
    same(
        bp.compile(clipped(bp.grad), debug=True)(PARAMS, xs), jax.jit(clipped(jax.grad))(PARAMS, xs)
    )


# What eager calls cost


def test_eager_calls_are_compiled_once():
    count = []

    def fun(x):
        count.append(1)
        return jnp.sum(jnp.sin(x) ** 2)

    grad = bp.grad(fun)
    first = grad(X)
    with jax.log_compiles(False), jax.checking_leaks():
        second = grad(X + 0)
    np.testing.assert_array_equal(first, second)
    assert len(count) == 2, "Python runs at each call, as in jax.grad"


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_equal_functions_with_other_constants_do_not_share_a_result(scale):
    """Programs are shared by what they compute; numbers closed over are a part of that."""
    table = np.full(3, scale, np.float32)
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(x * table))(X), table)
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(x * scale))(X), table)
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(x * jnp.asarray(table)))(X), table)


def test_inner_functions_with_other_rules_do_not_share_a_result():
    """The same name and shape, another custom rule."""
    found = []
    for factor in (2.0, 5.0):

        @jax.custom_vjp
        def rule(x):
            return x

        rule.defvjp(lambda x: (x, None), lambda _, g, factor=factor: (factor * g,))
        found.append(float(bp.grad(lambda x: jnp.sum(rule(x)))(X)[0]))  # noqa: B023
    assert found == [2.0, 5.0]


def test_callbacks_of_equal_shape_do_not_share_a_result():
    found = []
    for factor in (2.0, 5.0):

        def fun(x, factor=factor):
            y = jax.pure_callback(lambda v: np.asarray(v) * factor, x, jax.lax.stop_gradient(x))
            return jnp.sum(x * y)

        found.append(float(bp.grad(fun)(X)[2]))
    assert found == [4.0, 10.0]


def test_power_at_the_origin_is_that_of_jax():
    """NaN for a floating exponent of 0, though not for an integer one."""
    for kind in (jnp.float32, jnp.int32):
        y = jnp.array([0, 1, 2], kind)
        fun = functools.partial(lambda x, y: jnp.sum(jax.lax.pow(x, y)), y=y)
        np.testing.assert_array_equal(bp.grad(fun)(jnp.zeros(3)), jax.grad(fun)(jnp.zeros(3)))


def test_a_product_that_names_its_dtype():
    x, y = jnp.arange(3, dtype=jnp.bfloat16), jnp.full(3, 3, jnp.float16)
    fun = functools.partial(jax.lax.mul, out_dtype=jnp.float32)
    (ours, pull), (theirs, jax_pull) = bp.vjp(fun, x, y), jax.vjp(fun, x, y)
    assert ours.dtype == theirs.dtype == jnp.float32
    for found, expected in zip(pull(ours), jax_pull(theirs), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_functions_of_one_body_keep_their_own_custom_gradients():
    """JAX makes these rules in one place of its own, of what the user gives."""
    found = []
    for slope in (1.0, 3.0):

        @jax.custom_gradient
        def fun(x, slope=slope):
            return x**2, lambda ct: (slope * ct,)

        found.append(float(bp.grad(lambda x, fun=fun: fun(x))(2.0)))
    assert found == [1.0, 3.0]


def test_a_convolution_without_output_has_a_gradient_of_zeros():
    x, k = jnp.ones((1, 1, 0, 4)), jnp.ones((1, 1, 1, 2))
    _, pull = bp.vjp(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), x, k)
    ct_x, ct_k = pull(jnp.ones((1, 1, 0, 3)))
    assert ct_x.shape == x.shape
    np.testing.assert_array_equal(ct_k, jnp.zeros_like(k))


def closing(grad, part):
    """A function of y: the gradient of one whose rule closes over y."""

    def fun(y):
        @jax.custom_vjp
        def inner(x):
            return 2 * jnp.sin(x)

        if part == "forward":
            inner.defvjp(lambda x: (inner(x), y), lambda y, ct: (2 * jnp.cos(y) * ct,))
        else:
            inner.defvjp(lambda x: (inner(x), ()), lambda _, ct: (2 * jnp.cos(y) * ct,))
        return grad(inner)(jnp.ones_like(y))

    return fun


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize(
    "through", [jax.jit, jax.grad, bp.grad, bp.compile, lambda f: lambda y: jax.vmap(f)(y[None])]
)
def test_custom_rules_that_close_over_a_tracer(part, through):
    y = jnp.float32(4)
    other = jax.grad if through is bp.grad else jax.jit if through is bp.compile else through
    expected = other(closing(jax.grad, part))(y)
    np.testing.assert_allclose(through(closing(bp.grad, part))(y), expected, rtol=1e-6)


def test_a_rule_holds_for_the_value_of_a_gradient():
    """Of the function, of `value_and_grad` of it, and of that of it."""

    @jax.custom_vjp
    def fun(x):
        return jnp.cos(2 * x) / 2

    fun.defvjp(lambda x: (fun(x), x), lambda x, ct: (3 * ct,))
    same_value = fun
    for _ in range(3):
        assert float(bp.grad(same_value)(1.0)) == 3.0
        same_value = functools.partial(lambda f, x: bp.value_and_grad(f)(x)[0], same_value)
