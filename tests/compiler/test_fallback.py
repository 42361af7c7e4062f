"""Primitives without a rule of ours: JAX's own derivative of the one, and it is said."""

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap
from jax.interpreters import ad, batching, mlir

import backpass as bp

X = np.arange(1.0, 4.0, dtype=np.float32)


def made(name: str):
    """x y + sin(x), as a primitive of a user's own with a JVP and a transposable linear part."""
    p = jec.Primitive(name)

    def impl(x, y):
        return x * y + jnp.sin(x)

    p.def_impl(impl)
    p.def_abstract_eval(lambda x, y: x)
    mlir.register_lowering(p, mlir.lower_fun(impl, multiple_results=False))
    batching.defvectorized(p)
    ad.defjvp(p, lambda g, x, y: g * (y + jnp.cos(x)), lambda g, x, y: g * x)
    return p


MINE, SQUARE = made("mine"), made("square")


def loss(x, y):
    return jnp.sum(MINE.bind(x, y) ** 2)


def reference(x, y):
    return jnp.sum((x * y + jnp.sin(x)) ** 2)


def test_a_users_own_primitive_is_differentiated() -> None:
    for got, want in zip(
        bp.grad(loss, (0, 1))(X, 2 * X), jax.grad(reference, (0, 1))(X, 2 * X), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_only_what_is_asked_for() -> None:
    np.testing.assert_allclose(bp.grad(loss, 1)(X, X), jax.grad(reference, 1)(X, X), rtol=1e-6)


def test_second_derivative() -> None:
    def twice(grad, f):
        return lambda x: jnp.sum(grad(f)(x, x) ** 2)

    got = bp.grad(twice(bp.grad, loss))(X)
    np.testing.assert_allclose(got, jax.grad(twice(jax.grad, reference))(X), rtol=1e-5)


def test_a_primitive_that_has_the_name_of_an_op_is_not_mistaken() -> None:
    def named(x):
        return jnp.sum(SQUARE.bind(x, x))

    step = bp.compile(bp.value_and_grad(named))
    np.testing.assert_allclose(step(X)[0], np.sum(X * X + np.sin(X)), rtol=1e-6)
    np.testing.assert_allclose(step(X)[1], 2 * X + np.cos(X), rtol=1e-6)


def test_each_use_is_reported_with_its_line_and_scope() -> None:
    @bp.compile(debug=True)
    def step(x):
        def twice(x):
            with jax.named_scope("block"):
                y = MINE.bind(x, x)
            return jnp.sum(MINE.bind(y, x))

        return bp.grad(twice)(x)

    lowered = step.lower(X)
    assert [(f.primitive, f.scope) for f in lowered.fallbacks] == [("mine", ""), ("mine", "block")]
    assert all("test_fallback.py:" in f.source for f in lowered.fallbacks)
    assert str(lowered).count("fallback to JAX's derivative: mine at ") == 2
    np.testing.assert_allclose(
        step(X),
        jax.grad(lambda x: jnp.sum((x * x + jnp.sin(x)) * x + jnp.sin(x * x + jnp.sin(x))))(X),
        rtol=1e-6,
    )


def test_what_is_not_differentiated_is_no_fallback() -> None:
    @bp.compile(debug="strict")
    def step(x):
        held = jax.lax.stop_gradient(MINE.bind(x, x))
        return bp.grad(lambda x: jnp.sum(x * held))(x)

    assert step.lower(X).fallbacks == ()
    np.testing.assert_allclose(step(X), X * X + np.sin(X), rtol=1e-6)


def test_uses_inside_a_loop_are_seen() -> None:
    @bp.compile
    def step(x):
        def looped(x):
            return jax.lax.scan(lambda c, _: (jnp.tanh(MINE.bind(c, c)), None), x, length=3)[
                0
            ].sum()

        return bp.grad(looped)(x)

    def plain(x):
        for _ in range(3):
            x = jnp.tanh(x * x + jnp.sin(x))
        return x.sum()

    assert [f.primitive for f in step.lower(X).fallbacks] == ["mine"]
    np.testing.assert_allclose(step(X), jax.grad(plain)(X), rtol=1e-5, atol=1e-6)


def test_strict_names_the_op_and_its_line() -> None:
    @bp.compile(debug="strict")
    def step(x):
        return bp.grad(loss)(x, x)

    with pytest.raises(bp.MissingRuleError, match=r"mine at .*test_fallback.py:\d+") as raised:
        step(X)
    assert "debug='strict' wants rules of backpass alone" in str(raised.value)


def test_strict_leaves_programs_with_rules_alone() -> None:
    step = bp.compile(lambda x: bp.grad(lambda x: jnp.sum(jnp.sin(x)))(x), debug="strict")
    np.testing.assert_allclose(step(X), np.cos(X), rtol=1e-6)


def test_another_word_for_debug_is_an_error() -> None:
    with pytest.raises(
        bp.ArgumentError, match="debug wants a boolean, 'strict', 'verify-fusions' or 'nan', got"
    ):
        bp.compile(lambda x: x, debug="loose")


def test_where_jax_has_no_derivative_either_the_line_is_told() -> None:
    def f(x):
        y = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return jnp.sum(y * x)

    with pytest.raises(bp.MissingRuleError, match="no VJP rule for 'pure_callback'") as raised:
        bp.grad(f)(X)
    assert "test_fallback.py:" in str(raised.value)
    assert "JAX has none either (Pure callbacks do not support JVP" in str(raised.value)


def test_a_callback_off_the_way_to_the_loss_is_no_error() -> None:
    def f(x):
        y = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return jnp.sum(x * x), y

    grads, y = bp.grad(f, has_aux=True)(X)
    np.testing.assert_allclose(grads, 2 * X)
    np.testing.assert_allclose(y, np.sin(X), rtol=1e-6)


@custom_vmap
def batched(x):
    return jnp.sin(x) * x


@batched.def_vmap
def _rule(size, axes, x):
    return jnp.sin(x) * x, axes[0]


def test_a_custom_batching_rule_is_for_batches_alone() -> None:
    """The derivative is that of the function; JAX's reverse mode does not get through."""

    def f(x):
        return jnp.sum(batched(x) ** 2)

    step = bp.compile(bp.grad(f), debug="strict")
    want = jax.grad(lambda x: jnp.sum((jnp.sin(x) * x) ** 2))(X)
    np.testing.assert_allclose(step(X), want, rtol=1e-6)
    assert "custom_vmap_call" in str(bp.compile(f).lower(X).graph)


def test_ours_in_the_place_of_jax_vjp(monkeypatch) -> None:
    """As in a suite that runs JAX's own tests with `bp.vjp`."""
    want = jax.grad(loss)(X, X)
    monkeypatch.setattr(jax, "vjp", bp.vjp)
    monkeypatch.setattr(jax, "grad", bp.grad)
    np.testing.assert_allclose(jax.grad(loss)(X, X), want, rtol=1e-6)
