"""Spellings of attention under a mask, and look-alikes that must be left as they are.

Each takes `(q, k, v)` of shape `[B,T,H,D]`, and returns an array.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, nn

Attention = Callable[..., Any]
MATCH: dict[str, Attention] = {}
MISS: dict[str, Attention] = {}


def match(f: Attention) -> Attention:
    MATCH[f.__name__] = f
    return f


def miss(f: Attention) -> Attention:
    MISS[f.__name__] = f
    return f


def scores(q, k):
    return jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])


def mixed(p, v):
    return jnp.einsum("bhqk,bkhd->bqhd", p, v)


def causal(q, k):
    return jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))


@match
def naive(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9)), v)


@match
def minus_infinity(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -jnp.inf)), v)


@match
def least_number(q, k, v):
    s = scores(q, k)
    return mixed(nn.softmax(jnp.where(causal(q, k), s, jnp.finfo(s.dtype).min)), v)


@match
def hidden_where_true(q, k, v):
    hidden = jnp.triu(jnp.ones((q.shape[1],) * 2, bool), 1)
    return mixed(nn.softmax(jnp.where(hidden, -1e9, scores(q, k))), v)


@match
def added_bias(q, k, v):
    return mixed(nn.softmax(scores(q, k) + (1.0 - causal(q, k)) * -1e9), v)


@match
def added_by_where(q, k, v):
    return mixed(nn.softmax(scores(q, k) + jnp.where(causal(q, k), 0.0, -1e10)), v)


@match
def heads_first(q, k, v):
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    s = q @ k.swapaxes(-1, -2) / jnp.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones(s.shape[-2:], bool))
    return (nn.softmax(jnp.where(mask, s, -1e9)) @ v).transpose(0, 2, 1, 3)


@match
def keys_first(q, k, v):
    s = jnp.einsum("bkhd,bqhd->bhkq", k, q) / jnp.sqrt(q.shape[-1])
    s = jnp.where(causal(q, k).T, s, -1e9)
    return jnp.einsum("bhkq,bkhd->bqhd", nn.softmax(s, axis=-2), v)


@match
def query_first(q, k, v):
    s = jnp.einsum("bqhd,bkhd->qbhk", q, k) / jnp.sqrt(q.shape[-1])
    s = jnp.where(causal(q, k)[:, None, None], s, -1e9)
    return jnp.einsum("qbhk,bkhd->bqhd", nn.softmax(s), v)


@match
def one_head(q, k, v):
    s = jnp.where(causal(q, k), q[:, :, 0] @ k[:, :, 0].swapaxes(1, 2), -1e9)
    return nn.softmax(s) @ v[:, :, 0]


@match
def one_sequence(q, k, v):
    s = jnp.where(causal(q, k), q[0, :, 0] @ k[0, :, 0].T, -1e9)
    return nn.softmax(s) @ v[0, :, 0]


@match
def vmapped(q, k, v):
    def one(q, k, v):
        mask = jnp.tril(jnp.ones((len(q), len(k)), bool))
        return nn.softmax(jnp.where(mask, q @ k.T, -1e9)) @ v

    return jax.vmap(jax.vmap(one, 1, 1))(q, k, v)


@match
def iotas(q, k, v):
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    return mixed(nn.softmax(jnp.where(i >= j, scores(q, k), -1e9)), v)


@match
def window(q, k, v):
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    return mixed(nn.softmax(jnp.where((i >= j) & (i - j < 7), scores(q, k), -1e9)), v)


@match
def both_sides(q, k, v):
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    return mixed(nn.softmax(jnp.where(abs(i - j) < 4, scores(q, k), -1e9)), v)


@match
def ahead(q, k, v):
    """Anti-causal: each query sees what comes after it."""
    mask = jnp.triu(jnp.ones((q.shape[1],) * 2, bool))
    return mixed(nn.softmax(jnp.where(mask, scores(q, k), -1e9)), v)


@match
def prefix(q, k, v):
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    return mixed(nn.softmax(jnp.where((i >= j) | (j < 5), scores(q, k), -1e9)), v)


@match
def segments(q, k, v):
    """Documents of known length, packed."""
    i, j = jnp.arange(q.shape[1])[:, None] // 8, jnp.arange(k.shape[1])[None] // 8
    return mixed(nn.softmax(jnp.where(i == j, scores(q, k), -1e9)), v)


@match
def slopes(q, k, v):
    """ALiBi: a bias that is known, for each head."""
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    bias = 2.0 ** -jnp.arange(1, 1 + q.shape[2])[:, None, None] * (j - i)
    return mixed(nn.softmax(jnp.where(i >= j, scores(q, k) + bias, -1e9)), v)


@match
def soft_cap(q, k, v):
    s = 20 * jnp.tanh(scores(q, k) / 20)
    return mixed(nn.softmax(jnp.where(causal(q, k), s, -1e9)), v)


@match
def scaled_queries(q, k, v):
    s = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
    return mixed(nn.softmax(jnp.where(causal(q, k), s, -1e9)), v)


@match
def scaled_by_reciprocal(q, k, v):
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (1 / jnp.sqrt(q.shape[-1]))
    return mixed(nn.softmax(jnp.where(causal(q, k), s, -1e9)), v)


@match
def scaled_after_mask(q, k, v):
    s = jnp.where(causal(q, k), jnp.einsum("bqhd,bkhd->bhqk", q, k), -1e9)
    return mixed(nn.softmax(s / jnp.sqrt(q.shape[-1])), v)


@match
def softmax_by_hand(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    e = jnp.exp(s - s.max(-1, keepdims=True))
    return mixed(e / e.sum(-1, keepdims=True), v)


@match
def divided_after_mixing(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    e = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True)))
    return mixed(e, v) / e.sum(-1).transpose(0, 2, 1)[..., None]


@match
def by_logsumexp(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    return mixed(jnp.exp(s - nn.logsumexp(s, -1, keepdims=True)), v)


@match
def masked_twice(q, k, v):
    mask = causal(q, k)
    p = nn.softmax(jnp.where(mask, scores(q, k), -1e9))
    return mixed(jnp.where(mask, p, 0.0), v)


@match
def softmax_where(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    return mixed(nn.softmax(s, where=causal(q, k)), v)


@match
def dot_product_attention(q, k, v):
    return nn.dot_product_attention(q, k, v, is_causal=True)


@match
def grouped_queries(q, k, v):
    k, v = k[:, :, :1], v[:, :, :1]
    return nn.dot_product_attention(q, k, v, is_causal=True)


@match
def grouped_by_hand(q, k, v):
    k, v = (x[:, :, 0] for x in (k, v))
    s = jnp.einsum("bqgd,bkd->bgqk", q, k)
    return jnp.einsum("bgqk,bkd->bqgd", nn.softmax(jnp.where(causal(q, k), s, -1e9)), v)


@match
def repeated_keys(q, k, v):
    k, v = (jnp.repeat(x[:, :, :1], 2, axis=2) for x in (k, v))
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9)), v)


@match
def local_window(q, k, v):
    return nn.dot_product_attention(q, k, v, local_window_size=(5, 0))


@match
def float32_softmax(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k).astype(jnp.float32), -1e9)
    return mixed(nn.softmax(s).astype(q.dtype), v)


@match
def with_sink(q, k, v):
    """A softmax that may attend to nothing: one is added to the sum."""
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    e = jnp.exp(s - lax.stop_gradient(jnp.maximum(s.max(-1, keepdims=True), 0)))
    return mixed(e / (1 + e.sum(-1, keepdims=True)), v)


@match
def no_softmax(q, k, v):
    """Linear attention, written out."""
    return mixed(jnp.where(causal(q, k), scores(q, k), 0.0), v)


@match
def dropped(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    kept = jax.random.bernoulli(jax.random.key(1), 0.8, p.shape)
    return mixed(jnp.where(kept, p / 0.8, 0.0), v)


# Look-alikes


@miss
def unmasked(q, k, v):
    return mixed(nn.softmax(scores(q, k)), v)


@miss
def mask_after_softmax_of_all(q, k, v):
    return mixed(jnp.where(causal(q, k), nn.softmax(scores(q, k)), 0.0), v)


@miss
def softmax_over_queries(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9), axis=-2), v)


@miss
def softmax_over_heads(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9), axis=1), v)


@miss
def softmax_over_all(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9), axis=(-1, -2)), v)


@miss
def mask_not_low(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), -1.0)), v)


@miss
def mask_of_zeros(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), 0.0)), v)


@miss
def mask_high(q, k, v):
    return mixed(nn.softmax(jnp.where(causal(q, k), scores(q, k), 1e9)), v)


@miss
def mask_times_scores(q, k, v):
    return mixed(nn.softmax(scores(q, k) * causal(q, k)), v)


@miss
def strictly_causal(q, k, v):
    """The first query sees nothing: its softmax is one over all keys."""
    mask = jnp.tril(jnp.ones((q.shape[1],) * 2, bool), -1)
    return mixed(nn.softmax(jnp.where(mask, scores(q, k), -1e9)), v)


@miss
def a_row_hidden(q, k, v):
    mask = causal(q, k) & (jnp.arange(q.shape[1]) != 3)[:, None]
    return mixed(nn.softmax(jnp.where(mask, scores(q, k), -1e9)), v)


@miss
def unknown_mask(q, k, v):
    shown = q[:, None, :, :1, 0] > k[:, None, None, :, 0, 0]
    return mixed(nn.softmax(jnp.where(shown, scores(q, k), -1e9)), v)


@miss
def causal_and_unknown(q, k, v):
    """A mask of padding may hide all that the causal one shows."""
    shown = causal(q, k) & (k[:, None, None, :, 0, 0] > 0)
    return mixed(nn.softmax(jnp.where(shown, scores(q, k), -1e9)), v)


@miss
def causal_then_unknown(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    return mixed(nn.softmax(jnp.where(k[:, None, None, :, 0, 0] > 0, s, -1e9)), v)


@miss
def unknown_bias(q, k, v):
    s = scores(q, k) + jnp.where(k[:, None, None, :, 0, 0] > 0, 0.0, -1e9)
    return mixed(nn.softmax(jnp.where(causal(q, k), s, -1e9)), v)


@miss
def weights_returned(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return jnp.concatenate([mixed(p, v).ravel(), p.ravel()])


@miss
def weights_read_again(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return mixed(p, v) * jnp.square(p.sum((0, 1, 2)))[None, :, None, None]


@miss
def weights_mixed(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return mixed(jnp.einsum("bhqk,bhkl->bhql", p, p), v)


@miss
def weights_of_other_queries(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return mixed((p + p[:, :, ::-1]) / 2, v)


@miss
def normalised_twice(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return mixed(nn.softmax(p), v)


@miss
def entropy_of_weights(q, k, v):
    """The logarithm of a weight that is hidden is not zero."""
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return (p + 1e-3).sum(-1) @ v[:, :, 0][:, None]


@miss
def shifted_weights(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9)) - 0.01
    return mixed(p, v)


@miss
def least_of_scores(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    return mixed(nn.softmax(-s), v)


@miss
def by_the_least(q, k, v):
    s = jnp.where(causal(q, k), scores(q, k), -1e9)
    e = jnp.exp((s - s.min(-1, keepdims=True)) * 1e-9)
    return mixed(e / e.sum(-1, keepdims=True), v)


@miss
def permuted_keys(q, k, v):
    order = jnp.argsort(k[0, :, 0, 0])
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return mixed(jnp.take(p, order, axis=-1), v)


@miss
def cumulative(q, k, v):
    p = nn.softmax(jnp.where(causal(q, k), scores(q, k), -1e9))
    return mixed(jnp.cumsum(p, -1), v)


@miss
def ranked(q, k, v):
    s = jnp.sort(jnp.where(causal(q, k), scores(q, k), -1e9), axis=-1)
    return mixed(nn.softmax(s), v)


@miss
def sigmoid_of_all(q, k, v):
    return mixed(nn.sigmoid(scores(q, k)), v)


@miss
def random_mask(q, k, v):
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (q.shape[1], k.shape[1]))
    return mixed(nn.softmax(jnp.where(mask, scores(q, k), -1e9)), v)


@miss
def every_other_key(q, k, v):
    """Nothing that can be left out in one piece."""
    mask = (jnp.arange(q.shape[1])[:, None] + jnp.arange(k.shape[1])) % 2 == 0
    return mixed(nn.softmax(jnp.where(mask, scores(q, k), -1e9)), v)
