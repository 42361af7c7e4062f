"""Which columns a known mask hides, and what then may be left out: no program is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

from backpass.ir import OPS, ArrayType, Builder
from backpass.passes import Canonicalise, Dce, Fuse
from backpass.passes.fuse import statics
from backpass.passes.fuse.statics import Statics
from fuzz.interpret import run_graph
from passes.attentions import mixed, scores
from passes.texts import compiled, ops, rewritten

B, T, H, D = 1, 12, 3, 2
FUSE = Fuse(block=3, scores=1, least=1 << 30)
Q, K, V = np.random.default_rng(0).normal(size=(3, B, T, H, D)).astype(np.float32)
ROW, COLUMN = np.arange(T)[:, None], np.arange(T)
CAUSAL = ROW >= COLUMN


def hidden(s, low=-1e9, mask=CAUSAL):
    return jnp.where(mask, s, low)


def softmax(s, v):
    return mixed(nn.softmax(s), v)


def by_hand(s, v, power=lambda e: e):
    e = jnp.exp(s - s.max(-1, keepdims=True))
    return mixed(power(e / e.sum(-1, keepdims=True)), v)


MATCH = {
    "mixed from the left": lambda s, v: jnp.einsum("bkhd,bhqk->bqhd", v, nn.softmax(hidden(s))),
    "clamped before": lambda s, v: softmax(hidden(jnp.maximum(s, 0.0)), v),
    "scaled by one number for all rows": lambda s, v: softmax(
        hidden(s, -2e4) * lax.full((T, 1), 0.6, np.float32), v
    ),
    "a dimension of one taken away": lambda s, v: softmax(
        hidden(s)[..., None, :].max(-2).reshape(s.shape), v
    ),
    "chosen by an unknown mask": lambda s, v: softmax(
        jnp.where(v[0, :, 0, 0] > 0, hidden(s), hidden(-s)), v
    ),
    "reshaped": lambda s, v: jnp.einsum("bhqok,bkhd->bqhd", nn.softmax(hidden(s)[..., None, :]), v),
    "squared": lambda s, v: by_hand(hidden(s), v, jnp.square),
    "rooted": lambda s, v: by_hand(hidden(s), v, jnp.sqrt),
    "negated": lambda s, v: by_hand(hidden(s), v, jnp.negative),
    "times each other": lambda s, v: by_hand(hidden(s), v, lambda p: p * jnp.sin(s)),
    "less each other": lambda s, v: by_hand(hidden(s), v, lambda p: p - p * p),
    "by numbers": lambda s, v: by_hand(hidden(s), v, lambda p: p / (1 + jnp.exp(-s))),
    "hidden twice": lambda s, v: softmax(hidden(s) + hidden(0.0), v),
    "hidden and more added": lambda s, v: softmax(hidden(s) + jnp.sin(COLUMN), v),
    "less a known bias": lambda s, v: softmax(hidden(s) - jnp.sin(COLUMN), v),
    "the greater": lambda s, v: softmax(jnp.maximum(hidden(s), hidden(-s, -2e9)), v),
    "the greater low one": lambda s, v: by_hand(jnp.maximum(hidden(s), -1e8), v),
    "twice the base": lambda s, v: mixed(jnp.exp2(hidden(s)), v),
    "scaled up": lambda s, v: softmax(hidden(s, -1e4) * 2.0, v),
    "scaled a little down": lambda s, v: softmax(hidden(s, -2e4) * 0.5, v),
    "divided a little": lambda s, v: softmax(hidden(s, -2e4) / 1.5, v),
    "barely low": lambda s, v: softmax(hidden(s, -1e4), v),
    "a part of all": lambda s, v: softmax(hidden(s, mask=abs(ROW - COLUMN) < 6), v),
}
MISS = {
    "clamped after": (lambda s, v: softmax(jnp.maximum(hidden(s), -5.0), v), "reduce_max"),
    "hidden by an unknown mask": (
        lambda s, v: softmax(jnp.where(v[0, :, 0, 0] > 0, hidden(s), -1e9), v),
        "a mask that is known only when it runs may hide all of a row",
    ),
    "an unknown bias": (
        lambda s, v: softmax(hidden(s) + v[0, :, 0, 0], v),
        "what is added to the scores may hide all of a row",
    ),
    "divided too much": (lambda s, v: softmax(hidden(s, -2e4) / 3.0, v), "reduce_max"),
    "scaled down too much": (lambda s, v: softmax(hidden(s, -2e4) * 0.4, v), "reduce_max"),
    "scaled by some": (
        lambda s, v: softmax(hidden(s, -2e4) * jnp.linspace(0.4, 1, T), v),
        "reduce_max",
    ),
    "turned": (lambda s, v: softmax(hidden(s) * -1.0, v), "reduce_max"),
    "times nothing": (lambda s, v: softmax(hidden(s) * 0.0, v), "reduce_max"),
    "over one": (lambda s, v: softmax(1 / hidden(s), v), "reduce_max"),
    "not low": (lambda s, v: softmax(hidden(s, -9e3), v), "no mask that is known leaves out any"),
    "cosine": (lambda s, v: by_hand(hidden(s), v, jnp.cos), "dot_general"),
    "one over all": (lambda s, v: by_hand(hidden(s), v, lambda p: 1 / (p + 1)), "dot_general"),
    "low less low": (lambda s, v: softmax(hidden(s) - hidden(0.0), v), "reduce_max"),
    "wild": (lambda s, v: softmax(hidden(s) + jnp.where(COLUMN > 5, 1e9, 0.0), v), "reduce_max"),
    "shapes": (
        lambda s, v: mixed(
            nn.softmax(
                hidden(hidden(s).reshape(B * H, T, T), mask=ROW - COLUMN < 5).reshape(B, H, T, T)
            ),
            v,
        ),
        "its masks are of several shapes",
    ),
    "together": (
        lambda s, v: by_hand(hidden(s), v, lambda p: hidden(p, 0.0, COLUMN >= ROW + 3)),
        "its masks together hide all",
    ),
    "returned": (
        lambda s, v: (lambda p: (mixed(p, v), p.mean(1)))(nn.softmax(hidden(s))),
        "all columns are returned",
    ),
    "little": (
        lambda s, v: softmax(hidden(s, mask=abs(ROW - COLUMN) < 7), v),
        "its mask leaves out only 12% of the scores",
    ),
    "nothing": (
        lambda s, v: softmax(hidden(s, mask=ROW >= 0), v),
        "no mask that is known leaves out any",
    ),
    "scores": (lambda s, v: (softmax(hidden(s), v), s), "the scores are returned"),
}


@pytest.mark.parametrize("name", MATCH)
def test_hidden_columns_are_left_out(name):
    (note,) = rewritten(FUSE, lambda q, k, v: MATCH[name](scores(q, k), v), Q, K, V)
    assert note.matched, note


@pytest.mark.parametrize("name", MISS)
def test_columns_that_matter_stay(name):
    form, reason = MISS[name]
    notes = rewritten(FUSE, lambda q, k, v: form(scores(q, k), v), Q, K, V)
    assert not any(note.matched for note in notes)
    assert any(note.reason.startswith(reason) for note in notes), [*map(str, notes)]


@pytest.mark.parametrize("mask", [CAUSAL, None], ids=["causal", "none"])
def test_queries_that_are_the_keys(mask):
    """Rows of a product with itself are those of its first operand."""

    def attend(x):
        s = jnp.einsum("qd,kd->qk", x, x)
        return nn.softmax(s if mask is None else jnp.where(mask, s, -1e9)) @ x

    notes = rewritten(FUSE, attend, Q[0, :, 0])
    assert [note.matched for note in notes] == [mask is CAUSAL], notes


def test_a_program_that_begins_with_its_scores():
    """All that the blocks read are the program's inputs."""

    def attend(q, k, v):
        shown = lax.broadcasted_iota(np.int32, (T, T), 1) < 5
        return nn.softmax(jnp.where(shown, jnp.einsum("qd,kd->qk", q, k), -1e9)) @ v

    (note,) = rewritten(FUSE, attend, *(x[0, :, 0] for x in (Q, K, V)))
    assert note.matched


def test_exponentials_that_are_hidden_by_zeros():
    """Nothing is between the product and what is hidden."""

    def attend(q, k, v):
        e = jnp.where(CAUSAL, jnp.exp(jnp.einsum("qd,kd->qk", q, k)), 0.0)
        return (e / e.sum(-1, keepdims=True)) @ v

    (note,) = rewritten(FUSE, attend, *(x[0, :, 0] for x in (Q, K, V)))
    assert note.matched


@pytest.mark.parametrize(
    ("size", "count"), [(5, 1), (6, 2), (11, 3), (12, 4), (26, 4), (30, 5), (48, 8), (60, 8)]
)
def test_how_many_blocks_there_are(size, count):
    """Two to eight, of three queries or more; four where more of them would not be twice as large."""
    x = np.ones((size, D), np.float32)

    def attend(x):
        s = jnp.where(np.tri(size, dtype=bool), jnp.einsum("qd,kd->qk", x, x), -1e9)
        return nn.softmax(s) @ x

    assert ops(FUSE(Canonicalise()(compiled(attend, x)))).count("exp") == count


def test_the_whole_scores_are_gone():
    def attend(q, k, v):
        return softmax(hidden(scores(q, k)), v)

    found = FUSE(Dce()(Canonicalise()(compiled(attend, Q, K, V))))
    assert all(
        n.output.type.size < B * H * T * T for n in found.nodes if n.op.name == "dot_general"
    )


def test_rows_that_become_several_dimensions_stay():
    def look_up(x, w):
        p = nn.softmax(jnp.where(COLUMN < 5, x @ w.T, -1e9))
        return jnp.square(p.reshape(3, 4, T)).sum(-1)

    notes = rewritten(FUSE, look_up, Q[0, :, 0], K[0, :, 0])
    assert not any(note.matched for note in notes)


def test_products_that_are_no_scores():
    def counts(x):
        return jnp.exp(jnp.where(CAUSAL, x @ x.T, -9).max(1).astype(np.float32))

    assert not rewritten(FUSE, counts, np.arange(2 * T, dtype=np.int32).reshape(T, 2))

    def unread(q, k):
        jnp.exp(hidden(scores(q, k)))
        return q

    (note,) = rewritten(FUSE, unread, Q, K)
    assert note.reason == "nothing reads it"


def test_results_that_are_read_before_all_is_there():
    def attend(q, k, v):
        p = nn.softmax(hidden(scores(q, k)))
        total = jnp.sin(p.sum(-1)).sum()
        return mixed(p, jnp.cos(v)), total

    (note,) = rewritten(FUSE, attend, Q, K, V)
    assert note.reason == "what it gives is read before all that it reads is there"


def test_queries_on_many_devices_are_left_alone():
    b, on = Builder(OPS), (("d", 2),)
    q, k, v = (b.value(ArrayType((T, D), np.dtype(np.float32))) for _ in range(3))
    q = b.value(q.type.spread((on, ())))
    s = b.dot_general(q, k, ((1,), (1,)))
    p = b.exp(b.select(b.constant(CAUSAL), s, b.full((T, T), -1e9, np.float32)))
    graph = b.graph("f", [q, k, v], [b.dot_general(p, v, ((1,), (0,)))])
    (note,) = FUSE.report(graph)
    assert note.reason == "its scores are divided over mesh axis 'd': a block would gather them"


KNOWN = {
    "numbers": lambda: lax.iota(np.int32, T) * 2 + 1,
    "a mask": lambda: (
        lax.broadcasted_iota(np.int32, (T, T), 0) >= lax.broadcasted_iota(np.int32, (T, T), 1)
    ),
    "reshaped": lambda: lax.iota(np.int32, T * T).reshape(T, T),
    "reshaped rows": lambda: lax.broadcasted_iota(np.int32, (4, 3), 1).reshape(12),
    "one": lambda: jnp.sin(lax.full((1, 1), 0.5, np.float32) + 1).reshape(()),
    "one in three dimensions": lambda: (lax.iota(np.int32, 1) + 7).reshape(1, 1, 1),
    "turned": lambda: (
        lax.broadcasted_iota(np.int32, (3, 4), 1).T + lax.broadcasted_iota(np.int32, (4, 3), 0)
    ),
    "spread": lambda: lax.broadcast_in_dim(lax.iota(np.int32, 3), (4, 3, 2), (1,)),
    "cast": lambda: lax.rem(lax.iota(np.int32, T), 3).astype(np.float32) / 2,
    "of gamma": lambda: lax.lgamma(lax.iota(np.float32, 4) + 1.5),
    "stopped": lambda: lax.stop_gradient(lax.iota(np.float32, 4)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known(name):
    graph = compiled(KNOWN[name])
    (value,) = graph.outputs
    found = Statics(graph)(value)
    assert found.ndim == value.ndim and found.dtype == value.dtype
    np.testing.assert_allclose(np.broadcast_to(found, value.shape), *run_graph(graph), rtol=1e-5)


@pytest.mark.parametrize("most", [4 * 12, 4 * 12 - 1])
def test_what_is_as_large_as_may_be_is_looked_at(most, monkeypatch):
    monkeypatch.setattr(statics, "LARGEST", most)
    for name in ("reshaped rows", "cast"):
        graph = compiled(KNOWN[name])
        assert (Statics(graph)(graph.outputs[0]) is not None) == (most == 4 * 12)


def test_what_is_large_is_not_looked_at():
    def reshaped():
        return lax.broadcasted_iota(np.int32, (1 << 14, 1 << 13), 1).reshape(1 << 13, 1 << 14)

    def added():
        return sum(lax.broadcasted_iota(np.int32, (1 << 14, 1 << 13), i) for i in range(2))

    for fun in (reshaped, added):
        graph = compiled(fun)
        assert Statics(graph)(graph.outputs[0]) is None
