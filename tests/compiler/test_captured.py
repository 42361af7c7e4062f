"""The warning of large arrays that a function closes over."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.compiler.captured import LIMIT

ROWS = LIMIT // 4 // 1024
X = np.ones((2, 1024), np.float32)
TABLE = np.ones((ROWS, 1024), np.float32)
WEIGHTS = {"layer": [jnp.zeros(3), jnp.ones((ROWS, 1024))]}


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """Constants of this size take XLA a while; tracing is enough."""
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)


def told(fun, *args):
    with pytest.warns(bp.ConstantWarning) as record:
        bp.compile(fun).trace(*args)
    (warning,) = record
    assert warning.filename == __file__
    return str(warning.message)


class Model:
    def __init__(self):
        self.table = TABLE

    def __call__(self, x):
        return x @ self.table.T

    def method(self, x):
        return x @ self.table.T


def by_a_helper(x):
    return helper(x)


def helper(x):
    return x @ WEIGHTS["layer"][1].T


def by_a_loss(x):
    return bp.grad(lambda x: jnp.sum(x @ TABLE.T))(x)


def in_a_loop(x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ TABLE.T @ TABLE), None), x, None, 3)[0]


def closure():
    table = jnp.ones((ROWS, 1024))
    return lambda x: x @ table.T


NAMED = {
    "global": (lambda x: x @ TABLE.T, "TABLE"),
    "closure": (closure(), "table"),
    "leaf": (lambda x: x @ WEIGHTS["layer"][1].T, "WEIGHTS['layer'][1]"),
    "helper": (by_a_helper, "WEIGHTS['layer'][1]"),
    "loss": (by_a_loss, "TABLE"),
    "loop": (in_a_loop, "TABLE"),
    "method": (Model().method, "self.table"),
    "object": (Model(), "table"),
    "partial": (functools.partial(lambda w, x: x @ w.T, TABLE), "partial.args[0]"),
    "jitted": (jax.jit(lambda x: x @ TABLE.T), "TABLE"),
    "made inside": (lambda x: x @ np.ones((ROWS, 1024), np.float32).T, None),
}


@pytest.mark.parametrize("name", NAMED)
def test_bytes_type_name_and_line(name):
    fun, variable = NAMED[name]
    text = told(fun, X)
    assert "closes over 16.0 MiB of arrays" in text
    row = text.splitlines()[1]
    assert "16.0 MiB, read at tests/compiler/test_captured.py:" in row
    assert row.startswith(f"    {variable}: f32[" if variable else "    f32[")
    assert "at tests/compiler/test_captured.py:" in text.splitlines()[-1]
    assert "pass them as arguments" in text


def test_once_for_a_function():
    step = bp.compile(lambda x: x @ TABLE.T)
    with pytest.warns(bp.ConstantWarning) as record:
        step.trace(X)
        step.trace(X[:1])
    assert len(record) == 1


def test_the_same_array_counts_once_and_slices_count_apart():
    text = told(lambda x: (x @ TABLE.T) @ TABLE + jnp.sin(TABLE[:2]), X)
    assert "closes over 16.0 MiB of arrays" in text
    rows = text.splitlines()[1:-1]
    assert len(rows) == 2 and "8.0 KiB" in rows[1]


def test_what_is_small_or_passed_is_no_trouble():
    small = TABLE[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.compile(lambda x: x @ small.T).trace(X)
        bp.compile(lambda x, w: x @ w.T).trace(X, TABLE)
        bp.compile(lambda x: x @ jnp.ones((ROWS, 1024)).T).trace(X)


@pytest.mark.parametrize("limit, warns", [(-1, False), (LIMIT + 1, False), (100, True)])
def test_the_users_own_limit(limit, warns):
    table = TABLE if limit != 100 else TABLE[:1]
    before = jax.config.jax_captured_constants_warn_bytes
    jax.config.update("jax_captured_constants_warn_bytes", limit)
    try:
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            bp.compile(lambda x: x @ table.T).trace(X)
    finally:
        jax.config.update("jax_captured_constants_warn_bytes", before)
    assert [w.category for w in record] == [bp.ConstantWarning] * warns


def test_values_of_an_outer_trace_are_no_constants():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.make_jaxpr(lambda w: bp.compile(lambda x: x @ w.T)(X))(TABLE)
