"""Products before, in and after a loop, by the passes alone: no program is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass.ir import verify
from backpass.passes import Canonicalise, Cse, Dce, Defer, Hoist
from fuzz.interpret import run_graph
from passes.texts import compiled, ops

T, B, D, H = 4, 2, 3, 5
DRAW = np.random.default_rng(0)
XS, W, U, SQUARE = (
    DRAW.normal(size=shape).astype(np.float32) for shape in [(T, B, D), (D, H), (H, H), (D, D)]
)
BOTH = np.concatenate([W, U])
START = jnp.zeros((B, H))
EAGER = Hoist(0.0, 1e6), Defer(0.0, 1e6)


def moved(fun, *args, passes=EAGER, tolerance=1e-4):
    """Numbers of products before the loop, in a step, and after the loop; and the notes."""
    given = Dce()(Cse()(Canonicalise()(compiled(fun, *args))))
    found, notes = given, []
    for apply in passes:
        notes += apply.report(found)
        found = apply(found)
    found = Dce()(found)
    verify(found)
    for a, b in zip(run_graph(found, *args), run_graph(given, *args), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=tolerance, atol=tolerance)
    names = [node.op.name for node in found.nodes]
    at = names.index("scan") if "scan" in names else 0
    before, after = (part.count("dot_general") for part in (names[:at], names[at:]))
    return (before, ops(found).count("dot_general") - before - after, after), notes


def joined(h, x):
    return jnp.concatenate([h, x], -1)


def scanned(step, start=START):
    return lambda xs: lax.scan(step, start, xs)


def state(step, start=START):
    return scanned(lambda h, x: (step(h, x), None), start)


def returned(step):
    return scanned(lambda h, x: (jnp.tanh(h + x @ W), step(h, x)))


CASES = {
    # [h, x] . w is divided where its parts are summed over
    "joined": (state(lambda h, x: joined(x, h) @ BOTH), (1, 1, 0)),
    "joined the other way": (state(lambda h, x: joined(h, x) @ BOTH[::-1]), (1, 1, 0)),
    "joined from the left": (state(lambda h, x: (BOTH.T @ joined(x, h).T).T), (1, 1, 0)),
    "joined twice": (state(lambda h, x: jnp.concatenate([x, h, x], -1) @ np.concatenate([BOTH, W])), (2, 1, 0)),
    "joined inputs": (state(lambda h, x: joined(x, x) @ np.concatenate([W, W]) * h), (1, 0, 0)),
    "joined states": (state(lambda h, x: joined(h, h) @ np.concatenate([U, U])), (0, 1, 0)),
    "joined rows": (
        state(lambda h, x: (jnp.concatenate([h, jnp.sin(x @ W)], 0) @ U).reshape(2, B, H).sum(0)),
        (1, 1, 0),
    ),
    "joined in 16 bits": (
        state(
            lambda h, x: joined(x.astype(jnp.bfloat16), h) @ BOTH.astype(jnp.bfloat16),
            START.astype(jnp.bfloat16),
        ),
        (0, 1, 0),
    ),
    # w . x is turned
    "from the left": (state(lambda h, x: h * (W.T @ x.T).T), (1, 0, 0)),
    "a vector from the left": (state(lambda h, x: h * (W.T @ x[0])), (1, 0, 0)),
    "in pairs from the left": (
        state(lambda h, x: h * jnp.einsum("bdh,bd->bh", np.stack([W, 2 * W]), x)),
        (1, 0, 0),
    ),
    # ys
    "a head": (returned(lambda h, x: h @ U), (1, 0, 1)),
    "a head and numbers": (returned(lambda h, x: jnp.sin(h @ U * 2 + 1)), (1, 0, 1)),
    "a head in two steps": (returned(lambda h, x: jnp.sin(h @ U) @ U.T), (1, 0, 2)),
    "two heads": (returned(lambda h, x: (h @ U, jnp.cos(h) @ U)), (1, 0, 2)),
    "a head of both": (returned(lambda h, x: (h @ U) * jnp.cos(h)), (1, 0, 1)),
    "a head that is sorted": (returned(lambda h, x: jnp.sort(h @ U)), (1, 1, 0)),
    "a head that goes on": (scanned(lambda h, x: (lambda y: (y + x @ W, y))(h @ U)), (1, 1, 0)),
    # sums
    "a sum": (state(lambda s, x: s + x.T @ x, SQUARE), (0, 0, 1)),
    "less a sum": (state(lambda s, x: s - x.T @ x, SQUARE), (0, 0, 1)),
    "a sum from zero on": (state(lambda s, x: s + x.T @ x, jnp.zeros((D, D))), (0, 0, 1)),
    "less a sum from zero on": (state(lambda s, x: s - x.T @ x, jnp.zeros((D, D))), (0, 0, 1)),
    "two terms": (state(lambda s, x: s + x.T @ x - jnp.sin(x).T @ x, SQUARE), (0, 0, 2)),
    "a sum that is turned": (state(lambda s, x: s + (x.T @ jnp.sin(x)).T, SQUARE), (0, 0, 1)),
    "a wider sum": (
        state(lambda s, x: s + (x.astype(jnp.bfloat16).T @ x.astype(jnp.bfloat16)).astype(jnp.float32), SQUARE),
        (0, 0, 1),
    ),
    "in place of both": (state(lambda s, x: s + s + x.T @ x, SQUARE), (0, 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_where_products_go(name):
    fun, expected = CASES[name]
    assert moved(fun, XS, tolerance=1e-2 if name == "a wider sum" else 1e-4)[0] == expected


def test_sums_of_rows_come_along():
    def step(sums, x):
        a, b, c = sums
        return (a + x.T @ x, b + x.sum(0), c - x), None

    counts, notes = moved(lambda xs: lax.scan(step, (SQUARE, XS[0, 0], XS[0]), xs), XS)
    assert counts == (0, 0, 1)
    assert [note.what for note in notes if note.matched] == ["sum after a loop"] * 3


def test_a_head_without_room_tells_so():
    counts, notes = moved(returned(lambda h, x: h @ U), XS, passes=(Hoist(0.0, 1e6), Defer(0.0)))
    assert counts == (1, 1, 0)
    (note,) = [note for note in notes if note.what == "product after a loop"]
    assert note.reason.startswith("what it reads of all steps would take 160 B in new stacks")


def test_a_head_that_is_smaller_than_its_stack_stays():
    fun = returned(lambda h, x: h @ U[:, :1])
    assert moved(fun, XS, passes=(Hoist(0.0, 1e6), Defer(1.0, 1e6)))[0] == (1, 1, 0)
    assert moved(fun, XS, passes=(Hoist(0.0, 1e6), Defer(0.5, 1e6)))[0] == (1, 0, 1)
