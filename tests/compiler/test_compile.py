"""`bp.compile`: what goes in and comes out is what `jax.jit` takes and gives."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp

X = np.arange(3, dtype=np.float32)


def same(found, expected):
    """Equal trees, dtypes, weak types and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jax.typeof(ours) == jax.typeof(theirs)
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


# The decorator


def test_with_and_without_parentheses():
    @bp.compile
    def plain(x):
        """Doc."""
        return x * 2

    @bp.compile()
    def called(x):
        return x * 2

    @bp.compile(donate_argnums=0, debug=True)
    def with_options(x):
        return x * 2

    for step in (plain, called, with_options, bp.compile(plain.__wrapped__, debug=True)):
        assert isinstance(step, bp.CompiledFunction)
        same(step(jnp.asarray(X)), jnp.asarray(2 * X))
    assert (plain.__name__, plain.__doc__) == ("plain", "Doc.")
    assert "plain" in repr(plain) and "test_compile.py" in repr(plain)


class Adder:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x + self.n


CALLABLES = {
    "lambda": (lambda x: x + 1, (X,)),
    "partial": (functools.partial(jnp.add, 2.0), (X,)),
    "object": (Adder(3), (X,)),
    "jitted": (jax.jit(lambda x: x + 1), (X,)),
    "ufunc": (jnp.add, (X, X)),
    "custom_jvp": (jax.nn.relu, (X,)),
    "builtin": (sum, ([X, X],)),
    "any arguments": (lambda *xs, **named: xs[0] + named["y"], (X,), {"y": X}),
    "keyword only": (lambda x, *, y: x + y, (X,), {"y": 2.0}),
    "default": (lambda x, y=2.0: x + y, (X,)),
    "bound method": (Adder(4).__call__, (X,)),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_callables(name):
    fun, args, *named = CALLABLES[name]
    kwargs = named[0] if named else {}
    same(bp.compile(fun, debug=True)(*args, **kwargs), jax.jit(fun)(*args, **kwargs))


@pytest.mark.parametrize("name", ["step", "shared", "of_class"])
def test_methods(name):
    class Model:
        scale = 3.0

        @functools.partial(bp.compile, static_argnums=0)
        def step(self, x):
            return self.scale * x

        @staticmethod
        @bp.compile
        def shared(x):
            return 3 * x

        @classmethod
        @functools.partial(bp.compile, static_argnames="cls")
        def of_class(cls, x):
            return cls.scale * x

    model = Model()
    same(getattr(model, name)(X), jnp.asarray(3 * X))
    if name == "step":
        assert model.step.lower(X).graph == model.step.trace(X).lower().graph
        assert len(model.step.explain().traces) == 1
    assert isinstance(Model.step, bp.CompiledFunction)


# Trees

Point = collections.namedtuple("Point", "x y")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: dict
    step: int
    name: str = dataclasses.field(metadata={"static": True}, default="run")


TREES = {
    "array": X,
    "number": 2.0,
    "integer": 3,
    "boolean": True,
    "complex": 1j,
    "numpy scalar": np.float32(2),
    "none": None,
    "empty": {},
    "empty inside": {"a": (), "b": [], "c": X},
    "none inside": {"a": None, "b": (X, None)},
    "dict": {"w": X, "b": {"c": 1.0}},
    "ordered": collections.OrderedDict(b=X, a=2.0),
    "default": collections.defaultdict(list, w=[X]),
    "list": [X, [X, (X,)]],
    "namedtuple": Point(X, {"z": 1}),
    "dataclass": State({"w": X}, 3),
    "key": jax.random.key(0),
    "old key": jax.random.PRNGKey(0),
    "partial": jax.tree_util.Partial(jnp.multiply, X),
    "bfloat16": jnp.ones(2, jnp.bfloat16),
    "no elements": np.zeros((0, 3), np.float32),
    "float8": jnp.ones(2, jnp.float8_e4m3fn),
    "int4": jnp.ones(2, jnp.int4),
    "struct": (jnp.int8(3), np.uint16([3])),
}


@pytest.mark.parametrize("name", TREES)
def test_tree_goes_through(name):
    tree = TREES[name]
    same(bp.compile(lambda t: t, debug=True)(tree), jax.jit(lambda t: t)(tree))
    same(bp.compile(lambda t: (t, 1.5))(t=tree), jax.jit(lambda t: (t, 1.5))(t=tree))


@pytest.mark.parametrize(
    "fun", [lambda: None, lambda: (), lambda: 3, lambda: {"a": jnp.ones(2), "b": 2.5}, lambda: X]
)
def test_no_inputs(fun):
    same(bp.compile(fun, debug=True)(), jax.jit(fun)())


OUTPUTS = {
    "weak": lambda x: (2.0, 2 * x[0], jnp.where(x[0] > 1, 1.0, 0.0)),
    "weak of an argument": lambda x, y=1.0: y * 3,
    "the same twice": lambda x: (x, x, x + 0),
    "input and literal": lambda x: (x, 1, True, 1j),
    "numpy constant": lambda x: (np.ones(2), np.float64(3), np.int8([1, 2])),
    "weak after passes": lambda x: ((x[0] * 0 + 1) * 2.0, jnp.asarray(2.0) * 1),
    "through scan": lambda x: jax.lax.scan(lambda c, _: (c * 1.5, c), 1.0, None, 3),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_types_of_outputs_are_those_of_jit(name):
    fun = OUTPUTS[name]
    same(bp.compile(fun)(X), jax.jit(fun)(X))


@pytest.mark.parametrize("wide", [False, True])
def test_x64_is_obeyed_at_each_call(wide):
    step = bp.compile(lambda x: x * 2.0)
    for flag in (wide, not wide, wide):
        with jax.enable_x64(flag):
            x = np.arange(3.0)
            same(step(x), jax.jit(lambda x: x * 2.0)(x))


# Static arguments, donation, options

STATIC = {
    "number": ({"static_argnums": 1}, lambda f: f(X, 3)),
    "negative": ({"static_argnums": (-1, -2)}, lambda f: f(X, 3, "sum")),
    "numbers": ({"static_argnums": (1, 2)}, lambda f: f(X, 3, "sum")),
    "name": ({"static_argnames": "n"}, lambda f: f(X, n=3)),
    "name by position": ({"static_argnames": "n"}, lambda f: f(X, 3)),
    "number by name": ({"static_argnums": 1}, lambda f: f(X, n=3)),
    "both": ({"static_argnums": 1, "static_argnames": "how"}, lambda f: f(X, 3, how="sum")),
    "left at its default": ({"static_argnames": ("n", "how")}, lambda f: f(X)),
}


@pytest.mark.parametrize("name", STATIC)
def test_static_arguments(name):
    options, call = STATIC[name]

    def fun(x, n=2, how="max"):
        return [getattr(jnp, how)(x)] * n

    same(call(bp.compile(fun, **options)), call(jax.jit(fun, static_argnames=("n", "how"))))


def test_functions_as_static_arguments():
    step = bp.compile(lambda f, x: f(x), static_argnums=0)
    same(step(jnp.sin, X), jnp.sin(X))
    same(step(jnp.cos, X), jnp.cos(X))
    assert len(step.explain().traces) == 2


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"donate_argnames": "params"}])
def test_donation(options):
    step = bp.compile(lambda params, x: {"w": params["w"] + x}, **options)
    params, x = {"w": jnp.ones(3)}, jnp.asarray(X)
    first = step(params, x)
    second = step(first, x)
    assert params["w"].is_deleted() and first["w"].is_deleted() and not x.is_deleted()
    same(second, {"w": jnp.asarray(1 + 2 * X)})
    assert step.lower(second, x).compile().memory_analysis().alias_size_in_bytes == 12


@pytest.mark.parametrize("keep", [False, True])
def test_keep_unused(keep):
    lowered = bp.compile(lambda x, y: x, keep_unused=keep).lower(X, X)
    assert lowered.as_text("stablehlo").count("%arg") >= (2 if keep else 1)
    assert lowered.compile().memory_analysis().argument_size_in_bytes == (24 if keep else 12)


def test_compiler_options():
    step = bp.compile(lambda x: jnp.sin(x) * 2, compiler_options={"xla_cpu_enable_fast_math": True})
    np.testing.assert_allclose(step(X), 2 * np.sin(X), rtol=1e-5)
    bad = bp.compile(lambda x: x * 2, compiler_options={"xla_no_such_thing": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_thing"):
        bad(X)


def test_shardings():
    mesh = jax.make_mesh((1,), ("data",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    out = bp.compile(lambda x: x * 2, in_shardings=spec, out_shardings=spec)(X)
    assert out.sharding == spec


@pytest.mark.parametrize(
    "passes",
    [
        "",
        "canonicalise",
        "canonicalise,autodiff,cse",
        " canonicalise , autodiff ,dce ",
        [],
        "fold,simplify,fold,simplify,cse,dce",
    ],
)
def test_passes(passes):
    step = bp.compile(lambda x: jnp.sum((x + 0) * 1 - -x), passes=passes, debug=True)
    assert float(step(X)) == 6.0
    names = [name.strip() for name in passes.split(",") if name] if passes else []
    assert [stage.name for stage in step.lower(X).stages] == ["traced", *names]


# What it is called in


def quadratic(x):
    return jnp.vdot(x, x * jnp.arange(1.0, 4.0))


INSIDE = {
    "jit": lambda f: jax.jit(f)(X),
    "vmap": lambda f: jax.vmap(f)(np.stack([X, 2 * X])),
    "grad": lambda f: jax.grad(f)(X),
    "jvp": lambda f: jax.jvp(f, (X,), (X,)),
    "vjp": lambda f: jax.vjp(f, X)[1](jnp.float32(2)),
    "linearize": lambda f: jax.linearize(f, X)[1](X),
    "hessian": lambda f: jax.hessian(f)(X),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f))(X),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c + f(x), f(c * x)), 1.0, np.stack([X, X])),
    "cond": lambda f: jax.lax.cond(X[1] > 0, f, lambda x: 0.0, X),
    "while": lambda f: jax.lax.while_loop(lambda c: c < 50, lambda c: c + f(X), 1.0),
    "map": lambda f: jax.lax.map(f, np.stack([X, X])),
    "eval_shape": lambda f: jax.eval_shape(f, X),
    "compile": lambda f: bp.compile(lambda x: f(x) + 1, debug=True)(X),
    "compile and grad": lambda f: bp.compile(bp.grad(f), debug=True)(X),
    "custom_jvp": lambda f: jax.jvp(relu_like(f), (X,), (X,)),
    "argument": lambda f: bp.compile(lambda g, x: g(x), static_argnums=0)(f, X),
    "pure_callback": lambda f: jax.pure_callback(
        lambda x: np.asarray(f(x)), jax.ShapeDtypeStruct((), jnp.float32), X
    ),
}


def relu_like(f):
    wrapped = jax.custom_jvp(f)
    wrapped.defjvp(lambda primals, tangents: (f(*primals), tangents[0].sum()))
    return wrapped


@pytest.mark.parametrize("name", INSIDE)
def test_inside(name):
    found, expected = INSIDE[name](bp.compile(quadratic)), INSIDE[name](jax.jit(quadratic))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if name != "eval_shape":
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


CLOSED_OVER = {
    "jit": (lambda body: jax.jit(lambda s: body(s))(2.0)),
    "vmap": (lambda body: jax.vmap(lambda s: body(s))(X)),
    "grad": (lambda body: jax.grad(lambda s: body(s).sum())(2.0)),
    "scan": (lambda body: jax.lax.scan(lambda c, s: (c, body(s + c)), 1.0, X)),
}


@pytest.mark.parametrize("name", [*CLOSED_OVER, "compile", "our grad"])
@pytest.mark.parametrize("kind", ["compile", "grad", "compile grad"])
def test_closing_over_a_tracer(name, kind):
    """A function made inside another trace may read that trace's values."""
    ours = {
        "compile": lambda f: bp.compile(f),
        "grad": lambda f: bp.grad(lambda x: f(x).sum()),
        "compile grad": lambda f: bp.compile(bp.grad(lambda x: f(x).sum())),
    }[kind]
    theirs = {
        "compile": jax.jit,
        "grad": lambda f: jax.grad(lambda x: f(x).sum()),
        "compile grad": lambda f: jax.jit(jax.grad(lambda x: f(x).sum())),
    }[kind]
    outer = {
        **CLOSED_OVER,
        "compile": lambda body: bp.compile(lambda s: body(s))(2.0),
        "our grad": lambda body: bp.grad(lambda s: body(s).sum())(2.0),
    }[name]
    reference = {"compile": "jit", "our grad": "grad"}.get(name, name)
    for _ in range(2):
        found = outer(lambda s: ours(lambda x: jnp.sin(s * x))(X))
        expected = CLOSED_OVER[reference](lambda s: theirs(lambda x: jnp.sin(s * x))(X))
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5)


def test_closing_over_arrays():
    table, steps = jnp.arange(100.0), np.float32(3)
    step = bp.compile(lambda i: table[i] * steps)
    assert float(step(7)) == 21.0
    assert float(step(8)) == 24.0
    assert len(step.explain().traces) == 1


def test_globals_are_read_when_traced_as_in_jit():
    box = [1.0]
    step = bp.compile(lambda x: x * box[0])
    first = step(X)
    box[0] = 5.0
    same(step(X), first)
    same(step(X[:2]), jnp.asarray(5 * X[:2]))


def test_effects_happen_once_and_in_order(capfd):
    @bp.compile
    def step(x):
        jax.debug.print("first {}", x.sum(), ordered=True)
        jax.debug.print("second {}", x.sum(), ordered=True)
        return bp.grad(lambda x: (jax.debug.print("loss"), jnp.sum(x * x))[1])(x)

    step(X)
    jax.effects_barrier()
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "first 3.0", "loss", "second 3.0"]


def test_random_numbers_are_those_of_jax():
    def fun(key):
        a, b = jax.random.split(key)
        return jax.random.normal(a, (3,)), jax.random.permutation(b, 5), jax.random.key_data(a)

    same(bp.compile(fun)(jax.random.key(7)), jax.jit(fun)(jax.random.key(7)))


def test_threads_share_a_function():
    from concurrent.futures import ThreadPoolExecutor

    step = bp.compile(bp.grad(lambda x: jnp.sum(jnp.sin(x) ** 2)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(step, [X[:n] for n in (1, 2, 3)] * 6))
    for ours, n in zip(found, (1, 2, 3) * 6, strict=True):
        np.testing.assert_allclose(ours, np.sin(2 * X[:n]), rtol=1e-5)


def test_copies_and_pickles_like_a_function():
    import copy

    step = bp.compile(quadratic)
    assert float(copy.copy(step)(X)) == float(step(X))
