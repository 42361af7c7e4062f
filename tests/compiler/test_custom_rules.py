"""The user's own rules: derivatives of any order, symbolic zeros, rules that look at cotangents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_derivatives import SymbolicZero

import backpass as bp
from backpass.compiler.importer import RULE_DEPTH
from backpass.ir import Graph, parse
from backpass.ir.errors import MissingRuleError
from backpass.ir.fingerprint import fingerprint
from backpass.passes.autodiff import Reverse
from models.comparison import assert_close


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# Rules in rules, each with a factor of its own: a rule that is left out shows


@jax.custom_jvp
def sine(x):
    return jnp.sin(x)


@jax.custom_jvp
def cosine(x):
    return jnp.cos(x)


sine.defjvp(lambda p, t: (sine(p[0]), 2 * cosine(p[0]) * t[0]))
cosine.defjvp(lambda p, t: (cosine(p[0]), -3 * sine(p[0]) * t[0]))


@jax.custom_vjp
def sine_back(x):
    return jnp.sin(x)


@jax.custom_vjp
def cosine_back(x):
    return jnp.cos(x)


sine_back.defvjp(lambda x: (sine_back(x), x), lambda x, ct: (2 * cosine_back(x) * ct,))
cosine_back.defvjp(lambda x: (cosine_back(x), x), lambda x, ct: (-3 * sine_back(x) * ct,))

RULES = {"jvp": sine, "vjp": sine_back}
WAYS = {
    "reverse": (bp.grad, jax.grad),
    "forward": tuple(
        lambda f, jvp=jvp: lambda x: jvp(f, (x,), (1.0,))[1] for jvp in (bp.jvp, jax.jvp)
    ),
    "JAX around ours": (
        lambda f: bp.grad(f) if f in RULES.values() else jax.grad(f),
        jax.grad,
    ),
}


@pytest.mark.parametrize("through", [lambda f: f, jax.jit, bp.compile])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_every_order(rule, way, through):
    ours, theirs = WAYS[way]
    if (rule, way) == ("vjp", "forward"):
        theirs = jax.grad  # has no forward mode of a custom_vjp
    f = g = RULES[rule]
    for _ in range(RULE_DEPTH + 2):
        f, g = ours(f), theirs(g)
    np.testing.assert_allclose(through(f)(0.7), g(0.7), rtol=1e-12)


def test_deep_rules_in_a_loop_and_batched():
    """Beside the loop written out: JAX's own second order drops rules in a `scan`."""

    def fun(x):
        return lax.scan(lambda c, _: (sine(c) * x, None), x, None, 2)[0]

    f, g = fun, lambda x: sine(sine(x) * x) * x
    for _ in range(RULE_DEPTH + 1):
        f, g = bp.grad(f), jax.grad(g)
    xs = jnp.linspace(0.1, 0.9, 3)
    np.testing.assert_allclose(jax.vmap(f)(xs), jax.vmap(g)(xs), rtol=1e-10)


def traced(f):
    return bp.compile(f).trace(0.7).graph


def test_text_holds_rules_to_the_third_order():
    graph = traced(sine)
    again = parse(str(graph))
    assert again == graph
    deep = [n for n in again.walk() if n.op.name == "custom_jvp_call" and len(n.regions) == 1]
    assert deep
    with pytest.raises(MissingRuleError, match="text holds no rules beyond"):
        Reverse().split(Graph("f", deep[0].inputs, tuple(deep), deep[0].outputs), [True])


def test_programs_are_told_apart_by_the_rules_that_they_read():
    def made(factor):
        @jax.custom_jvp
        def deep(x):
            return jnp.sin(x)

        deep.defjvp(lambda p, t: (deep(p[0]), t[0] * shallow(p[0])))
        turn = []

        @jax.custom_jvp
        def shallow(x):
            return jnp.cos(x)

        def rule(p, t):
            turn.append(1)
            return shallow(p[0]), t[0] * (factor if len(turn) > RULE_DEPTH else 1)

        shallow.defjvp(rule)
        return deep

    def nth(f, order):
        for _ in range(order):
            f = bp.grad(f)
        return f

    low, high = (
        [fingerprint(traced(nth(made(factor), order))) for factor in (2, 3)]
        for order in (1, RULE_DEPTH + 1)
    )
    assert low[0] == low[1], "one executable serves"
    assert high[0] != high[1]


# What is perturbed


def asking():
    """A rule that is told what is perturbed, and what it was told."""
    told = []

    @jax.custom_jvp
    def fun(x, y):
        return x * y, jnp.sin(x)

    def rule(primals, tangents):
        told.append([isinstance(t, SymbolicZero) for t in tangents])
        (x, y), (dx, dy) = primals, tangents
        by_x = 0 if told[-1][0] else 2 * dx * y
        by_y = 0 if told[-1][1] else 3 * x * dy
        return fun(x, y), (by_x + by_y, dy)

    fun.defjvp(rule, symbolic_zeros=True)
    return fun, told


def asking_back():
    told = []

    @jax.custom_vjp
    def fun(x, y):
        return x * y, jnp.sin(x)

    def fwd(x, y):
        told.append([x.perturbed, y.perturbed])
        return (x.value * y.value, jnp.sin(x.value)), (x.value, y.value)

    def bwd(residuals, cts):
        x, y = residuals
        told.append([isinstance(ct, SymbolicZero) for ct in cts])
        a = 0 if told[-1][0] else cts[0]
        b = 0 if told[-1][1] else cts[1]
        return jnp.asarray(2 * a * y + 5 * b, float), None if told[-1][1] else 3 * a * x

    fun.defvjp(fwd, bwd, symbolic_zeros=True)
    return fun, told


QUESTIONS = {
    "by the first": lambda grad, f: grad(lambda x, y: f(x, y)[0])(2.0, 3.0),
    "by the second": lambda grad, f: grad(lambda x, y: f(x, y)[0] ** 2, 1)(2.0, 3.0),
    "by both": lambda grad, f: grad(lambda x, y: f(x, y)[0] * f(y, x)[1], (0, 1))(2.0, 3.0),
    "the second output": lambda grad, f: grad(lambda x: f(x, 3.0)[1])(2.0),
    "a constant": lambda grad, f: grad(lambda x: f(1.0, 3.0)[0] * x)(2.0),
    "in a loop": lambda grad, f: grad(
        lambda x: lax.scan(lambda c, v: (c + f(x, v)[0], None), 0.0, jnp.arange(3.0))[0]
    )(2.0),
    "in a branch": lambda grad, f: grad(lambda x: lax.cond(x > 0, lambda: f(x, 2.0)[0], lambda: x))(
        2.0
    ),
    "of an argument that is cut": lambda grad, f: grad(lambda x: f(x, lax.stop_gradient(x))[0])(
        2.0
    ),
}


@pytest.mark.parametrize("through", ["eager", "jit", "compile"])
@pytest.mark.parametrize("made", [asking, asking_back])
@pytest.mark.parametrize("question", QUESTIONS)
def test_symbolic_zeros(question, made, through):
    """Our gradients, and what the rule is told, are JAX's."""
    how = {"eager": lambda f: f, "jit": jax.jit, "compile": bp.compile}[through]
    found, told = [], []
    for by, wrap in ((bp, how), (jax, lambda f: f)):
        fun, heard = made()
        found.append(wrap(lambda: QUESTIONS[question](by.grad, fun))())  # noqa: B023
        told.append({tuple(each) for each in heard})
    assert_close(*found)
    assert told[0] == told[1]


@pytest.mark.parametrize("made", [asking, asking_back])
def test_symbolic_zeros_in_forward_mode_and_by_jax_around_ours(made):
    fun, _ = made()
    if made is asking:
        x, y, t = jnp.array([2.0, 3.0, 0.5])
        assert_close(*(by.jvp(lambda x: fun(x, y), (x,), (t,)) for by in (bp, jax)))
    ours, theirs = (
        jax.grad(lambda x: by.grad(lambda x, y: fun(x, y)[0] ** 2)(x, 3.0))(2.0) for by in (bp, jax)
    )
    assert_close(ours, theirs)
    y, pullback = jax.vjp(jax.jit(bp.compile(lambda x: fun(x, 3.0))), 2.0)
    assert_close(pullback(y), jax.vjp(lambda x: fun(x, 3.0), 2.0)[1](y))


def test_a_rule_that_asks_is_none_for_the_text():
    fun, _ = asking()
    graph = traced(lambda x: fun(x, 3.0)[0])
    assert parse(str(graph)) == graph


# A backward rule that looks at its cotangent


@jax.custom_vjp
def doubling(x, n):
    """The slope is twice as steep upwards."""
    return jnp.sin(x)


doubling.defvjp(
    lambda x, n: (jnp.sin(x), x),
    lambda x, ct: (2 * ct * jnp.cos(x) if jnp.sum(ct) > 0 else ct, None),
)


def many(x):
    """More nodes than run one by one."""
    return sum(jnp.exp(doubling(x * i, 3)) for i in range(1, 40))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_backward_rule_that_branches_on_its_cotangent(sign):
    x = jnp.linspace(0.1, 0.5, 3)
    y, pullback = bp.vjp(doubling, x, 3)
    _, expected = jax.vjp(doubling, x, 3)
    assert_close(pullback(sign * y), expected(sign * y))
    ours, theirs = (by.value_and_grad(lambda x: sign * jnp.sum(many(x)))(x) for by in (bp, jax))
    assert_close(ours, theirs)


X = np.linspace(0.1, 0.5, 3)
NO_VALUE = {
    "jit": lambda: jax.jit(bp.grad(many))(0.3),
    "compile": lambda: bp.compile(bp.grad(many))(0.3),
    "vmap": lambda: jax.vmap(bp.grad(many))(X),
    "vmap of the pullback": lambda: jax.vmap(bp.vjp(many, 0.3)[1])(X),
    "jit around the pullback": lambda: jax.jit(bp.vjp(many, 0.3)[1])(1.0),
    "second order": lambda: bp.grad(bp.grad(many))(0.3),
    "JAX around ours": lambda: jax.grad(bp.grad(many))(0.3),
}


@pytest.mark.parametrize("name", NO_VALUE)
def test_a_cotangent_without_a_value_is_an_error(name):
    with pytest.raises(jax.errors.TracerBoolConversionError):
        NO_VALUE[name]()


@jax.custom_jvp
def flat(x):
    return jnp.floor(x)


@flat.defjvp
def _no_slope(primals, tangents):
    raise NotImplementedError("floors have no slope")


@jax.custom_vjp
def flat_too(x):
    return jnp.floor(x)


def _no_cotangent(residuals, ct):
    raise NotImplementedError("floors have no slope")


flat_too.defvjp(lambda x: (jnp.floor(x), None), _no_cotangent)


@pytest.mark.parametrize("fun", [flat, flat_too])
def test_a_rule_that_raises_does_so_where_a_derivative_asks_for_it(fun):
    x, y = jnp.float32(1.5), jnp.float32(2.5)

    def loss(x, y):
        return fun(y) * x**2

    assert bp.compile(fun)(y) == 2.0
    assert bp.compile(bp.grad(loss))(x, y) == bp.grad(loss)(x, y) == jax.grad(loss)(x, y)
    for step in (bp.grad(loss, 1), bp.compile(bp.grad(loss, 1)), jax.grad(bp.compile(loss), 1)):
        for _ in range(2):  # a rule that raised is not spoiled
            with pytest.raises(NotImplementedError, match="no slope"):
                step(x, y)


def test_a_rule_that_holds_a_tracer_is_met_again():
    """The exponential integral's is for an order, which is an array in its trace."""

    def loss(x):
        return jax.scipy.special.expi(x).sum()

    x = jnp.array([0.3, 0.7])
    wanted = np.exp(x) / x
    for way in (jax.value_and_grad, bp.value_and_grad, jax.value_and_grad):
        assert_close(bp.compile(way(loss))(x)[1], wanted)
