"""Forms of the element-wise and special functions."""

from functools import partial

import numpy as np

from fuzz.draft import Draft, Rejected
from ops.cases_elementwise import UNARY, exists

FLAT = "sign floor ceil is_finite stop_gradient".split()
COMPLEX = "neg exp sin cos sinh cosh tanh square logistic".split()


def unary(name: str, d: Draft) -> None:
    low, high = UNARY[name]
    i = d.real()
    i = i if (low, high) == (-2.0, 2.0) else d.within(i, low, high)
    d.emit(f"bind({name!r}, [$0], {{}})[0]" if name == "copy" else f"lax.{name}($0)", i)


def operators(d: Draft) -> None:
    """Broadcasting by jax.numpy, maybe with a Python number."""
    i = d.real()
    op = d.one_of("+", "-", "*")
    if d.chance(0.2):
        d.emit(d.one_of(f"$0 {op} {d.number()}", f"{d.number()} {op} $0"), i)
        return
    x = d.values[i]
    j = d.pick(lambda y: y.dtype.kind in ("f" if d.chance(0.9) else "fib") and _fit(x, y))
    d.emit(f"$0 {op} $1", i, j)


def _fit(x: np.ndarray, y: np.ndarray) -> bool:
    try:
        return np.broadcast_shapes(x.shape, y.shape) is not None
    except ValueError:
        return False


def implicit(d: Draft) -> None:
    """The primitive's own broadcasting: a scalar, or dimensions of size one."""
    i = d.real()
    x = d.values[i]
    j = d.real(
        lambda y: y.dtype == x.dtype and (y.ndim in (0, x.ndim) or x.ndim == 0) and _fit(x, y)
    )
    name = d.one_of("add", "sub", "mul", "atan2", "div", "pow", "max", "min")
    i, j = _safe(d, name, i, j)
    attrs = "{}"
    d.emit(f"bind({name!r}, [$0, $1], {attrs})[0]", i, j)


def _safe(d: Draft, name: str, i: int, j: int) -> tuple[int, int]:
    """Operands in the domain of a binary function."""
    if name == "div":
        return i, d.within(j, 0.5, 3.0)
    if name == "pow":
        return d.within(i, 0.5, 3.0), j
    if name == "atan2":
        return i, d.within(j, 0.4, 2.0)
    if name == "rem":
        i, j = d.within(i, 1.0, 2.0), d.within(j, 0.55, 0.8)
        d.apart(np.mod(d.values[i] / d.values[j] + 0.5, 1.0), 0.5)
        return i, j
    if name in ("max", "min"):
        d.apart(d.values[i], d.values[j])
    return i, j


def binary(name: str, d: Draft) -> None:
    i = d.real()
    i, j = _safe(d, name, i, d.like(i))
    d.emit(f"lax.{name}($0, $1)", i, j)


def integer_pow(d: Draft) -> None:
    y = d.one_of(0, 1, 2, 3, 4, -1, -2)
    i = d.real()
    d.emit(f"lax.integer_pow($0, {y})", d.within(i, 0.5, 2.0) if y < 0 else i)


def powers(d: Draft) -> None:
    i = d.within(d.real(), 0.5, 2.5)
    j = d.pick(lambda y: y.dtype.kind in "if" and _fit(d.values[i], y) and np.all(abs(y) < 7))
    d.emit(d.one_of("$0 ** $1", "jnp.power($0, $1)"), i, j)


def absolute(d: Draft) -> None:
    i = d.real()
    d.apart(d.values[i], 0)
    d.emit("lax.abs($0)", i)


def flat(d: Draft) -> None:
    i = d.real()
    name = d.one_of(*FLAT)
    d.apart(np.mod(d.values[i] + 0.5, 1.0), 0.5)
    kept = name in ("is_finite", "stop_gradient") and not d.exact
    d.emit(f"lax.{name}($0)" if kept or name in ("sign", "floor", "ceil") else "lax.round($0)", i)


def compare(d: Draft) -> None:
    i = d.real()
    j = d.like(i)
    d.apart(d.values[i], d.values[j] + (i == j))
    d.emit(f"$0 {d.one_of('<', '<=', '>', '>=', '==', '!=')} $1", i, j)


def select(d: Draft) -> None:
    """`select_n` by booleans or by integers, the selector of one shape or a scalar."""
    i = d.real()
    x = d.values[i]
    if d.chance(0.5):
        which = d.pick(lambda y: y.dtype == bool and y.shape in ((), x.shape))
        d.emit("lax.select_n($0, $1, $2)", which, i, d.like(i))
        return
    which = d.pick(lambda y: y.dtype == np.int32 and y.shape in ((), x.shape))
    which = d.emit("lax.clamp(np.int32(0), $0, np.int32(2))", which)
    d.emit("lax.select_n($0, $1, $2, $3)", which, i, d.like(i), d.like(i))


def where(d: Draft) -> None:
    which = d.pick(lambda y: y.dtype == bool)
    i = d.real(lambda x: _fit(x, d.values[which]))
    j = d.real(lambda x: _fit(x, d.values[which]) and _fit(x, d.values[i]))
    d.emit(d.one_of("jnp.where($0, $1, $2)", f"jnp.where($0, $1, {d.number()})"), which, i, j)


def clamp(d: Draft) -> None:
    i = d.real()
    low, high = sorted((d.number(), d.number()))
    d.apart(d.values[i], low)
    d.apart(d.values[i], high)
    d.emit(f"jnp.clip($0, {low}, {high})", i)


def clamp_primitive(d: Draft) -> None:
    """Bounds that are values themselves; JAX has no rule for their part."""
    i = d.real()
    x = d.values[i]
    low, high = sorted((d.number(), d.number()))
    d.apart(x, low)
    d.apart(x, high)
    kind = f"np.{x.dtype.name}"
    d.emit(f"lax.clamp({kind}({low}), $0, {kind}({high}))", i)


def integers(d: Draft) -> None:
    """From floats, or of integers."""
    if d.chance(0.5):
        i = d.real()
        d.apart(np.mod(d.values[i] + 0.5, 1.0), 0.5)
        d.emit("jnp.floor($0).astype(np.int32)", i)
        return
    i = d.pick(lambda x: x.dtype == np.int32)
    expr = d.one_of("$0 + 1", "-$0", "$0 % 3", "$0 // 2", "$0 & 3", "$0 ^ 5", "~$0", "$0 * $0")
    d.emit(f"({expr}).astype(np.int32)", i)


def to_real(d: Draft) -> None:
    i = d.pick(lambda x: x.dtype.kind in "ib" and x.size and np.abs(x.astype(int)).max() < 9)
    d.emit("$0.astype(float) * 0.25", i)


def casts(d: Draft) -> None:
    """Precision: only where finite differences are not asked."""
    if d.exact:
        raise Rejected
    new = d.one_of("np.float32", "np.float64", "np.float32", "np.complex64")
    d.emit(f"$0.astype({new})", d.real())


def to_complex(d: Draft) -> None:
    i = d.real(lambda x: x.dtype == np.float64)
    d.emit("lax.complex($0, $1)", i, d.like(i))


def _complex(d: Draft) -> int:
    return d.pick(lambda x: x.dtype.kind == "c")


def complex_unary(d: Draft) -> None:
    d.emit(f"lax.{d.one_of(*COMPLEX)}($0)", _complex(d))


def complex_log(d: Draft) -> None:
    """Away from the cut along the negative numbers."""
    i = _complex(d)
    x = d.values[i]
    if np.any((np.abs(x) < 0.3) | ((x.real < 0) & (np.abs(x.imag) < 0.3))):
        raise Rejected
    d.emit(f"lax.{d.one_of('log', 'sqrt', 'rsqrt')}($0)", i)


def complex_binary(d: Draft) -> None:
    i = _complex(d)
    d.emit(f"$0 {d.one_of('+', '-', '*')} $1", i, d.like(i))


def complex_mixed(d: Draft) -> None:
    i = _complex(d)
    x = d.values[i]
    j = d.real(lambda y: _fit(x, y))
    d.emit(d.one_of("$0 * $1", "$1 - $0", "$1 * $0"), i, j)


def complex_div(d: Draft) -> None:
    i = _complex(d)
    j = d.like(i)
    if np.any(np.abs(d.values[j]) < 0.4):
        raise Rejected
    d.emit("$0 / $1", i, j)


def complex_parts(d: Draft) -> None:
    i = _complex(d)
    if d.chance(0.3):
        if np.any(np.abs(d.values[i]) < 0.2):
            raise Rejected
        d.emit("jnp.abs($0)", i)
    else:
        d.emit(d.one_of("jnp.real($0)", "jnp.imag($0)", "jnp.conj($0)", "lax.conj($0)"), i)


def special(d: Draft) -> None:
    i = d.within(d.real(), 0.5, 3.0)
    j = d.within(d.like(i), 0.5, 3.0)
    name = d.one_of("igamma", "igammac", "polygamma", "zeta", "betainc", "random_gamma_grad")
    if name == "polygamma":
        order = d.integer(0, 2)
        d.emit(f"lax.polygamma(jnp.full_like($0, {order}), $0)", i)
    elif name == "zeta":
        d.emit(f"lax.zeta(jnp.full_like($0, {d.number(2, 4)}), $0)", i)
    elif name == "betainc":
        inside = d.within(d.like(i), 0.1, 0.9)
        a, b = d.number(0.5, 3), d.number(0.5, 3)
        d.emit(f"lax.betainc(jnp.full_like($0, {a}), jnp.full_like($0, {b}), $0)", inside)
    elif name == "random_gamma_grad":
        d.emit("lax.random_gamma_grad($0, $1)", i, j)
    elif d.chance(0.5):
        d.emit(f"lax.{name}($0, $1)", i, j)
    else:
        d.emit(f"lax.{name}(jnp.full_like($0, {d.number(0.5, 3)}), $0)", i)


def reduce_precision(d: Draft) -> None:
    if d.exact:
        raise Rejected
    d.emit("lax.reduce_precision($0, 8, 7)", d.real())


SMOOTH = [name for name in UNARY if name not in FLAT and exists(name)]

FORMS = (
    *((0.4, partial(unary, name)) for name in SMOOTH),
    (6, operators),
    (2, implicit),
    *((1.0, partial(binary, name)) for name in "add sub mul div max min atan2 rem pow".split()),
    (1, integer_pow),
    (1, powers),
    (1, absolute),
    (0.5, flat),
    (1.5, compare),
    (1.5, select),
    (1.5, where),
    (0.7, clamp),
    (0.7, clamp_primitive),
    (1, integers),
    (0.7, to_real),
    (2, casts),
    (1, to_complex),
    (1.5, complex_unary),
    (0.7, complex_log),
    (1.5, complex_binary),
    (1, complex_mixed),
    (0.7, complex_div),
    (1.5, complex_parts),
    (1, special),
    (0.5, reduce_precision),
)
