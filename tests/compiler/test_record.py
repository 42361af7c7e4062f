"""Functions whose Python asks for values: differentiated at a point, as JAX does outside of jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp

X = np.array([0.5, 2.0, -1.0, 3.0], np.float32)


def branches(x):
    return jnp.sum(jnp.sin(x)) if x.sum() > 0 else jnp.sum(x**2)


def masked(x):
    return jnp.sum(x[x > 1] ** 2)


def counted(x):
    """As often as an integer that is computed from x says; the integer has no derivative."""
    for _ in range(int(jnp.ceil(x[1]))):
        x = x * x
    return x.sum()


def ordered(x):
    return jnp.sum(x[np.asarray(jnp.argsort(-x))] * np.arange(4.0, dtype=np.float32))


def doubled(x):
    total = x.sum()
    while total < 100:
        total = total + x[1] ** 2 + 20
    return total


def looped(x):
    last, _ = jax.lax.scan(lambda c, a: (c * a, None), x[1], x)
    return last if last < 0 else x.sum()


def called(x):
    inner = jax.jit(lambda y: jnp.sum(jax.nn.relu(y) * x))
    return jax.lax.cond(x[0] > 0, inner, jnp.sum, x) if x[0] > 0 else x.sum()


FUNCTIONS = (branches, masked, counted, ordered, doubled, looped, called)


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fun", FUNCTIONS)
@pytest.mark.parametrize("x", [X, X - 1.5], ids=["above", "below"])
def test_every_mode(fun, x):
    same(bp.value_and_grad(fun)(x), jax.value_and_grad(fun)(x))
    same(bp.vjp(fun, x)[1](np.float32(2)), jax.vjp(fun, x)[1](np.float32(2)))
    same(bp.jvp(fun, (x,), (X,)), jax.jvp(fun, (x,), (X,)))
    same(bp.linearize(fun, x)[1](X), jax.linearize(fun, x)[1](X))


@pytest.mark.parametrize("fun", FUNCTIONS)
def test_nested(fun):
    def twice(outer, inner):
        return outer(lambda x: jnp.sum(inner(fun)(x) ** 2))(X)

    same(twice(bp.grad, bp.grad), twice(jax.grad, jax.grad))
    same(twice(jax.grad, bp.grad), twice(jax.grad, jax.grad))
    same(twice(bp.grad, jax.grad), twice(jax.grad, jax.grad))


def test_what_is_mapped_over_is_another_trace():
    """x has a value, y has none."""

    def mapped(grad):
        return jax.vmap(lambda y: grad(lambda x: x * x * y if x > 0 else y)(3.0))(X)

    same(mapped(bp.grad), mapped(jax.grad))


def forward_rule():
    """Sine or cosine, with slopes that are of neither."""

    @jax.custom_jvp
    def fun(x):
        return jnp.sin(x) if x > 0 else jnp.cos(x)

    @fun.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return fun(x), 2 * t * x if x > 0 else 3 * t * x

    return fun


def reverse_rule():
    @jax.custom_vjp
    def fun(x):
        return jnp.sin(x) if x > 0 else jnp.cos(x)

    fun.defvjp(lambda x: (fun(x), x), lambda x, ct: (2 * ct * x,) if x > 0 else (3 * ct * x,))
    return fun


@pytest.mark.parametrize("made", [forward_rule, reverse_rule])
@pytest.mark.parametrize("x", [2.0, -2.0])
def test_custom_rules_with_control_flow(made, x):
    fun = made()
    same(bp.grad(fun)(x), jax.grad(fun)(x))
    same(bp.grad(bp.grad(fun))(x), jax.grad(jax.grad(fun))(x))
    same(
        bp.vjp(lambda x: jnp.exp(fun(x)), x)[1](1.0), jax.vjp(lambda x: jnp.exp(fun(x)), x)[1](1.0)
    )


def test_a_backward_rule_alone_that_looks_at_its_residual():
    @jax.custom_vjp
    def fun(x):
        return x + 1

    fun.defvjp(lambda x: (fun(x), x), lambda x, ct: (2 * ct if x > 0 else 3 * ct,))
    assert [float(bp.grad(fun)(x)) for x in (2.0, -2.0)] == [2.0, 3.0]


@pytest.mark.parametrize("through", [jax.jit, bp.compile, lambda f: lambda x: jax.vmap(f)(x[None])])
def test_there_is_no_value_under_a_transformation(through):
    with pytest.raises(jax.errors.TracerBoolConversionError, match="test_record.py"):
        through(bp.grad(branches))(X)


def test_numpy_gets_no_array_that_is_differentiated():
    with pytest.raises(jax.errors.TracerArrayConversionError, match="test_record.py"):
        bp.grad(lambda x: np.sum(np.asarray(x)))(X)


def test_a_print_is_printed_by_the_recording_alone(capfd):
    """Neither by the staging that ended, nor when the graph runs."""

    def fun(x):
        jax.debug.print("x is {}", x)
        return x * x if x > 0 else x

    assert float(bp.grad(fun)(2.0)) == 4.0
    jax.effects_barrier()
    assert capfd.readouterr().out.count("x is 2.0") == 1


def test_aux_of_any_kind():
    def fun(x):
        return x * x if x > 0 else x, {"x": x, "floor": jnp.floor(x), "positive": x > 0}

    (y, aux), ct = bp.value_and_grad(fun, has_aux=True)(2.5)
    assert (float(y), float(ct), float(aux["x"]), float(aux["floor"])) == (6.25, 5.0, 2.5, 2.0)
    assert bool(aux["positive"])
