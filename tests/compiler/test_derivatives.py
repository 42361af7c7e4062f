"""vjp, jvp, linearize, Jacobians and Hessians: JAX's signatures, trees, types and nesting."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp

X = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3) / 3
TREE = {"a": X, "b": (X[0], np.float32(2))}
FLOAT0 = jax.dtypes.float0


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def same(found, expected, rtol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if ours.dtype != FLOAT0:
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-6)


def cotangent(y):
    return jax.tree.map(
        lambda v: (
            np.asarray(jnp.sin(v) + 1, v.dtype)
            if jnp.issubdtype(v.dtype, jnp.inexact)
            else np.zeros(v.shape, FLOAT0)
        ),
        y,
    )


def mixed(tree, n=2):
    return {
        "s": jnp.sin(tree["a"] @ tree["b"][0]) * tree["b"][1],
        "n": jnp.int32(n * 2),
        "t": (tree["a"],),
    }


FUNCTIONS = {
    "tree": (mixed, (TREE,)),
    "two arguments": (lambda x, y: jnp.outer(x[0], y) * x[1, 2], (X, X[1])),
    "integer argument": (lambda x, n: (x * n, n + 1), (X, np.int32(3))),
    "no argument is inexact": (lambda n: n + 1, (np.int32(3),)),
    "argument not read": (lambda x, y: x * 2, (X, X)),
    "output is constant": (lambda x: (jnp.ones(2), x), (X,)),
    "identity": (lambda x: x, (X,)),
    "complex": (lambda z: z * z.conj() + jnp.exp(z), (X.astype(np.complex64) * (1 + 2j),)),
    "real to complex and back": (lambda x: jnp.abs(jnp.fft.fft(x)), (X,)),
    "python number": (lambda x: jnp.sin(x) * 2, (1.5,)),
    "bfloat16": (lambda x: x * 2, (X.astype(jnp.bfloat16),)),
    "calls and rules": (lambda x: jax.nn.relu(jnp.where(x > 1, x, -x)) + jax.nn.silu(x), (X,)),
    "scan": (lambda x: lax.scan(lambda c, v: (c * v, jnp.sin(c)), x[0], x), (X,)),
    "empty": (lambda x: jnp.sin(x), (np.zeros((0, 3), np.float32),)),
    "nothing": (lambda: (), ()),
    "none in a tree": (lambda t: {"y": t["x"] ** 2, "no": None}, ({"x": X, "no": None},)),
}
WAYS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "compile": lambda f: bp.compile(f, debug=True),
}


COMBINATIONS = [  # bp.compile wants a function that computes something
    (name, way) for name, (_, args) in FUNCTIONS.items() for way in WAYS if args or way != "compile"
]


def pulled(fun, vjp):
    def run(*args):
        y, pullback = vjp(fun, *args)
        return y, [ct for ct in pullback(cotangent_like(y)) if not is_float0(ct)]

    return run


def cotangent_like(y):
    return jax.tree.map(
        lambda v: (
            jnp.sin(v) + 1 if jnp.issubdtype(v.dtype, jnp.inexact) else np.zeros(v.shape, FLOAT0)
        ),
        y,
    )


@cache
def vjp_of_jax(name):
    fun, args = FUNCTIONS[name]
    return jax.jit(pulled(fun, jax.vjp))(*args)


@pytest.mark.parametrize("name, way", COMBINATIONS)
def test_vjp(name, way):
    fun, args = FUNCTIONS[name]

    same(WAYS[way](pulled(fun, bp.vjp))(*args), vjp_of_jax(name))


def is_float0(x):
    return getattr(x, "dtype", None) == FLOAT0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float0_where_jax_has_it(name):
    fun, args = FUNCTIONS[name]
    y, pullback = bp.vjp(fun, *args)
    expected, theirs = jax.vjp(fun, *args)
    same(y, expected)
    same(pullback(cotangent(expected)), theirs(cotangent(expected)), rtol=2e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp_and_linearize(name):
    fun, args = FUNCTIONS[name]
    tangents = cotangent(jax.tree.map(jnp.asarray, args))
    expected = jax.jvp(fun, args, tangents)
    same(bp.jvp(fun, args, tangents), expected)
    y, linear = bp.linearize(fun, *args)
    same((y, linear(*tangents)), expected)


def test_has_aux():
    def fun(x):
        return jnp.sin(x), {"n": 3, "x": x}

    ours, theirs = bp.vjp(fun, X, has_aux=True), jax.vjp(fun, X, has_aux=True)
    same((ours[0], ours[2]), (theirs[0], theirs[2]))
    same(ours[1](X), theirs[1](X))
    same(bp.jvp(fun, (X,), (X,), has_aux=True), jax.jvp(fun, (X,), (X,), has_aux=True))
    y, linear, aux = bp.linearize(fun, X, has_aux=True)
    same((y, linear(X), aux), jax.jvp(fun, (X,), (X,), has_aux=True))
    same(bp.jacrev(fun, has_aux=True)(X), jax.jacrev(fun, has_aux=True)(X))
    same(bp.jacfwd(fun, has_aux=True)(X), jax.jacfwd(fun, has_aux=True)(X))


def test_pullback_is_a_pytree():
    """It crosses `jax.jit`, and its leaves are what it holds."""
    y, pullback = bp.vjp(lambda x: jnp.sin(x) * x, X)
    same(jax.jit(lambda p, ct: p(ct))(pullback, y), pullback(y))
    assert {leaf.shape for leaf in jax.tree.leaves(pullback)} == {X.shape}


def test_pullback_under_vmap():
    y, pullback = bp.vjp(lambda x: x @ x.T, X)
    cts = np.stack([y, 2 * y])
    same(jax.vmap(pullback)(cts), jax.vmap(jax.vjp(lambda x: x @ x.T, X)[1])(cts))


SCALAR = {"tanh": (lambda x: jnp.sum(jnp.tanh(x) ** 3), X), "tree": (
    lambda t: jnp.sum(jnp.tanh(t["a"] @ t["b"][0]) ** 2) * t["b"][1], TREE
)}  # fmt: skip
TRANSFORMS = {
    "jacrev": (bp.jacrev, jax.jacrev),
    "jacfwd": (bp.jacfwd, jax.jacfwd),
    "hessian": (bp.hessian, jax.hessian),
}


@cache
def jacobian_of_jax(name, transform):
    fun, x = SCALAR[name]
    return jax.jit(transform(fun))(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", SCALAR)
def test_jacobians_of_a_scalar(name, transform, way):
    fun, x = SCALAR[name]
    ours, theirs = TRANSFORMS[transform]
    same(WAYS[way](ours(fun))(x), jacobian_of_jax(name, theirs))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("argnums", [0, 1, (0,), (1, 0)], ids=str)
def test_jacobians_by_argnums(transform, argnums):
    def fun(x, y, scale=1.0):
        return {"o": jnp.outer(x[0], y) * scale, "s": jnp.sum(x) * y}

    ours, theirs = TRANSFORMS[transform]
    expected = jax.jit(theirs(fun, argnums))(X, X[1], scale=2.0)
    same(ours(fun, argnums)(X, X[1], scale=2.0), expected)


def test_holomorphic():
    z = (X + 1j * X**2).astype(np.complex64)

    def fun(z):
        return z**2 * jnp.exp(z)

    for ours, theirs in (TRANSFORMS["jacrev"], TRANSFORMS["jacfwd"]):
        same(ours(fun, holomorphic=True)(z), theirs(fun, holomorphic=True)(z))
        with pytest.raises(bp.DifferentiationError, match="holomorphic"):
            ours(fun, holomorphic=True)(X)
    with pytest.raises(bp.DifferentiationError, match="real inputs, or holomorphic=True"):
        bp.jacfwd(fun)(z)


def test_hvp():
    fun, x = SCALAR["tanh"]
    same(bp.hvp(fun, (x,), (x,)), jax.jvp(jax.grad(fun), (x,), (x,))[1])

    def two(x, y):
        return jnp.sum(jnp.sin(x) * y**2)

    same(
        bp.hvp(two, (X, X + 1), (X, -X)),
        jax.jvp(jax.grad(two, (0, 1)), (X, X + 1), (X, -X))[1],
    )


NESTS = {
    "jvp of grad": lambda d, x: d.jvp(d.grad(lambda v: jnp.sum(jnp.sin(v) ** 2)), (x,), (x,)),
    "grad of jvp": lambda d, x: d.grad(lambda v: jnp.sum(d.jvp(jnp.sin, (v,), (v,))[1]))(x),
    "grad of vjp": lambda d, x: d.grad(lambda v: jnp.sum(d.vjp(jnp.sin, v)[1](v)[0]))(x),
    "grad of linearize": lambda d, x: d.grad(lambda v: jnp.sum(d.linearize(jnp.sin, v)[1](v)))(x),
    "jacfwd of jacrev": lambda d, x: d.jacfwd(d.jacrev(lambda v: v @ v.T))(x),
    "jacrev of jacfwd": lambda d, x: d.jacrev(d.jacfwd(lambda v: v @ v.T))(x),
    "jvp of jvp": lambda d, x: d.jvp(lambda v: d.jvp(jnp.sin, (v,), (x,))[1], (x,), (x,)),
    "third": lambda d, x: d.grad(d.grad(d.grad(lambda v: v**5)))(x[0, 0]),
    "jax inside": lambda d, x: d.jacfwd(jax.jacrev(jnp.sin))(x),
    "jax outside": lambda d, x: jax.jacfwd(d.jacrev(jnp.sin))(x),
    "jax.grad of vjp": lambda d, x: jax.grad(lambda v: jnp.sum(d.vjp(jnp.sin, v)[1](v)[0]))(x),
    "jax.vjp of jvp": lambda d, x: jax.vjp(lambda v: d.jvp(jnp.sin, (v,), (v,))[1], x)[1](x),
    "in scan": lambda d, x: lax.scan(
        lambda c, v: (c + d.jvp(jnp.sin, (v,), (v,))[1], d.grad(lambda u: jnp.sum(u**3))(v)),
        x[0], x,
    ),
    "per example": lambda d, x: jax.vmap(
        d.grad(lambda w, v: jnp.sum(jnp.tanh(w * v))), in_axes=(None, 0)
    )(x[0], x),
    "vmap of hessian": lambda d, x: jax.vmap(d.hessian(lambda v: jnp.sum(v**3)))(x),
    "hessian of vmap": lambda d, x: d.hessian(lambda v: jax.vmap(jnp.sin)(v).sum())(x),
    "through jax.checkpoint": lambda d, x: d.hessian(
        jax.checkpoint(lambda v: jnp.sum(jnp.sin(v) ** 2))
    )(x),
    "closes over a tracer": lambda d, x: d.grad(
        lambda v: jnp.sum(d.jvp(lambda u: u * v, (x,), (x,))[1] * v)
    )(x),
}  # fmt: skip


@cache
def nested_of_jax(name):
    return jax.jit(lambda x: NESTS[name](jax, x))(X)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NESTS)
def test_nesting(name, way):
    same(WAYS[way](lambda x: NESTS[name](bp, x))(X), nested_of_jax(name))


ERRORS = {
    "vjp of no function": (lambda: bp.vjp(3, X), "wants a function"),
    "vjp of a string": (lambda: bp.vjp(lambda x: x, "a"), r"wants arrays, got str at args\[0\]"),
    "tangents of another tree": (lambda: bp.jvp(jnp.sin, (X,), (X, X)), "with the tree"),
    "tangents of another shape": (lambda: bp.jvp(jnp.sin, (X,), (X[0],)), r"f32\[2,3\]"),
    "tangents of another dtype": (
        lambda: bp.jvp(jnp.sin, (X,), (X.astype(np.float64),)), r"f32\[2,3\], got f64\[2,3\]"
    ),
    "float tangent of an integer": (
        lambda: bp.jvp(lambda n: n, (np.int32(1),), (np.float32(1),)), "float0"
    ),
    "primals not in a tuple": (lambda: bp.jvp(jnp.sin, X, X), r"write bp.jvp\(f, \(x,\), \(t,\)\)"),
    "hvp's primals not in a tuple": (lambda: bp.hvp(jnp.sum, X, X), r"write bp.hvp"),
    "cotangent of another shape": (lambda: bp.vjp(jnp.sin, X)[1](X[0]), r"cotangents of type"),
    "cotangent of another tree": (lambda: bp.vjp(jnp.sin, X)[1]((X, X)), "with the tree"),
    "cotangent that is no array": (lambda: bp.vjp(jnp.sin, X)[1]("a"), "got str"),
    "no pair for aux": (lambda: bp.vjp(jnp.sin, X, has_aux=True), "return a two-element"),
    "jacrev by integers": (lambda: bp.jacrev(lambda n: n * 1.0)(3), "floating inputs"),
    "jacrev of integers": (lambda: bp.jacrev(lambda x: x.astype(int))(X), "floating outputs"),
    "hessian of argnums out of range": (lambda: bp.hessian(jnp.sum, 2)(X), "argnums=2"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(bp.BackpassError, match=message) as caught:
        call()
    assert "test_derivatives.py" in str(caught.value)


def test_reverse_mode_of_a_while_names_the_way_out():
    def fun(x):
        return lax.while_loop(lambda s: s.sum() < 9, lambda s: s * 2, x)

    with pytest.raises(bp.DifferentiationError, match="scan"):
        bp.vjp(fun, X)


def test_python_side_of_numbers():
    """A Python number serves as cotangent and tangent of any floating dtype."""
    x = np.float32(0.5)
    assert bp.vjp(jnp.sin, x)[1](1.0)[0].dtype == np.float32
    same(bp.jvp(jnp.sin, (x,), (2.0,))[1], jax.jvp(jnp.sin, (x,), (np.float32(2),))[1])


def test_a_traced_pullback_shows_what_it_computes():
    """As the call of a jaxpr of JAX's own would."""
    precise = partial(jax.lax.dot, precision=jax.lax.Precision.HIGHEST)
    y, pull = bp.vjp(precise, jnp.ones((2, 3)), jnp.ones((3, 4)))
    told = str(jax.make_jaxpr(pull)(y))
    assert told.count("dot_general[") == 2 and "Precision.HIGHEST" in told


def square(x):
    return lax.while_loop(lambda c: c < 9, lambda c: c * c, x)


JAXS_WORDS = {
    "tree of a cotangent": lambda vjp: vjp(jnp.sin, 1.0)[1]((1.0, 2.0)),
    "shape of a cotangent": lambda vjp: vjp(jnp.sin, X)[1](X[0]),
    "dtype of a cotangent": lambda vjp: vjp(jnp.sin, X)[1](X.astype(jnp.float16)),
    "no array": lambda vjp: vjp(jnp.sin, "a"),
    "no function": lambda vjp: vjp(3, 1.0),
    "no aux": lambda vjp: vjp(jnp.sin, 1.0, has_aux=True),
    "a loop": lambda vjp: vjp(square, 2.0)[1](1.0),
}
SAID = (
    "unexpected tree structure|unexpected JAX type|not a valid JAX type|Expected a callable value|"
    "two-element tuple|does not work for lax.while_loop"
)


@pytest.mark.parametrize("wrong", JAXS_WORDS)
def test_errors_have_the_type_and_the_words_of_jax(wrong):
    """So that who catches them need not know whose they are."""
    with pytest.raises((TypeError, ValueError), match=SAID) as theirs:
        JAXS_WORDS[wrong](jax.vjp)
    kind = TypeError if isinstance(theirs.value, TypeError) else ValueError
    with pytest.raises(kind, match=SAID):
        JAXS_WORDS[wrong](bp.vjp)


def test_a_cotangent_of_an_integer_is_of_any_dtype():
    _, pull = bp.vjp(lambda x: (x, jnp.int32(3)), 2.0)
    assert float(pull((1.0, np.float32(5)))[0]) == 1.0
