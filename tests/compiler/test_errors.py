"""Errors: the type, the user's line, what was expected, what was found, what to do.

The line that a message has to name ends with `# here`.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp

X = np.ones(3, np.float32)
kept = []


def place(fun):
    """`test_errors.py:LINE` of the line in `fun` that is marked."""
    lines, start = inspect.getsourcelines(fun)
    (line,) = (start + i for i, text in enumerate(lines) if text.rstrip().endswith("# here"))
    return f"test_errors.py:{line}"


def told(error):
    """The message and the notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def branch(x):
    if x.sum() > 0:  # here
        return x.sum()
    return -x.sum()


def boolean(x):
    return x.sum() * bool(x.any())  # here


def loop(x):
    while x[0] < 3:  # here
        x = x * 2
    return x.sum()


def both(x):
    return (0 < x[0] < 1) * x.sum()  # here


def integer(x):
    return x[int(x[0])]  # here


def number(x):
    return x.sum() * float(x[0])  # here


def item(x):
    return x.sum() * x[0].item()  # here


def count(x):
    return sum(x[i] for i in range(x.argmax()))  # here


def position(x):
    return [x[0], x[1], x[2]][x.argmax()]  # here


def numpy_array(x):
    return np.asarray(x).sum()  # here


def numpy_function(x):
    return np.sin(x).sum()  # here


def mask(x):
    return x[x > 0].sum()  # here


def nonzero(x):
    return x[jnp.nonzero(x)].sum()  # here


def through_a_helper(x):
    return branch(x) * 2


TRACED = {
    branch: (jax.errors.TracerBoolConversionError, "a Python bool", "bool[]", "jax.lax.cond"),
    boolean: (jax.errors.TracerBoolConversionError, "a Python bool", "bool[]", "jnp.where"),
    loop: (jax.errors.TracerBoolConversionError, "a Python bool", "bool[]", "jax.lax.while_loop"),
    both: (jax.errors.TracerBoolConversionError, "a Python bool", "bool[]", "jnp.where"),
    integer: (jax.errors.ConcretizationTypeError, "a concrete value", "float32[]", "static"),
    number: (jax.errors.ConcretizationTypeError, "a concrete value", "float32[]", "static"),
    item: (jax.errors.ConcretizationTypeError, "a concrete value", "float32[]", "static"),
    count: (jax.errors.TracerIntegerConversionError, "a Python integer", "int32[]", "static"),
    position: (jax.errors.TracerIntegerConversionError, "a Python integer", "int32[]", "jnp.take"),
    numpy_array: (
        jax.errors.TracerArrayConversionError,
        "a NumPy array",
        "float32[3]",
        "jax.numpy",
    ),
    numpy_function: (
        jax.errors.TracerArrayConversionError,
        "a NumPy array",
        "float32[3]",
        "jax.numpy",
    ),
    mask: (jax.errors.NonConcreteBooleanIndexError, "true elements", "bool[3]", "jnp.where"),
    nonzero: (jax.errors.ConcretizationTypeError, "a concrete value", "int32[]", "static"),
}

WAYS = {
    "compile": bp.compile,
    "grad": bp.grad,
    "compiled grad": lambda fun: bp.compile(bp.grad(fun)),
    "grad in jit": lambda fun: jax.jit(bp.grad(fun)),
    "trace": lambda fun: bp.compile(fun).trace,
}


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"grad"}))
@pytest.mark.parametrize("fun", TRACED, ids=lambda fun: fun.__name__)
def test_value_of_a_traced_array(fun, way):
    also, *words = TRACED[fun]
    with pytest.raises(bp.ConcretizationError) as caught:
        WAYS[way](fun)(X)
    assert isinstance(caught.value, also), "JAX's own type is kept for who catches it"
    for word in (place(fun), fun.__name__, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("fun", TRACED, ids=lambda fun: fun.__name__)
def test_value_of_an_eager_array(fun):
    """It has one, as in JAX, except for a Python float and for NumPy."""
    x = np.array([1.0, 3.0, 2.0], np.float32)
    try:
        expected = jax.grad(fun)(x)
    except jax.errors.JAXTypeError as error:
        with pytest.raises(type(error), match=place(fun)):
            bp.grad(fun)(x)
        assert fun in (number, numpy_array, numpy_function)
    else:
        np.testing.assert_allclose(bp.grad(fun)(x), expected, rtol=1e-6)


def test_line_is_that_of_the_helper_that_failed():
    with pytest.raises(bp.ConcretizationError, match=place(branch)):
        bp.compile(through_a_helper)(X)


# What the user's own code raises keeps its type, and gets a note.


def shapes(x):
    return x @ jnp.ones(4)  # here


def dtypes(x):
    return jax.lax.add(x, 1)  # here


def missing(x):
    return {"w": x}["b"]  # here


def structures(x):
    return jax.tree.map(jnp.add, {"a": x, "b": x}, {"a": x})  # here


def carry(x):
    return jax.lax.scan(lambda c, _: (c[:2], None), x, None, 2)  # here


def branches(x):
    return jax.lax.cond(x[0] > 0, lambda: x, lambda: x[:2])  # here


def divide(x):
    return x / (1 // 0)  # here


def check(x):
    assert x.shape == (4,), f"four numbers, got {x.shape}"  # here
    return x


OWN = {
    shapes: (TypeError, "(3,) and (4,)"),
    dtypes: (TypeError, "float32"),
    missing: (KeyError, "b"),
    structures: (ValueError, "b"),
    carry: (TypeError, "float32[2]"),
    branches: (TypeError, "float32[2]"),
    divide: (ZeroDivisionError, "zero"),
    check: (AssertionError, "four numbers, got (3,)"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fun", OWN, ids=lambda fun: fun.__name__)
def test_errors_of_the_program_get_a_note(fun, way):
    kind, word = OWN[fun]
    with pytest.raises(kind) as caught:
        WAYS[way](fun)(X)
    assert type(caught.value) is kind
    assert word in str(caught.value)
    (note,) = (text for text in caught.value.__notes__ if text.startswith("backpass:"))
    assert place(fun) in note and fun.__name__ in note


def test_messages_of_jax_do_not_name_our_files():
    def fun(x, n):
        return jnp.zeros(n) + x

    with pytest.raises(TypeError, match="static_argnums") as caught:
        bp.compile(fun)(X, 3)
    assert "test_errors.py" in str(caught.value)
    assert "program.py" not in str(caught.value)


# Leaks


def leaking(x):
    kept.append(x * 2)  # here
    return x.sum()


def reader(x):
    return (x * kept[-1]).sum()  # here


@pytest.mark.parametrize("way", ["compile", "grad", "compiled grad"])
@pytest.mark.parametrize("maker", [bp.compile, lambda fun: bp.compile(bp.grad(fun)), jax.jit])
def test_leaked_tracer(maker, way):
    maker(leaking)(X)
    with pytest.raises(bp.LeakError) as caught:
        WAYS[way](reader)(X)
    assert isinstance(caught.value, jax.errors.UnexpectedTracerError)
    for word in (place(leaking), "side effect", "return it from the function"):
        assert word in str(caught.value)


def test_leaked_tracer_as_an_argument():
    bp.compile(leaking)(X)
    step = bp.compile(lambda x: x)
    with pytest.raises(bp.LeakError, match=place(leaking)):
        step(kept[-1])


def test_leak_after_the_call_names_the_user():
    bp.compile(leaking)(X)
    with pytest.raises(jax.errors.UnexpectedTracerError) as caught:
        kept[-1] + 1
    assert place(leaking) in str(caught.value)
    assert "when the value leaked was leaking at" in str(caught.value)


# What `grad` is asked for


GRAD = {
    "vector": (lambda f: f(lambda x: x * 2)(X), "a scalar loss", "f32[3]", ".mean()"),
    "pair": (lambda f: f(lambda x: (x.sum(), x))(X), "a scalar loss", "tuple of 2", "has_aux=True"),
    "nothing": (lambda f: f(lambda x: None)(X), "a scalar loss", "no array", "return the loss"),
    "integer loss": (
        lambda f: f(lambda x: x.sum().astype(int))(X), "floating dtype", "i32[]", "real floating"
    ),
    "complex loss": (
        lambda f: f(lambda x: x.sum() * 1j)(X), "floating dtype", "c64[]", "holomorphic=True"
    ),
    "integers": (
        lambda f: f(lambda x: x.sum() * 1.0)(np.int32([0, 1])), "floating inputs", "i32[2]", "allow_int"
    ),
    "python integer": (lambda f: f(lambda x: x * 1.0)(3), "floating inputs", "i32[]*", "cast"),
    "boolean leaf": (
        lambda f: f(lambda p: p["x"].sum())({"x": X, "on": True}),
        "floating inputs", "bool[] at args[0]['on']", "argnums",
    ),
    "second argument": (
        lambda f: f(lambda x, n: x.sum(), argnums=(0, 1))(X, 3), "floating inputs", "args[1]", "cast"
    ),
    "real and holomorphic": (
        lambda f: f(lambda x: x.sum(), holomorphic=True)(X), "complex inputs", "f32[3]", "cast"
    ),
    "aux is missing": (
        lambda f: f(lambda x: x.sum(), has_aux=True)(X), "a two-element tuple (loss, aux)", "Tracer", "has_aux"
    ),
    "unknown loop": (
        lambda f: f(
            lambda x: jax.lax.while_loop(lambda s: s < 9, lambda s: s * 2, x.sum())
        )(X),
        "a fixed number of steps", "`while`", "jax.lax.scan",
    ),
    "unknown fori_loop": (
        lambda f: bp.compile(
            f(lambda x, n: jax.lax.fori_loop(0, n, lambda i, s: s * 2, x.sum()))
        )(X, 3),
        "a fixed number of steps", "`while`", "static bounds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [bp.grad, bp.value_and_grad])
@pytest.mark.parametrize("name", GRAD)
def test_gradient_that_does_not_exist(name, kind):
    call, *words = GRAD[name]
    with pytest.raises(bp.DifferentiationError) as caught:
        call(kind)
    assert isinstance(caught.value, TypeError)
    for word in ("test_errors.py:", *words):
        assert word in str(caught.value)


ARGNUMS = {
    "too large": (lambda: bp.grad(jnp.sum, argnums=1)(X), "argnums=1", "got 1 positional"),
    "too small": (lambda: bp.grad(jnp.sum, argnums=-2)(X), "argnums=-2", "got 1 positional"),
    "by name": (lambda: bp.grad(lambda x: x.sum())(x=X), "argnums=0", "got 0 positional"),
    "twice": (lambda: bp.grad(jnp.vdot, argnums=(0, -2))(X, X), "(0, -2)", "twice"),
    "text": (lambda: bp.grad(jnp.sum, argnums="x"), "an integer", "'x'"),
    "fraction": (lambda: bp.grad(jnp.sum, argnums=0.5), "an integer", "0.5"),
    "no function": (lambda: bp.grad(jnp.sum(X)), "wants a function", "bp.grad(f)(x)"),
    "text as argument": (lambda: bp.grad(lambda x: 1.0)({"a": "w"}), "arrays", "args[0]['a']"),
    "text as result": (lambda: bp.grad(lambda x: "loss")(X), "return arrays", "str"),
}


@pytest.mark.parametrize("name", ARGNUMS)
def test_arguments_of_grad(name):
    call, *words = ARGNUMS[name]
    with pytest.raises(bp.ArgumentError) as caught:
        call()
    for word in ("test_errors.py:", *words):
        assert word in str(caught.value)


def no_rule(x):
    return jax.lax.clz(jax.lax.bitcast_convert_type(x, jnp.int32)).sum() + median(x)


def median(x):
    return jax.pure_callback(np.median, jax.ShapeDtypeStruct((), x.dtype), x)  # here


@pytest.mark.parametrize("way", ["grad", "compiled grad"])
def test_missing_rule(way):
    with pytest.raises(bp.MissingRuleError) as caught:
        WAYS[way](no_rule)(X)
    assert isinstance(caught.value, NotImplementedError)
    for word in (place(median), "pure_callback", "jax.custom_vjp", "stop_gradient"):
        assert word in str(caught.value)


# What `compile` is given


def simple(x, *rest, **named):
    return x


ARGUMENTS = {
    "text": (lambda f: f(X, "fast"), "str at args[1]", "static_argnames"),
    "object": (lambda f: f(X, {"a": [object()]}), "object at args[1]['a'][0]", "static_argnames"),
    "function": (lambda f: f(X, act=jnp.sin), "at act", "static_argnames"),
    "array of text": (lambda f: f(np.array(["a"])), "ndarray at args[0]", "arrays"),
    "array of dates": (lambda f: f(np.array(["2020"], "datetime64[Y]")), "ndarray", "arrays"),
}


@pytest.mark.parametrize("stage", [None, "trace", "lower"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument_that_is_no_array(name, stage):
    call, *words = ARGUMENTS[name]
    step = bp.compile(simple)
    with pytest.raises(bp.ArgumentError) as caught:
        call(getattr(step, stage) if stage else step)
    assert isinstance(caught.value, TypeError)
    for word in ("simple", "test_errors.py:", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("options", [{"static_argnums": 1}, {"static_argnames": "n"}])
@pytest.mark.parametrize(("value", "found"), [([1], "list"), ({}, "dict"), (X, "ndarray")])
def test_unhashable_static_argument(options, value, found):
    step = bp.compile(lambda x, n: x, **options)
    with pytest.raises(bp.ArgumentError, match=f"hashable static arguments, got {found}") as caught:
        step(X, value)
    assert isinstance(caught.value, ValueError), "which is what jax.jit raises"
    assert "test_errors.py:" in str(caught.value) and "tuple" in str(caught.value)


RESULTS = {
    "text": (lambda x: "done", "str at result"),
    "function": (lambda x: {"a": (x, np.sin)}, "ufunc at result['a'][1]"),
    "object": (lambda x: [object()], "object at result[0]"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result_that_is_no_array(name):
    fun, found = RESULTS[name]
    with pytest.raises(bp.ArgumentError, match=re.escape(found)) as caught:
        bp.compile(fun)(X)
    assert "test_errors.py:" in str(caught.value) and "return arrays" in str(caught.value)


OPTIONS = {
    "no function": (lambda: bp.compile(3), "wants a function", "int"),
    "called result": (lambda: bp.compile(X), "wants a function", "ndarray"),
    "unknown option": (lambda: bp.compile(simple, memory="1GB"), "no option 'memory'"),
    "unknown pass": (lambda: bp.compile(simple, passes="cse,fuze"), "no pass 'fuze'", "simplify"),
    "unknown pass option": (lambda: bp.compile(simple, passes="cse{deep=1}"), "'cse'", "'deep'"),
    "pipeline syntax": (lambda: bp.compile(simple, passes="cse;dce"), "cse;dce", "pass name"),
    "names as a list": (lambda: bp.compile(simple, passes=["cse"]), "['cse']", "pipeline"),
    "no autodiff": (lambda: bp.compile(bp.grad(jnp.sum), passes="cse")(X), "no autodiff pass"),
    "number of passes": (lambda: bp.compile(simple, passes=3), "got 3", "pipeline"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_compile(name):
    call, *words = OPTIONS[name]
    with pytest.raises(bp.ArgumentError) as caught:
        call()
    assert isinstance(caught.value, TypeError)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("call", [(), (X, X), {"z": X}])
def test_wrong_number_of_arguments_is_python_s_own_error(call):
    def step(x): ...

    with pytest.raises(TypeError) as caught:
        bp.compile(step)(**call) if isinstance(call, dict) else bp.compile(step)(*call)
    with pytest.raises(TypeError) as expected:
        step(**call) if isinstance(call, dict) else step(*call)
    assert str(caught.value) == str(expected.value)


# What is left after a failed call


@pytest.mark.parametrize(
    "fun", [*TRACED, *OWN, reader], ids=lambda fun: getattr(fun, "__name__", "lambda")
)
def test_donated_arguments_survive_a_failed_trace(fun):
    bp.compile(leaking)(X)
    params = jnp.asarray(X)
    step = bp.compile(fun, donate_argnums=0)
    for _ in range(2):
        with pytest.raises(Exception):  # noqa: B017
            step(params)
    assert not params.is_deleted()
    np.testing.assert_array_equal(bp.compile(lambda x: x + 1)(params), X + 1)


def test_function_works_again_after_a_failed_call():
    step = bp.compile(lambda p, x: {"w": p["w"] + x}, donate_argnums=0)
    params = {"w": jnp.ones(3)}
    with pytest.raises(TypeError):
        step(params, np.ones(4, np.float32))
    np.testing.assert_array_equal(step(params, X)["w"], X + 1)
    assert params["w"].is_deleted(), "and then it is donated"
    assert len(step.explain().traces) == 1


@pytest.mark.parametrize("again", [lambda f, p: f(p, X), lambda f, p: f({"w": [X]}, p["w"][0])])
def test_donated_buffer_used_again(again):
    step = bp.compile(lambda p, x: jax.tree.map(lambda w: w + x, p), donate_argnums=0)
    params = {"w": [jnp.ones(3)]}
    step(params, X)
    with pytest.raises(bp.DonationError) as caught:
        again(step, params)
    assert isinstance(caught.value, RuntimeError)
    for word in ("test_errors.py:", "f32[3]", "donate_argnums", "args["):
        assert word in str(caught.value)


def test_hierarchy():
    """One base; JAX's types where users already catch them."""
    names = [name for name in bp.__all__ if name.endswith("Error")]
    assert len(names) >= 10
    assert all(issubclass(getattr(bp, name), bp.BackpassError) for name in names)
    assert issubclass(bp.ConcretizationError, jax.errors.ConcretizationTypeError)
    assert issubclass(bp.LeakError, jax.errors.UnexpectedTracerError)


def test_what_else_jax_says_of_a_tracer_is_kept():
    """An argument that a custom rule takes as a setting must not be traced."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def fun(scale, x):
        return scale * x

    fun.defvjp(lambda scale, x: (fun(scale, x), x), lambda scale, x, ct: (scale * ct,))
    with pytest.raises(
        jax.errors.UnexpectedTracerError, match=r"(?s)nondiff_argnums.*test_errors.py"
    ):
        bp.grad(jax.jit(lambda x, scale: fun(scale, x)))(1.0, 2.0)
