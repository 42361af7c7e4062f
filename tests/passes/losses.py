"""Spellings of a loss over a vocabulary, and look-alikes that must not be computed by rows.

Each takes `(x[B,T,D], w[D,V], b[V], labels[B,T], mask[B,T])` and returns one number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax, nn

Loss = Callable[..., Any]
MATCH: dict[str, Loss] = {}
MISS: dict[str, Loss] = {}


def match(f: Loss) -> Loss:
    MATCH[f.__name__] = f
    return f


def miss(f: Loss) -> Loss:
    MISS[f.__name__] = f
    return f


def picked(logp, labels):
    return jnp.take_along_axis(logp, labels[..., None], -1)[..., 0]


@match
def log_softmax_take(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w + b), labels).mean()


@match
def no_bias(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w), labels).mean()


@match
def einsum(x, w, b, labels, mask):
    return -picked(nn.log_softmax(jnp.einsum("btd,dv->btv", x, w)), labels).mean()


@match
def tied(x, w, b, labels, mask):
    return -picked(nn.log_softmax(jnp.einsum("btd,vd->btv", x, w.T)), labels).mean()


@match
def vocabulary_first(x, w, b, labels, mask):
    logits = jnp.einsum("dv,btd->vbt", w, x)
    logp = nn.log_softmax(logits, axis=0)
    return -jnp.take_along_axis(logp, labels[None], 0).mean()


@match
def flat(x, w, b, labels, mask):
    logits = (x @ w).reshape(-1, w.shape[1])
    return -picked(nn.log_softmax(logits), labels.reshape(-1)).mean()


@match
def flat_before(x, w, b, labels, mask):
    logits = x.reshape(-1, x.shape[-1]) @ w + b
    return -picked(nn.log_softmax(logits), labels.reshape(-1)).mean()


@match
def arange_index(x, w, b, labels, mask):
    logp, flat = nn.log_softmax(x @ w).reshape(-1, w.shape[1]), labels.reshape(-1)
    return -logp[jnp.arange(flat.shape[0]), flat].mean()


@match
def two_aranges(x, w, b, labels, mask):
    rows, columns = labels.shape
    logp = nn.log_softmax(x @ w)
    return -logp[jnp.arange(rows)[:, None], jnp.arange(columns)[None], labels].mean()


@match
def logsumexp(x, w, b, labels, mask):
    logits = x @ w + b
    return (nn.logsumexp(logits, -1) - picked(logits, labels)).mean()


@match
def by_hand(x, w, b, labels, mask):
    logits = x @ w + b
    logits = logits - lax.stop_gradient(logits.max(-1, keepdims=True))
    return (jnp.log(jnp.exp(logits).sum(-1)) - picked(logits, labels)).mean()


@match
def one_hot(x, w, b, labels, mask):
    return -(nn.one_hot(labels, w.shape[1]) * nn.log_softmax(x @ w)).sum(-1).mean()


@match
def one_hot_all_at_once(x, w, b, labels, mask):
    return -(nn.one_hot(labels, w.shape[1]) * nn.log_softmax(x @ w)).sum() / labels.size


@match
def one_hot_einsum(x, w, b, labels, mask):
    return -jnp.einsum("btv,btv->bt", nn.one_hot(labels, w.shape[1]), nn.log_softmax(x @ w)).mean()


@match
def equality(x, w, b, labels, mask):
    here = labels[..., None] == jnp.arange(w.shape[1])
    return -jnp.where(here, nn.log_softmax(x @ w), 0.0).sum(-1).mean()


@match
def log_of_softmax(x, w, b, labels, mask):
    return -jnp.log(picked(nn.softmax(x @ w + b), labels)).mean()


@match
def optax_integer_labels(x, w, b, labels, mask):
    return optax.softmax_cross_entropy_with_integer_labels(x @ w + b, labels).mean()


@match
def optax_one_hot(x, w, b, labels, mask):
    return optax.softmax_cross_entropy(x @ w, nn.one_hot(labels, w.shape[1])).mean()


@match
def optax_smoothed(x, w, b, labels, mask):
    targets = optax.smooth_labels(nn.one_hot(labels, w.shape[1]), 0.1)
    return optax.softmax_cross_entropy(x @ w + b, targets).mean()


@match
def smoothing(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w)
    return (-0.9 * picked(logp, labels) - 0.1 * logp.mean(-1)).mean()


@match
def z_loss(x, w, b, labels, mask):
    logits = x @ w
    z = nn.logsumexp(logits, -1)
    return (z - picked(logits, labels)).mean() + 1e-2 * jnp.square(z).mean()


@match
def z_loss_inside(x, w, b, labels, mask):
    logits = x @ w
    z = nn.logsumexp(logits, -1)
    return (z - picked(logits, labels) + 1e-2 * z**2).mean()


@match
def masked(x, w, b, labels, mask):
    return -(picked(nn.log_softmax(x @ w), labels) * mask).sum() / mask.sum()


@match
def masked_at_least_one(x, w, b, labels, mask):
    loss = -picked(nn.log_softmax(x @ w), labels)
    return (loss * mask).sum() / jnp.maximum(mask.sum(), 1)


@match
def masked_by_where(x, w, b, labels, mask):
    loss = -picked(nn.log_softmax(x @ w), labels)
    return jnp.where(mask > 0.5, loss, 0.0).sum() / (mask > 0.5).sum()


@match
def masked_mean(x, w, b, labels, mask):
    return jnp.mean(-picked(nn.log_softmax(x @ w), labels), where=mask > 0.5)


@match
def ignored_label(x, w, b, labels, mask):
    ignored = labels == 3
    loss = -picked(nn.log_softmax(x @ w), jnp.where(ignored, 0, labels))
    return jnp.where(ignored, 0.0, loss).sum() / (~ignored).sum()


@match
def average(x, w, b, labels, mask):
    return jnp.average(-picked(nn.log_softmax(x @ w), labels), weights=mask)


@match
def vdot(x, w, b, labels, mask):
    return -jnp.vdot(picked(nn.log_softmax(x @ w), labels), mask)


@match
def mean_of_sequences(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w), labels).mean(1).mean()


@match
def weighted_sequences(x, w, b, labels, mask):
    loss = -(picked(nn.log_softmax(x @ w), labels) * mask).sum(1) / mask.sum(1)
    return (loss * jnp.arange(1.0, 1 + len(loss))).sum()


@match
def class_weights(x, w, b, labels, mask):
    weights = jnp.linspace(0.5, 2.0, w.shape[1])[labels]
    return -(weights * picked(nn.log_softmax(x @ w), labels)).sum() / weights.sum()


@match
def sum_over_all(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w), labels).sum()


@match
def scaled_logits(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w * 0.3), labels).mean()


@match
def temperature(x, w, b, labels, mask):
    return -picked(nn.log_softmax((x @ w + b) / 1.7), labels).mean()


@match
def soft_cap(x, w, b, labels, mask):
    return -picked(nn.log_softmax(5 * jnp.tanh(x @ w / 5)), labels).mean()


@match
def column_mask(x, w, b, labels, mask):
    logits = jnp.where(jnp.arange(w.shape[1]) < w.shape[1] - 2, x @ w, -1e9)
    return -picked(nn.log_softmax(logits), labels).mean()


@match
def padded_vocabulary(x, w, b, labels, mask):
    logits = (x @ w)[..., : w.shape[1] - 2]
    return -picked(nn.log_softmax(logits), labels).mean()


@match
def focal(x, w, b, labels, mask):
    logp = picked(nn.log_softmax(x @ w), labels)
    return -((1 - jnp.exp(logp)) ** 2 * logp).mean()


@match
def binary(x, w, b, labels, mask):
    logits = x @ w
    targets = nn.one_hot(labels, w.shape[1])
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1).mean()


@match
def hinge(x, w, b, labels, mask):
    logits = x @ w
    return jnp.maximum(0, 1 + logits - picked(logits, labels)[..., None]).sum(-1).mean()


@match
def entropy(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w)
    return -(jnp.exp(logp) * logp).sum(-1).mean()


@match
def distillation(x, w, b, labels, mask):
    teacher = lax.stop_gradient(nn.softmax(x @ (w * 0.5)))
    return -(teacher * nn.log_softmax(x @ w)).sum(-1).mean()


@match
def squared(x, w, b, labels, mask):
    return jnp.square(nn.softmax(x @ w) - nn.one_hot(labels, w.shape[1])).sum(-1).mean()


@match
def with_regulariser(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w), labels).mean() + 1e-3 * jnp.square(w).sum()


@match
def perplexity(x, w, b, labels, mask):
    return jnp.exp(-picked(nn.log_softmax(x @ w), labels).mean())


@match
def normalised_rows(x, w, b, labels, mask):
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return -picked(nn.log_softmax(x @ w), labels).mean()


@match
def float32_loss(x, w, b, labels, mask):
    logits = (x.astype(jnp.float32) @ w.astype(jnp.float32)).astype(x.dtype)
    return -picked(nn.log_softmax(logits), labels).mean()


@match
def shifted(x, w, b, labels, mask):
    logits = (x @ w)[:, :-1]
    return -picked(nn.log_softmax(logits), labels[:, 1:]).mean()


@match
def vmapped(x, w, b, labels, mask):
    def one(row, label):
        return -nn.log_softmax(row @ w + b)[label]

    return jax.vmap(jax.vmap(one))(x, labels).mean()


@match
def vmapped_over_sequences(x, w, b, labels, mask):
    def one(rows, labels):
        return -picked(nn.log_softmax(rows @ w), labels).mean()

    return jax.vmap(one)(x, labels).mean()


@match
def jitted(x, w, b, labels, mask):
    return jax.jit(log_softmax_take)(x, w, b, labels, mask)


@jax.custom_vjp
def _entropy(logits, labels):
    return nn.logsumexp(logits, -1) - picked(logits, labels)


def _entropy_forward(logits, labels):
    return _entropy(logits, labels), (logits, labels)


def _entropy_backward(kept, ct):
    logits, labels = kept
    slope = nn.softmax(logits) - nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return ct[..., None] * slope, None


_entropy.defvjp(_entropy_forward, _entropy_backward)


@match
def rule_of_its_own(x, w, b, labels, mask):
    return _entropy(x @ w, labels).mean()


@match
def logaddexp(x, w, b, labels, mask):
    logits = x @ w
    return (jnp.logaddexp(logits, 0.0).sum(-1) - picked(logits, labels)).mean()


@match
def softplus(x, w, b, labels, mask):
    return nn.softplus(x @ w + b).sum(-1).mean()


@match
def two_masks(x, w, b, labels, mask):
    loss = -picked(nn.log_softmax(x @ w), labels) * mask
    return loss.sum() / mask.sum() + 0.1 * (loss * mask).sum()


@match
def argmax_baseline(x, w, b, labels, mask):
    logits = x @ w
    right = lax.stop_gradient((logits.argmax(-1) == labels).astype(x.dtype))
    return -(picked(nn.log_softmax(logits), labels) * (1 + right)).mean()


@match
def sorted_margin(x, w, b, labels, mask):
    best = jnp.sort(x @ w, axis=-1)
    return (best[..., -1] - best[..., -2]).mean()


@match
def cumulative(x, w, b, labels, mask):
    return jnp.square(jnp.cumsum(nn.softmax(x @ w), -1)).sum(-1).mean()


@match
def one_sequence(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x.reshape(1, -1, x.shape[-1]) @ w), labels.reshape(1, -1)).mean()


@match
def transposed_product(x, w, b, labels, mask):
    logits = (w.T @ x.reshape(-1, x.shape[-1]).T).T
    return -picked(nn.log_softmax(logits), labels.reshape(-1)).mean()


# Look-alikes


@miss
def softmax_over_tokens(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w, axis=1), labels).mean()


@miss
def softmax_over_batch(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w, axis=0), labels).mean()


@miss
def softmax_over_all(x, w, b, labels, mask):
    logits = x @ w
    return -picked(logits - nn.logsumexp(logits), labels).mean()


@miss
def softmax_over_tokens_and_classes(x, w, b, labels, mask):
    return -picked(nn.log_softmax(x @ w, axis=(1, 2)), labels).mean()


@miss
def greatest_of_all(x, w, b, labels, mask):
    logits = x @ w
    return -picked(nn.log_softmax(logits / logits.max()), labels).mean()


@miss
def batch_normalised(x, w, b, labels, mask):
    logits = x @ w
    logits = (logits - logits.mean((0, 1))) / (logits.std((0, 1)) + 1)
    return -picked(nn.log_softmax(logits), labels).mean()


@miss
def other_rows_labels(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w).reshape(-1, w.shape[1])
    return -logp[jnp.arange(len(logp))[::-1], labels.reshape(-1)].mean()


@miss
def fixed_row(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w).reshape(-1, w.shape[1])
    return -logp[jnp.zeros(len(logp), int), labels.reshape(-1)].mean()


@miss
def rows_by_label(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w).reshape(-1, w.shape[1])
    return -logp[labels.reshape(-1), labels.reshape(-1)].mean()


@miss
def neighbours(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w)
    return -picked(logp + jnp.roll(logp, 1, axis=1), labels).mean()


@miss
def reversed_rows(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w)
    return -picked(logp * logp[:, ::-1], labels).mean()


@miss
def cumulative_over_tokens(x, w, b, labels, mask):
    return -picked(jnp.cumsum(nn.log_softmax(x @ w), axis=1), labels).mean()


@miss
def root_of_mean(x, w, b, labels, mask):
    loss = -picked(nn.log_softmax(x @ w), labels)
    return jnp.sqrt(loss.mean(1)).mean()


@miss
def variance_of_losses(x, w, b, labels, mask):
    loss = -picked(nn.log_softmax(x @ w), labels)
    return loss.mean() + loss.var()


@miss
def greatest_loss(x, w, b, labels, mask):
    return (-picked(nn.log_softmax(x @ w), labels)).max()


@miss
def worst_sequence(x, w, b, labels, mask):
    return (-picked(nn.log_softmax(x @ w), labels)).mean(1).max()


@miss
def sorted_losses(x, w, b, labels, mask):
    loss = jnp.sort((-picked(nn.log_softmax(x @ w), labels)).reshape(-1))
    return loss[: len(loss) // 2].mean()


@miss
def product_of_two_means(x, w, b, labels, mask):
    logits = x @ w
    z = nn.logsumexp(logits, -1)
    return (z - picked(logits, labels)).mean() * jnp.square(z).mean()


@miss
def logits_reused(x, w, b, labels, mask):
    logits = x @ w
    return -picked(nn.log_softmax(logits), labels).mean() + jnp.square(logits @ logits[0].T).mean()


@miss
def logits_mixed(x, w, b, labels, mask):
    p = nn.softmax(x @ w)
    return jnp.square(jnp.einsum("btv,bsv->bts", p, p)).mean()


@miss
def probabilities_over_tokens(x, w, b, labels, mask):
    used = nn.softmax(x @ w).mean((0, 1))
    return -(used * jnp.log(used)).sum()


@miss
def transposed_pick(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w).reshape(-1, w.shape[1]).T
    return -logp[labels.reshape(-1) % 5, : len(labels)].mean()


@miss
def shuffled(x, w, b, labels, mask):
    logp = nn.log_softmax(x @ w).reshape(-1, w.shape[1])
    order = jnp.argsort(labels.reshape(-1))
    return -picked(logp[order], labels.reshape(-1)).mean()


@miss
def weights_of_the_losses(x, w, b, labels, mask):
    loss = -picked(nn.log_softmax(x @ w), labels)
    return (nn.softmax(loss, axis=-1) * loss).sum()


@miss
def regrouped(x, w, b, labels, mask):
    logits = (x @ w).reshape(-1, w.shape[1] // 2)
    return nn.logsumexp(logits[::2], -1).mean()


@miss
def pairs_of_tokens(x, w, b, labels, mask):
    logits = x @ w
    pairs = jnp.concatenate([logits[:, 1:], logits[:, :-1]], -1)
    return nn.logsumexp(pairs, -1).mean()


@miss
def while_over_rows(x, w, b, labels, mask):
    def step(carry, row):
        return carry + nn.logsumexp(row + carry), None

    return lax.scan(step, jnp.zeros((), x.dtype), (x @ w).reshape(-1, w.shape[1]))[0]


@miss
def contrastive(x, w, b, labels, mask):
    logits = (x @ w).reshape(-1, w.shape[1])
    scores = logits @ logits.T
    return -jnp.diag(nn.log_softmax(scores)).mean()


@miss
def fourier(x, w, b, labels, mask):
    return jnp.abs(jnp.fft.fft(x @ w, axis=1)).mean()


@miss
def threshold_of_all(x, w, b, labels, mask):
    logits = x @ w
    logits = jnp.where(logits > logits.mean(), logits, 0.0)
    return -picked(nn.log_softmax(logits), labels).mean()
