"""What each op makes of a part of the batch: values beside the whole's, and reasons of refusals.

The first word of a row's name is the op that has to run part by part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from passes.parts import assert_refused, in_parts
from passes.texts import ops

LOW, HIGH = (2, 0, 1), (1, 2, 0)


def joined(x):
    """Two copies, in which a part has some samples of each."""
    return lax.concatenate([x, 2 * x], 0)


def keys(x):
    return jax.random.wrap_key_data(x[:, 0, :2].astype(np.uint32))


def windows(*, size=1, stride=1, padding=(0, 0), base=1, gap=1):
    """A window along the samples; along other dimensions it spans two elements, every other."""
    return lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (size, 2, 2), (stride, 1, 2), (padding, (1, 0), (0, 1)),
        (base, 2, 1), (gap, 1, 2),
    )  # fmt: skip


def fft(x, *lengths):
    return lax.fft_p.bind(x + 0j, fft_type=lax.FftType.FFT, fft_lengths=lengths)


def filled(x):
    return jnp.ones(x.shape)


SHAPES = {
    "optimization_barrier": lambda x: lax.optimization_barrier((x, jnp.arange(3.0))),
    "clamp": lambda x: lax.clamp(-0.1, x, 0.1) + lax.clamp(filled(x), x, filled(x)),
    "select_n": lambda x: lax.select(jnp.arange(3)[1] > 0, x, 2 * x),
    "reshape, the samples in front": lambda x: x.reshape(6, 35),
    "reshape, samples with others": lambda x: x.reshape(30, 7),
    "reshape, parts apart": lambda x: x.reshape(2, 3, 35),
    "reshape, parts of two copies": lambda x: joined(x).reshape(2, 6, 35),
    "transpose": lambda x: x.transpose(LOW) * 2,
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (2, 6, 5, 3, 7), (1, 2, 4)),
    "reduce_max": lambda x: x.transpose(LOW).max((0, 2)),
    "argmin": lambda x: lax.argmin(x.transpose(LOW), 0, np.int32),
    "cumsum": lambda x: lax.cumsum(x, 2),
    "sort": lambda x: lax.sort((x, 2 * x, filled(x)), dimension=1, num_keys=1),
    "rev": lambda x: lax.rev(x, (1, 2)),
    "concatenate beside": lambda x: lax.concatenate([x, 2 * x, filled(x)], 1),
    "concatenate along": joined,
    "stack in front": lambda x: lax.stack([x, 2 * x], axis=0),
    "stack behind": lambda x: lax.stack([x, 2 * x, x], axis=1),
    "unstack behind": lambda x: lax.unstack(x, axis=1),
    "unstack in front": lambda x: lax.unstack(x.transpose(LOW), axis=0),
    "tile": lambda x: lax.tile(x, (3, 1, 2)),
    "slice beside": lambda x: lax.slice(x, (0, 1, 0), (6, 5, 7), (1, 1, 2)),
    "slice of two copies": lambda x: lax.slice(joined(x), (6, 0, 0), (12, 5, 7)),
    "split beside": lambda x: lax.split(x, [1, 4], 1),
    "split of two copies": lambda x: lax.split(joined(x), [6, 6], 0),
    "pad": lambda x: lax.pad(x, 7.0, ((0, 0, 0), (1, -1, 2), (0, 3, 0))),
    "reduce_window_max": windows(),
    "top_k": lambda x: lax.top_k(x, 2),
    "fft": lambda x: jnp.abs(fft(x, 7)),
    "cholesky": lambda x: lax.linalg.cholesky(x @ x.transpose(0, 2, 1) + 9 * jnp.eye(5)),
    "random_bits": lambda x: jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys(x)),
    "random_fold_in": lambda x: jax.random.key_data(
        jax.vmap(jax.random.fold_in)(keys(x), jnp.arange(6))
    ),
    "random_fold_in of one number": lambda x: jax.random.key_data(
        jax.vmap(lambda key: jax.random.fold_in(key, 7))(keys(x))
    ),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (0, 2, 1), (6, 2, 5)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, 2 * x[:, :2], (0, 1, 0)),
    "dynamic_update_slice of zeros": lambda x: lax.dynamic_update_slice(
        jnp.zeros(x.shape), x[:, :, :2], (0, 0, 3)
    ),
}

TIED = {
    "broken up": (lambda x: x.reshape(3, 2, 35), "f32[6,5,7] as f32[3,2,35] has no parts"),
    "argmax": (lambda x: lax.argmax(x, 0, np.int32), "argmax runs over the samples"),
    "cumsum": (lambda x: lax.cumsum(x, 0), "cumsum runs along the samples"),
    "sort": (lambda x: lax.sort(x, dimension=0), "sort runs along the samples"),
    "rev": (lambda x: lax.rev(x, (1, 0)), "rev runs along the samples"),
    "unlike parts": (
        lambda x: lax.concatenate([x, x[:, :, :], jnp.ones((1, 5, 7))], 0),
        "it joins parts of [6, 6, 1] along the samples",
    ),
    "taken apart": (lambda x: lax.unstack(x, axis=0), "it takes the samples apart"),
    "first of them": (lambda x: x[:3], "it takes samples 0 to 3 of 6"),
    "last of them": (lambda x: x[3:], "it takes samples 3 to 6 of 6"),
    "every other": (lambda x: lax.slice(x, (0, 0, 0), x.shape, (2, 1, 1)), "it takes samples 0 to 6 of 6"),
    "split": (lambda x: lax.split(x, [3, 3], 0)[1], "it splits the samples into [3, 3]"),
    "padded": (lambda x: lax.pad(x, 0.0, ((0, 1, 0), (0, 0, 0), (0, 0, 0))), "it pads the samples"),
    "spread": (lambda x: lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0), (0, 0, 0))), "it pads the samples"),
    "window": (windows(size=2), "its window spans several samples"),
    "window's stride": (windows(stride=2), "its window spans several samples"),
    "window's padding": (windows(padding=(0, 1)), "its window spans several samples"),
    "window's base": (windows(base=2), "its window spans several samples"),
    "window's gap": (windows(gap=2), "its window spans several samples"),
    "top_k": (lambda x: lax.top_k(x.transpose(HIGH), 2), "top_k mixes the samples"),
    "fft": (lambda x: jnp.abs(fft(x, 6, 5, 7)), "fft mixes the samples"),
    "cholesky": (
        lambda x: lax.linalg.cholesky(x[:, 0, :6], symmetrize_input=False),
        "cholesky mixes the samples",
    ),
    "one key": (
        lambda x: jax.random.key_data(
            jax.vmap(jax.random.fold_in, (None, 0))(
                jax.random.key(0), x[:, 0, 0].astype(np.int32)
            )
        ).astype(np.float32),
        "one key makes the numbers of several samples",
    ),
    "some read": (lambda x: lax.dynamic_slice(x, (1, 0, 0), (3, 5, 7)), "it reads some of the"),
    "some written": (
        lambda x: lax.dynamic_update_slice(x, jnp.ones((2, 5, 7)), (1, 0, 0)),
        "it writes some of the samples",
    ),
    "an op of no rule": (
        lambda x: lax.linalg.schur(x[:, :, :5]),
        "it is not known what schur does with a part",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_an_op_runs_part_by_part(name):
    assert name.split()[0].strip(",") in ops(in_parts(SHAPES[name]))


@pytest.mark.parametrize("name", TIED)
def test_what_ties_samples_together_is_told(name):
    assert_refused(*TIED[name])
