"""Each row's own element, however the rows are counted; nothing else is taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass.ir import verify
from backpass.passes import Canonicalise, Fold
from backpass.passes.picks import own_rows
from fuzz.interpret import run_graph
from passes.texts import compiled

N, V = 4, 6
X = np.random.default_rng(0).normal(size=(N, V)).astype(np.float32)
LABELS = np.int32([3, 0, 5, 5])
WIDE = np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32)
CUBE = np.random.default_rng(2).normal(size=(2, 3, V)).astype(np.float32)
PLACES = np.int32([[3, 0, 5], [1, 2, 2]])


def gathered(x, *indices, indexed=None):
    """One element for each place, by columns of indices."""
    dims = tuple(range(x.ndim))
    numbers = lax.GatherDimensionNumbers((), dims, indexed or dims)
    columns = [lax.broadcast_in_dim(i, (*i.shape, 1), tuple(range(i.ndim))) for i in indices]
    return lax.gather(x, lax.concatenate(columns, columns[0].ndim - 1), numbers, (1,) * x.ndim)


def count(*shape, along=0, dtype=np.int32):
    return lax.broadcasted_iota(dtype, shape, along)


def spread(i, shape, *dims):
    return lax.broadcast_in_dim(i, shape, dims)


OWN = {
    "counted": lambda x, i: x[jnp.arange(N), i],
    "by NumPy": lambda x, i: x[np.arange(N), i],
    "in two dimensions": lambda x, i: jnp.asarray(CUBE)[
        jnp.arange(2)[:, None], jnp.arange(3)[None], PLACES * i[0] // 3
    ],
    "cast": lambda x, i: gathered(x, count(N, dtype=np.uint8).astype(np.int32), i),
    "as many as fit": lambda x, i: gathered(
        WIDE[:128], count(128).astype(np.int8).astype(np.int32), count(128) % 2 * (i[0] // 3)
    ),
    "reshaped": lambda x, i: gathered(x, count(N).reshape(1, N, 1).reshape(N), i),
    "spread": lambda x, i: gathered(x, spread(count(1, N, along=1), (1, N), 0, 1).reshape(N), i),
    "constants": lambda x, i: gathered(
        CUBE, spread(np.int32([0, 1]), (2, 3), 0), np.int32([[0, 1, 2]] * 2), PLACES * i[0] // 3
    ),
}
OTHER = {
    "reversed": lambda x, i: x[np.arange(N)[::-1], i],
    "from one on": lambda x, i: gathered(x, np.arange(1, N + 1, dtype=np.int32) % N, i),
    "each row twice": lambda x, i: x[np.arange(N) // 2, i],
    "the labels": lambda x, i: x[i % N, i],
    "one row": lambda x, i: x[0, i],
    "a number": lambda x, i: gathered(x, spread(np.int32(0), (N,)), i),
    "counted backwards": lambda x, i: x[N - 1 - jnp.arange(N), i],
    "some of the rows": lambda x, i: x[jnp.arange(2), i[:2]],
    "a column": lambda x, i: x[jnp.arange(N)[:, None], i[:, None]],
    "counts that wrap round": lambda x, i: gathered(
        WIDE, count(300).astype(np.int8).astype(np.int32), count(300) % 2 * i[0]
    ),
    "counted along the other": lambda x, i: gathered(
        CUBE[:, :2], count(2, 2, along=1), count(2, 2, along=1), PLACES[:, :2] * i[0]
    ),
    "constants along the other": lambda x, i: gathered(
        CUBE[:, :2], np.int32([[0, 1]] * 2), count(2, 2, along=1), PLACES[:, :2] * i[0]
    ),
    "the second the other way round": lambda x, i: gathered(
        CUBE, count(2, 3), 2 - count(2, 3, along=1), PLACES * i[0] // 3
    ),
    "columns first": lambda x, i: gathered(x[:, :N], count(N), i % N, indexed=(1, 0)),
    "where not negative": lambda x, i: gathered(x, jnp.where(count(N) < 2, count(N), 1), i),
    "rows cut anew": lambda x, i: gathered(
        CUBE, count(6).reshape(2, 3) // 3, count(6).reshape(2, 3) % 3, PLACES * i[0]
    ),
    "counts cut anew": lambda x, i: gathered(
        CUBE, count(3, 2).reshape(2, 3) % 2, count(2, 3, along=1), PLACES * i[0]
    ),
    "spread of one": lambda x, i: gathered(x, spread(count(1), (N,), 0), i),
    "spread of others": lambda x, i: gathered(
        CUBE[:, :2], spread(count(2), (2, 2), 1), count(2, 2, along=1), PLACES[:, :2] * i[0]
    ),
}


@pytest.mark.parametrize("name", [*OWN, *OTHER])
def test_picks_of_own_rows(name):
    given = Fold()(Canonicalise()(compiled({**OWN, **OTHER}[name], X, LABELS)))
    found = own_rows(given)
    verify(found)
    np.testing.assert_array_equal(*run_graph(found, X, LABELS), *run_graph(given, X, LABELS))
    gathers = [node for node in found.nodes if node.op.name == "gather"]
    batched = [bool(g.attrs["dimension_numbers"].operand_batching_dims) for g in gathers]
    assert any(batched) == (name in OWN)


def test_what_is_traced_is_not_known():
    """A constant of a program that JAX traces around ours may be any array."""

    def around(rows):
        given = Canonicalise()(compiled(lambda x, i: gathered(x, rows, i), X, LABELS))
        assert [node.op.name for node in given.nodes].count("gather") == 1
        assert own_rows(given) is given
        return rows

    jax.make_jaxpr(around)(np.arange(N, dtype=np.int32))
