"""Programs with one fault each: the line that ends in `# fault` makes the first NaN or infinity."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp


@dataclass(frozen=True)
class Fault:
    """A step, its arguments, and what is to be found; `steps` are those of the loops around it."""

    step: Callable[..., Any]
    args: tuple[Any, ...]
    op: str
    phase: str
    steps: tuple[int, ...] = ()
    trap: bool = False

    @property
    def line(self) -> str:
        """The end of `file:line` of the fault."""
        lines, first = inspect.getsourcelines(self.step)
        (at,) = [i for i, text in enumerate(lines) if text.rstrip().endswith("# fault")]
        return f"faults.py:{first + at}"


FAULTS: dict[str, Fault] = {}
X = np.linspace(0.5, 2.0, 3072, dtype=np.float32).reshape(96, 32)
W = np.linspace(-1.0, 1.0, 1024, dtype=np.float32).reshape(32, 32)


def fault(*args: Any, op: str, phase: str = "forward", **more: Any) -> Callable[..., Any]:
    def add(step: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS[step.__name__] = Fault(step, args, op, phase, **more)
        return step

    return add


def descend(loss: Callable[..., Any], w: Any, *args: Any) -> Any:
    value, grads = bp.value_and_grad(loss)(w, *args)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), value


@fault(W, X, op="log")
def log_of_negative(w, x):
    def loss(w):
        h = jnp.tanh(x @ w)
        return -jnp.log(h).mean()  # fault

    return descend(loss, w)


@fault(W, X, op="sqrt")
def root_of_negative(w, x):
    def loss(w):
        h = jnp.sqrt(x @ w)  # fault
        return jnp.tanh(h).sum()

    return descend(loss, w)


@fault(W, X, op="div")
def division_by_zero(w, x):
    def loss(w):
        h = x @ w
        scale = (h - h).sum(-1, keepdims=True)
        return jnp.sum(h / scale)  # fault

    return descend(loss, w)


@fault(W, X * 100, op="exp")
def naive_softmax(w, x):
    def loss(w):
        h = x @ w
        e = jnp.exp(h)  # fault
        return jnp.sum((e / e.sum(-1, keepdims=True)) ** 2)

    return descend(loss, w)


@fault(W, X, np.zeros((96, 32), bool), op="sub")
def row_masked_from_end_to_end(w, x, mask):
    def loss(w):
        scores = jnp.where(mask, x @ w, -jnp.inf)
        return jnp.sum(jax.nn.softmax(scores) ** 2)  # fault

    return descend(loss, w)


@fault(W.astype(np.float16) * 1000, X.astype(np.float16) * 1000, op="dot_general")
def product_beyond_float16(w, x):
    def loss(w):
        h = x @ w  # fault
        return jnp.tanh(h).astype(jnp.float32).sum() + h.sum()

    return descend(loss, w)


@fault(W, X, op="convert_element_type")
def cast_beyond_float16(w, x):
    def loss(w):
        h = (x @ w) * 1e6
        low = h.astype(jnp.float16)  # fault
        return low.astype(jnp.float32).sum()

    return descend(loss, w)


@fault(W, X, op="acos")
def angle_out_of_range(w, x):
    def loss(w):
        cosine = 2.0 + (x @ w) ** 2
        return jnp.arccos(cosine).sum()  # fault

    return descend(loss, w)


@fault(W, X, op="pow")
def power_of_negative(w, x):
    def loss(w):
        h = x @ w
        return jnp.sum(h**0.3)  # fault

    return descend(loss, w)


@fault(W, 0 * X, op="div", phase="backward")
def norm_at_zero(w, x):
    def loss(w):
        return jnp.linalg.norm(x @ w)  # fault

    return descend(loss, w)


@fault(W, 0 * X, op="div", phase="backward")
def slope_of_root_at_zero(w, x):
    def loss(w):
        h = jnp.sqrt(jnp.abs(x @ w))  # fault
        return h.mean()

    return descend(loss, w)


@fault(W, X, op="sqrt", trap=True)
def where_around_negative_root(w, x):
    def loss(w):
        h = x @ w
        safe = jnp.where(h > 0, jnp.sqrt(h), 0.0)  # fault
        return safe.sum()

    return descend(loss, w)


@fault(W, 0 * X, op="div", phase="backward", trap=True)
def where_around_root(w, x):
    def loss(w):
        h = x @ w
        root = jnp.sqrt(h)  # fault
        return jnp.where(h > 0, root * 2.0, 0.0).sum()

    return descend(loss, w)


STEPS = np.stack([X, X, -X, X])


@fault(W, STEPS, op="sqrt", steps=(2,))
def inside_scan(w, xs):
    def loss(w):
        def body(c, x):
            c = jnp.tanh(c @ w) + x
            r = jnp.sqrt(x)  # fault
            return c, r

        c, rs = jax.lax.scan(body, X, xs)
        return c.sum() + rs.sum()

    return descend(loss, w)


@fault(W, np.stack([X, X, 0 * X, X]), op="div", phase="backward", steps=(2,))
def slope_inside_scan(w, xs):
    def loss(w):
        def body(c, x):
            h = jnp.sqrt(jnp.abs(x @ w))  # fault
            return jnp.tanh(c + h), None

        return jax.lax.scan(body, X, xs)[0].sum()

    return descend(loss, w)


@fault(W, STEPS, op="log", steps=(1, 2))
def inside_nested_scans(w, xs):
    def loss(w):
        def outer(total, shift):
            def inner(c, x):
                y = jnp.log(x + shift)  # fault
                return c + jnp.sum(jnp.tanh(y @ w)), None

            return jax.lax.scan(inner, total, xs)[0], None

        return jax.lax.scan(outer, 0.0, jnp.array([5.0, 0.0, 5.0]))[0]

    return descend(loss, w)


@fault(W, X, 1, op="log")
def inside_cond(w, x, which):
    def loss(w):
        h = x @ w

        def risky(h):
            return jnp.log(h)  # fault

        return jax.lax.cond(which > 0, risky, jnp.tanh, h).sum()

    return descend(loss, w)


@fault(W, 0 * X, 1, op="div", phase="backward")
def slope_inside_cond(w, x, which):
    def loss(w):
        def risky(h):
            return jnp.sqrt(h * h)  # fault

        return jax.lax.cond(which > 0, risky, jnp.tanh, x @ w).sum()

    return descend(loss, w)


@fault(W, STEPS, op="log", steps=(2,))
def cond_inside_scan(w, xs):
    def loss(w):
        def body(c, x):
            def risky(x):
                y = jnp.log(x)  # fault
                return y @ w

            c = c + jax.lax.cond(x[0, 0] < 0, risky, lambda x: x @ w, x)
            return c, None

        return jax.lax.scan(body, X, xs)[0].sum()

    return descend(loss, w)


@fault(np.float32(0.3), op="sqrt", steps=(2,))
def inside_while(x):
    def body(state):
        i, x = state
        return i + 1, jnp.sqrt(x) - 0.5  # fault

    return jax.lax.while_loop(lambda s: s[0] < 5, body, (0, x))[1]


@fault(W, 0 * X, op="div", phase="update")
def adam_without_epsilon(w, x):
    grads = bp.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)
    second = 0.01 * grads**2
    return w - 0.1 * grads / jnp.sqrt(second)  # fault


@fault(W, X, op="log")
def inside_checkpoint(w, x):
    @jax.checkpoint
    def block(w, x):
        h = jnp.tanh(x @ w)
        return jnp.log(h)  # fault

    return descend(lambda w: block(w, x).sum(), w)


@fault(W, X, op="log")
def inside_jit_and_vmap(w, x):
    @jax.jit
    def row(h):
        return jnp.log(h @ w).sum()  # fault

    def loss(v):
        return jax.vmap(row)(x * v).sum()

    return descend(loss, jnp.ones(32))


@fault(W, X, op="log1p")
def by_jax_grad(w, x):
    def loss(w):
        return jnp.log1p(-2 - (x @ w) ** 2).sum()  # fault

    value, grads = jax.value_and_grad(loss)(w)
    return w - grads, value


@fault(np.array([[1.0, 2.0], [2.0, 1.0]], np.float32), op="cholesky")
def matrix_not_positive(a):
    factor = jnp.linalg.cholesky(a)  # fault
    return jnp.log(jnp.diag(factor)).sum()


@fault(W, STEPS, op="sub", steps=(2,))
def infinity_minus_infinity_in_scan(w, xs):
    """Masks are infinite on purpose, in every step; the third has nothing else."""

    def loss(w):
        def body(c, x):
            scores = jnp.where(x > 0, x @ w, -jnp.inf)
            top = scores.max(-1, keepdims=True)
            shifted = scores - top  # fault
            return c + jnp.exp(shifted).sum(), None

        return jax.lax.scan(body, 0.0, xs)[0]

    return descend(loss, w)


@fault(W, 0 * X, op="div", phase="backward", trap=True)
def where_asks_the_norm_itself(w, x):
    def loss(w):
        n = jnp.linalg.norm(x @ w, axis=-1)  # fault
        return jnp.where(n > 0, n, 0.0).sum()

    return descend(loss, w)


@fault(W, np.stack([X, -X]), op="pow", phase="backward", steps=(1,), trap=True)
def where_around_power_inside_scan(w, xs):
    def loss(w):
        def body(c, x):
            h = jnp.sum(x * w[0] ** 2, -1)
            return c + jnp.where(h > 0, h**0.5, 0.0).sum(), None  # fault

        return jax.lax.scan(body, 0.0, xs)[0]

    return descend(loss, w)


@fault(W, X, op="log")
def where_beside_another_way(w, x):
    def loss(w):
        h = jnp.log(x @ w)  # fault
        return jnp.where(h > 0, h, 0.0).sum() + h.sum()

    return bp.grad(loss)(w), loss(w)


@fault(0 * W, op="div", trap=True)
def where_around_root_by_jax_grad(w):
    def loss(w):
        return jnp.where(w > 0, jnp.sqrt(w), 0.0).sum()  # fault

    return w - jax.grad(loss)(w)


@fault(W, np.arange(3), op="div", phase="backward", steps=(2,))
def slope_inside_scan_by_jax_grad(w, xs):
    def loss(w):
        def body(c, x):
            c = c + jnp.log(jnp.sum(w * 0))  # fault
            return jnp.tanh(c), None

        return jax.lax.scan(body, 0.0, xs)[0]

    return w - jax.grad(loss)(w)


@fault(W, op="log", steps=(0,))
def inside_map(w):
    return jax.lax.map(lambda row: jnp.log(row).sum(), w)  # fault


@fault(0 * W, op="div", phase="backward")
def library_function_differentiated(w):
    return bp.grad(jnp.linalg.norm)(w)  # fault
