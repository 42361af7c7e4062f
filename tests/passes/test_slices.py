"""Slices of a product's rows: the rows that are left out are not multiplied."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass.ir import verify
from backpass.passes import Canonicalise, Cse
from backpass.passes.slices import early
from passes.texts import assert_rewrites, assert_same_values, compiled

X, W, V = np.ones((2, 4, 3), np.float32), np.ones((3, 5), np.float32), np.ones((3, 5), np.float32)
INPUTS = "%0: f32[2,4,3], %1: f32[3,5]"
DOT = "{dimension_numbers=(((1,),(0,)),((),()))}"
PRODUCT = f"""
    %2: f32[8,3] = reshape(%0)
    %3: f32[8,5] = dot_general(%2, %1) {DOT}
    %4: f32[2,4,5] = reshape(%3)
"""


def cut(low, high):
    return f"{{limit_indices={high}, start_indices={low}}}".replace(" ", "")


def products(fun):
    """Shapes of the products of a function, and of what becomes of it; values are compared."""
    given = Cse()(Canonicalise()(compiled(fun, X, W, V)))
    found = early(given)
    verify(found)
    assert_same_values(found, given)
    every = [
        [n.output.shape for n in g.walk() if n.op.name == "dot_general"] for g in (given, found)
    ]
    assert (found is given) == (every[0] == every[1])
    return [new for new in every[1] if every[1].count(new) > every[0].count(new)]


def test_the_product_of_the_sliced_rows():
    before = f"{PRODUCT}\n%5: f32[2,3,5] = slice(%4) {cut((0, 1, 0), (2, 4, 5))}\nreturn %5"
    after = f"""
        %2: f32[8,3] = reshape(%0)
        %3: f32[8,5] = dot_general(%2, %1) {DOT}
        %4: f32[2,4,5] = reshape(%3)
        %5: f32[2,3,3] = slice(%0) {cut((0, 1, 0), (2, 4, 3))}
        %6: f32[6,3] = reshape(%5)
        %7: f32[6,5] = dot_general(%6, %1) {DOT}
        %8: f32[2,3,5] = reshape(%7)
        return %8
    """
    assert_rewrites(early, INPUTS, before, after)


MOVES = {
    "the last row": lambda x, w, v: (x @ w)[:, :-1],
    "both dimensions": lambda x, w, v: (x @ w)[1:, 1:3],
    "of a function": lambda x, w, v: jnp.sin(x @ w)[:, 1:],
    "with a number": lambda x, w, v: (2.0 * (x @ w) - 1.0)[:, :-1],
    "with a bias": lambda x, w, v: (x @ w + w[0])[:, :-1],
    "with one number for each row": lambda x, w, v: (x[..., :1] * jnp.exp(x @ w))[:, 2:],
    "with one number for each sample": lambda x, w, v: (jnp.exp(x @ w) - x[:, :1, :1])[:, 2:],
    "with an array": lambda x, w, v: (jnp.tile(x[..., :1], 5) - x @ w)[:, :-1],
    "where a mask is": lambda x, w, v: jnp.where(x[..., :1] > 0, x @ w, 7.0)[:, :-1],
    "of the second of two": lambda x, w, v: ((x @ w).sum() + (x @ v))[:, 1:],
    "cast": lambda x, w, v: (x @ w).astype(jnp.bfloat16)[:, :-1],
    "in a loop": lambda x, w, v: lax.map(lambda s: (s * x @ w)[:, :-1], jnp.arange(2.0)),
    "the first of two": lambda x, w, v: (x @ w + jnp.sin(x) @ v)[:, :-1],
}
ROWS = {"both dimensions": 2, "with one number for each row": 4}
ROWS["with one number for each sample"] = 4
STAYS = {
    "no slice": lambda x, w, v: x @ w,
    "returned as well": lambda x, w, v: ((y := x @ w), y[:, :-1]),
    "read as well": lambda x, w, v: ((y := x @ w).sum(), y[:, :-1]),
    "its function is read as well": lambda x, w, v: ((y := jnp.sin(x @ w))[:, :-1], y.sum()),
    "its function is returned as well": lambda x, w, v: ((y := jnp.sin(x @ w))[:, :-1], y),
    "sliced twice": lambda x, w, v: ((y := x @ w)[:, :-1], y[:, 1:]),
    "every other row": lambda x, w, v: (x @ w)[:, ::2],
    "some columns": lambda x, w, v: (x @ w)[..., :3],
    "some columns from the last on": lambda x, w, v: (x @ w)[..., 3:],
    "a product of two dimensions": lambda x, w, v: (x[0] @ w)[:-1],
    "rows in another shape": lambda x, w, v: (x @ w).reshape(4, 2, 5)[:, :1],
    "columns in another shape": lambda x, w, v: (x @ w).reshape(2, 4, 5, 1)[:, :1],
    "a sum in between": lambda x, w, v: (x @ w).sum(-1)[:, :-1],
    "bits in between": lambda x, w, v: lax.bitcast_convert_type(x @ w, jnp.int32)[:, :-1],
    "an input": lambda x, w, v: jnp.sin(x)[:, :-1],
    "the other way round": lambda x, w, v: (w.T @ x.swapaxes(1, 2))[:, :-1],
    "a matrix for each row": lambda x, w, v: jnp.einsum(
        "nc,nck->nk", x.reshape(8, 3), jnp.tile(w, (8, 1, 1))
    ).reshape(2, 4, 5)[:, :-1],
    "rows of two tokens": lambda x, w, v: (x.reshape(4, 6) @ jnp.tile(w, 2).repeat(2, 0)).reshape(
        2, 4, 5
    )[:, :-1],
    "returned by a loop": lambda x, w, v: lax.map(lambda s: ((y := x @ w * s), y[:1]), x[0, 0]),
}


def test_rows_cut_anew_stay():
    """The product is of the rows of [2,4], what is sliced is of those of [4,2]."""
    before = f"""
        {PRODUCT.replace("f32[2,4,5]", "f32[4,2,5]")}
        %5: f32[4,1,5] = slice(%4) {cut((0, 0, 0), (4, 1, 5))}
        return %5
    """
    assert_rewrites(early, INPUTS, before, None)


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    assert products(MOVES[name]) == [(ROWS.get(name, 6), 5)]


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    assert products(STAYS[name]) == []
