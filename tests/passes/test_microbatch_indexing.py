"""Gathers, scatters and products of a part of the batch, where samples are in any place of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from passes.parts import assert_refused, in_parts
from passes.texts import ops

FRONT = (1, 0, 2)  # the samples second
LAST = (2, 1, 0)  # the samples last
ROWS = np.array([[1], [0]])


def sign(x):
    return (x[:, :, :1] > 0).astype(np.int32)


def read(x, indices, sizes, *numbers):
    return lax.gather(x, indices, lax.GatherDimensionNumbers(*numbers), sizes)


def added(x, indices, updates, *numbers, by=lax.scatter_add):
    return by(x, indices, updates, lax.ScatterDimensionNumbers(*numbers))


def zeros(*shape):
    return jnp.zeros(shape)


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 17


INDEXED = {
    "gather from samples by samples": lambda x: read(
        x.transpose(FRONT), sign(x), (1, 1, 7), (2,), (0,), (0,), (1,), (0,)
    ),
    "gather from samples": lambda x: read(
        x.transpose(FRONT), np.ones((2, 6, 1), int), (1, 1, 7), (2,), (0,), (0,), (1,), (1,)
    ),
    "gather by samples": lambda x: read(
        numbered(5, 3, 6), sign(x), (1, 3, 1), (2,), (0,), (0,), (2,), (0,)
    ),
    "gather whole slices": lambda x: read(x, ROWS, (6, 1, 7), (0, 2), (1,), (1,)),
    "gather whole slices, samples last": lambda x: read(
        x.transpose(LAST), ROWS, (7, 1, 6), (1, 2), (1,), (1,)
    ),
    "gather from a table": lambda x: read(numbered(7, 5, 3), sign(x), (7, 1, 3), (0, 3), (1,), (1,)),
    "scatter-add by samples": lambda x: added(
        x.transpose(FRONT), sign(x), x, (2,), (0,), (0,), (1,), (0,)
    ),
    "scatter by samples": lambda x: added(
        x.transpose(FRONT), sign(x)[:, :1], x[:, 3:4], (2,), (0,), (0,), (1,), (0,), by=lax.scatter
    ),
    "scatter-add by samples, of a whole": lambda x: added(
        numbered(5, 6, 7), sign(x), numbered(6, 5, 7), (2,), (0,), (0,), (1,), (0,)
    ),
    "scatter-add of samples": lambda x: added(
        numbered(5, 6, 7), np.ones((2, 6, 1), int), x[:, :2].transpose(FRONT), *((2,), (0,), (0,)),
        (1,), (1,),
    ),
    "scatter-add in whole windows": lambda x: added(x, ROWS, x[:, 3:], (0, 2), (1,), (1,)),
    "scatter-add in whole windows, samples last": lambda x: added(
        x.transpose(LAST), ROWS, x[:, :2].transpose(1, 2, 0), (1, 2), (1,), (1,)
    ),
    "scatter-add in whole windows of zeros": lambda x: added(
        zeros(7, 5, 6), ROWS, x[:, :2].transpose(1, 2, 0), (1, 2), (1,), (1,)
    ),
    "scatter-add in whole windows, of a whole": lambda x: added(
        x, ROWS, numbered(6, 2, 7), (0, 2), (1,), (1,)
    ),
    "scatter-add to a table": lambda x: added(zeros(9, 7), sign(x), x, (2,), (0,), (0,)),
    "scatter-add to a filled table": lambda x: added(numbered(9, 7), sign(x), x, (2,), (0,), (0,)),
    "scatter-add to a table, in fixed places": lambda x: added(
        zeros(9, 7), np.ones((5, 6, 1), int), x.transpose(LAST), (0,), (0,), (0,)
    ),
    "scatter-add to a table, of a whole": lambda x: added(
        zeros(9, 7), sign(x), numbered(6, 5, 7), (2,), (0,), (0,)
    ),
}  # fmt: skip

PRODUCTS = {
    "dot_general of each": lambda x: jnp.einsum("btd,bsd->bts", x, x[:, :3]),
    "dot_general of each, batched otherwise": lambda x: lax.dot_general(
        x.transpose(LAST), x.transpose(FRONT), (((0,), (2,)), ((2, 1), (1, 0)))
    ),
    "dot_general on the left": lambda x: x @ numbered(7, 3),
    "dot_general on the right": lambda x: lax.dot_general(
        numbered(7, 5, 3), x, (((0,), (2,)), ((1,), (1,)))
    ),
    "dot_general over samples": lambda x: jnp.einsum("btd,btk->dk", x, x[:, :, :3]),
    "dot_general over samples and a whole": lambda x: jnp.einsum("btd,kb->kdt", x, numbered(3, 6)),
    "conv_general_dilated": lambda x: lax.conv_general_dilated(
        x, numbered(3, 5, 2), (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")
    ),
    "conv_general_dilated, samples last": lambda x: lax.conv_general_dilated(
        x.transpose(LAST), numbered(2, 3, 5), (1,), "VALID", dimension_numbers=("HCN", "HOI", "CHN")
    ),
    "conv_general_dilated over samples": lambda x: lax.conv_general_dilated(
        x, x[:, :3, :2], (1,), "SAME", dimension_numbers=("CNH", "IOH", "NCH")
    ),
    "conv_general_dilated over samples of a whole": lambda x: lax.conv_general_dilated(
        numbered(6, 4, 9), x, (1,), "SAME", dimension_numbers=("CNH", "IOH", "NCH")
    ),
}  # fmt: skip

TIED = {
    "some of the samples": (lambda x: x[np.array([1, 0])], "it reads any of the samples"),
    "some of a slice": (
        lambda x: read(x, ROWS, (3, 1, 7), (0, 2), (1,), (1,)),
        "it reads any of the samples",
    ),
    "slices by samples": (
        lambda x: read(x, sign(x), (6, 1, 7), (0, 3), (1,), (1,)),
        "it reads any of the samples",
    ),
    "an index of samples": (
        lambda x: read(numbered(*(3,) * 6), sign(x)[:, 0, 0], (1,) * 6, (), range(6), range(6)),
        "a sample is a coordinate",
    ),
    "set in one place": (
        lambda x: added(zeros(9, 7), sign(x), x, (2,), (0,), (0,), by=lax.scatter),
        "the samples write to the same place",
    ),
    "set in any": (lambda x: x.at[ROWS[:, 0]].set(7), "it writes any of the samples"),
    "some of a window": (
        lambda x: added(x, ROWS, numbered(3, 2, 7), (0, 2), (1,), (1,)),
        "it writes any of the samples",
    ),
    "windows by samples": (
        lambda x: added(x, sign(x), numbered(6, 6, 5, 7), (0, 3), (1,), (1,)),
        "it writes any of the samples",
    ),
    "written at an index of samples": (
        lambda x: added(numbered(*(3,) * 6), sign(x)[:, 0, 0], 1.0, (), range(6), range(6)),
        "a sample is a coordinate",
    ),
    "its own turned": (
        lambda x: x[:, 0, :6] + x[:, 0, :6].T,
        "each sample meets every other",
    ),
    "pairs": (lambda x: jnp.einsum("btd,ctd->bc", x, x), "each sample meets every other"),
    "kernels of samples": (
        lambda x: lax.conv_general_dilated(x, x[:, :, :2], (1,), "SAME"),
        "each sample meets the kernels of every other",
    ),
    "kernels alone": (
        lambda x: lax.conv_general_dilated(numbered(2, 5, 9), x, (1,), "SAME"),
        "it runs along the samples, or in groups of them",
    ),
    "groups of features": (
        lambda x: lax.conv_general_dilated(
            x.transpose(FRONT), numbered(6, 1, 2), (1,), "SAME", feature_group_count=6
        ),
        "it runs along the samples, or in groups of them",
    ),
    "groups of a batch": (
        lambda x: lax.conv_general_dilated(x, numbered(6, 5, 2), (1,), "SAME", batch_group_count=2),
        "it runs along the samples, or in groups of them",
    ),
    "a window over samples": (
        lambda x: lax.conv_general_dilated(x.transpose(1, 2, 0), numbered(3, 7, 2), (1,), "SAME"),
        "it runs along the samples, or in groups of them",
    ),
}


@pytest.mark.parametrize("name", [*INDEXED, *PRODUCTS])
def test_an_op_runs_part_by_part(name):
    assert name.split()[0].strip(",") in ops(in_parts({**INDEXED, **PRODUCTS}[name]))


@pytest.mark.parametrize("name", TIED)
def test_what_ties_samples_together_is_told(name):
    assert_refused(*TIED[name])
