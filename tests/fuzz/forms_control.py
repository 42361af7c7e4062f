"""Forms that hold programs: loops, branches, calls, custom rules, `jax.vmap`; library functions."""

from collections.abc import Callable, Sequence

import numpy as np

from fuzz.draft import LARGEST, Draft, Rejected
from fuzz.programs import Program

Outs = Callable[[Draft], list[int]]
DEEPEST = 2


def body(d: Draft, inputs: Sequence[np.ndarray], outs: Outs) -> Program:
    """A drawn function of `inputs`; `outs` chooses, or makes, its outputs."""
    from fuzz.generate import grow

    if d.depth >= DEEPEST:
        raise Rejected
    inner = Draft(d.rng, [np.array(x) for x in inputs], d.exact, d.depth + 1)
    grow(inner, d.integer(1, 4))
    return inner.program(outs(inner))


def shaped(inner: Draft, like: np.ndarray, mix: int) -> int:
    """A value of the type of `like` that depends on what was drawn: tanh(mix + mean of another)."""
    kind = like.dtype
    fit = [i for i, x in enumerate(inner.values) if x.shape == like.shape and x.dtype == kind]
    fit = [i for i in fit if i != mix]
    if fit and inner.chance(0.5):
        other = int(inner.one_of(*fit))
        return inner.emit("jnp.tanh($0 + 0.5 * $1)", mix, other)
    i = inner.real(lambda x: x.dtype == np.float64 or kind != np.float64)
    return inner.emit(f"jnp.tanh($0 - jnp.mean($1)).astype(np.{kind.name})", mix, i)


def of_rows(rows: np.ndarray) -> Outs:
    """One output for each row, few enough of them together."""
    return lambda inner: [inner.real(lambda x: x.size * len(rows) <= LARGEST)]


def scan(d: Draft) -> None:
    """Carry and slices, closing over a value; in reverse or unrolled at times."""
    xs = d.real(lambda x: x.ndim > 0 and 1 < x.shape[0] < 5)
    carry, held = d.real(lambda x: x.ndim < 3), d.real()
    rows = d.values[xs]

    def outs(inner: Draft) -> list[int]:
        return [shaped(inner, d.values[carry], 1), *of_rows(rows)(inner)]

    step = body(d, [d.values[held], d.values[carry], rows[0]], outs)
    options = d.one_of("", ", reverse=True", ", unroll=2", ", reverse=True, unroll=True")
    d.emit(
        f"lax.scan(lambda c, x: $f0($2, c, x), $0, $1{options})",
        carry,
        xs,
        held,
        outs=2,
        bodies=[step],
    )


def scan_pair(d: Draft) -> None:
    """Two carries, one of integers, no slices, a fixed length."""
    carry, held = d.real(lambda x: x.ndim < 3), d.real()

    def outs(inner: Draft) -> list[int]:
        count = inner.emit("$0 + np.int32(1)", 2)
        return [shaped(inner, d.values[carry], 1), count]

    step = body(d, [d.values[held], d.values[carry], np.array(1, np.int32)], outs)
    d.emit(
        f"lax.scan(lambda c, _: ($f0($1, *c), c[1]), ($0, np.int32(0)), None, "
        f"length={d.integer(1, 3)})[0]",
        carry,
        held,
        outs=2,
        bodies=[step],
    )


def fori(d: Draft) -> None:
    carry, held = d.real(lambda x: x.ndim < 3), d.real()

    def outs(inner: Draft) -> list[int]:
        return [shaped(inner, d.values[carry], 1)]

    step = body(d, [d.values[held], d.values[carry], np.array(1, np.int32)], outs)
    d.emit(
        f"lax.fori_loop(0, {d.integer(1, 3)}, lambda i, c: $f0($1, c, jnp.int32(i))[0], $0)",
        carry,
        held,
        bodies=[step],
    )


def while_off_the_path(d: Draft) -> None:
    """A loop whose length depends on values, and whose result has no gradient."""
    i = d.real(lambda x: x.size > 0)
    d.emit(
        "lax.while_loop(lambda c: c[0] < 3.0, lambda c: (c[0] * 2.0 + 1.0, c[1] + 1), "
        "(lax.stop_gradient(jnp.abs(jnp.sum($0)).astype(float)), np.int32(0)))[1]"
        if not d.exact
        else "lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] * 2, c[1] + 1), "
        "(jnp.argmax($0.ravel()).astype(np.int32), np.int32(0)))[0] % 5",
        i,
    )


def _branches(d: Draft, count: int) -> tuple[list[int], list[Program]]:
    given = [d.real() for _ in range(d.integer(1, 2))]
    inputs = [d.values[i] for i in given]
    like = d.values[d.real(lambda x: x.dtype == np.float64)]

    def outs(inner: Draft) -> list[int]:
        fit = [i for i, x in enumerate(inner.values) if x.shape == like.shape]
        fit = [i for i in fit if inner.values[i].dtype == like.dtype]
        if fit and inner.chance(0.6):
            return [int(inner.one_of(*fit))]
        i = inner.real()
        return [inner.emit(f"jnp.sum($0).astype(float) * np.ones({like.shape})", i)]

    return given, [body(d, inputs, outs) for _ in range(count)]


def cond(d: Draft) -> None:
    if d.chance(0.5):
        test = d.pick(lambda x: x.dtype == bool and x.shape == ())
    else:
        i = d.real(lambda x: x.size > 0)
        threshold = d.number()
        d.apart(np.sum(d.values[i]), threshold)
        test = d.emit(f"jnp.sum($0) < {threshold}", i)
    given, bodies = _branches(d, 2)
    listed = ", ".join(f"${k + 1}" for k in range(len(given)))
    d.emit(f"lax.cond($0, $f0, $f1, {listed})[0]", test, *given, bodies=bodies)


def switch(d: Draft) -> None:
    if d.chance(0.5):
        index = d.pick(lambda x: x.dtype == np.int32 and x.shape == ())
    else:
        index = d.emit(f"jnp.int32({d.integer(-1, 3)})")
    given, bodies = _branches(d, 3)
    listed = ", ".join(f"${k + 1}" for k in range(len(given)))
    d.emit(f"lax.switch($0, [$f0, $f1, $f2], {listed})[0]", index, *given, bodies=bodies)


def _two(d: Draft) -> tuple[list[int], Program]:
    """A function of one or two values with one or two floating outputs."""
    given = [d.real() for _ in range(d.integer(1, 2))]

    def outs(inner: Draft) -> list[int]:
        return [inner.real() for _ in range(inner.integer(1, 2))]

    return given, body(d, [d.values[i] for i in given], outs)


def _call(d: Draft, expr: str, without: str = "nothing") -> None:
    given, inner = _two(d)
    if any(without in step.expr for step in inner.walk()):
        raise Rejected
    listed = ", ".join(f"${k}" for k in range(len(given)))
    outs = len(inner.outputs)
    d.emit(f"{expr}({listed})" + ("[0]" if outs == 1 else ""), *given, outs=outs, bodies=[inner])


def jit(d: Draft) -> None:
    _call(d, "jax.jit($f0)")


def checkpoint(d: Draft) -> None:
    policies = "everything_saveable nothing_saveable dots_saveable".split()
    policy = d.one_of(
        "",
        *(f", policy=jax.checkpoint_policies.{name}" for name in policies),
        ", policy=jax.checkpoint_policies.save_only_these_names('kept')",
    )
    _call(d, f"jax.checkpoint($f0{policy})")


def custom_jvp(d: Draft) -> None:
    """A rule that is the derivative, or a multiple of it where only JAX is asked."""
    scale = 1.0 if d.exact else 1.5
    _call(
        d,
        "(lambda g: (g.defjvp(lambda p, t: (lambda o, s: (o, jax.tree.map("
        f"lambda x: {scale} * x, s)))(*jax.jvp($f0, p, t))), g)[1])(jax.custom_jvp($f0))",
        without="custom_vjp",  # JAX's `custom_lin`, which stands for its JVP, has no rule of ours
    )


def custom_vjp(d: Draft) -> None:
    scale = 1.0 if d.exact else 1.5
    _call(
        d,
        "(lambda g: (g.defvjp(lambda *xs: ($f0(*xs), xs), lambda xs, ct: jax.tree.map("
        f"lambda x: {scale} * x, jax.vjp($f0, *xs)[1](ct))), g)[1])(jax.custom_vjp($f0))",
    )


def vmap(d: Draft) -> None:
    """Rows of one value, the whole of another."""
    i = d.real(lambda x: x.ndim > 0 and 0 < x.shape[0] < 5)
    j = d.real()
    rows = d.values[i]
    inner = body(d, [rows[0], d.values[j]], of_rows(rows))
    axis = d.one_of(0, 0, -1)
    d.emit(f"jax.vmap($f0, in_axes=(0, None), out_axes={axis})($0, $1)[0]", i, j, bodies=[inner])


def mapped(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0 and 0 < x.shape[0] < 5)
    rows = d.values[i]
    inner = body(d, [rows[0]], of_rows(rows))
    d.emit("lax.map(lambda x: $f0(x)[0], $0)", i, bodies=[inner])


def associative(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0 and x.shape[0] > 1)
    op = d.one_of("jnp.add", "jnp.multiply", "lambda a, b: jnp.tanh(a * 0.5 + b)")
    d.emit(f"lax.associative_scan({op}, $0, reverse={d.chance(0.3)})", i)


def linear_solve(d: Draft) -> None:
    """A solver that closes over the matrix."""
    i = d.real(lambda x: x.ndim == 2 and x.shape[0] == x.shape[1] and x.dtype == np.float64)
    n = d.values[i].shape[0]
    j = d.real(lambda y: y.shape == (n,) and y.dtype == np.float64)
    symmetric = d.chance(0.4)
    matrix = (
        f"(0.5 * $0 @ $0.T + {n} * np.eye({n}))"
        if symmetric
        else f"(0.5 * $0 + {3 * n} * np.eye({n}))"
    )
    ways = (
        "symmetric=True" if symmetric else ("transpose_solve=lambda _, b: jnp.linalg.solve(a.T, b)")
    )
    d.emit(
        f"(lambda a: lax.custom_linear_solve(lambda x: a @ x, $1, "
        f"lambda _, b: jnp.linalg.solve(a, b), {ways}))({matrix})",
        i,
        j,
    )


LIBRARY = (
    "gelu silu softplus log_sigmoid soft_sign elu selu sigmoid mish squareplus tanh celu".split()
)
KINKED = "relu relu6 leaky_relu hard_tanh hard_sigmoid hard_swish".split()


def activation(d: Draft) -> None:
    i = d.real()
    name = d.one_of(*LIBRARY, *KINKED)
    if name in (*KINKED, "elu", "selu", "celu"):
        for kink in (0, 1, -1, 3, -3, 6):
            d.apart(d.values[i], kink)
    d.emit(f"jax.nn.{name}($0)", i)


def normalised(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0 and x.shape[-1] > 1 and x.size > 0)
    if np.ptp(d.values[i]) < 0.2:
        raise Rejected
    name = d.one_of("softmax", "log_softmax", "standardize", "logsumexp")
    d.distinct(i)
    d.emit(f"jax.nn.{name}($0)", i)


def einsum(d: Draft) -> None:
    i = d.real(lambda x: x.ndim == 2)
    x = d.values[i]
    j = d.real(lambda y: y.ndim == 2 and y.shape[0] == x.shape[1] and y.dtype == x.dtype)
    d.emit(f"jnp.einsum('{d.one_of('ij,jk->ki', 'ij,jk->i', 'ij,jk->ikj')}', $0, $1)", i, j)


FORMS = (
    (2, scan), (1, scan_pair), (1, fori), (0.4, while_off_the_path), (1.2, cond), (1, switch),
    (1, jit), (1.2, checkpoint), (1, custom_jvp), (1, custom_vjp), (1.2, vmap), (0.6, mapped),
    (0.4, associative), (0.4, linear_solve), (1.5, activation), (1, normalised), (0.5, einsum),
)  # fmt: skip
