"""What takes no memory of its own, and what had better have some."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import backpass as bp
from backpass.ir import liveness
from backpass.ir.fusion import FARTHEST, ROW, free_values, landmarks, transposed_bytes

X = jnp.ones((8, 8))


def graph(fun, *args):
    return bp.compile(fun, passes=()).trace(*(args or (X,))).graph


def chain(steps, read):
    def fun(x):
        for _ in range(steps):
            x = read(x)
        return x

    return graph(fun)


def test_a_chain_with_one_reader_each_is_as_long_as_its_ops():
    nodes = chain(2 * FARTHEST + 10, jnp.sin).nodes
    assert [i for i, node in enumerate(nodes) if node in landmarks(nodes)] == [64, 129]


def test_to_move_elements_is_no_work():
    assert not landmarks(chain(3 * FARTHEST, lambda x: jnp.flip(x, 0).T[::-1]).nodes)


def test_every_reader_counts_what_it_would_make_again():
    """Neighbours in four directions: ops grow by a factor of five with each step."""

    def step(x):
        sides = [jnp.roll(x, by, axis) for axis in (0, 1) for by in (1, -1)]
        return x + sum(sides)

    nodes = chain(6, step).nodes
    found = landmarks(nodes)
    assert found and all(node.op.name == "add" for node in found)
    free = free_values(graph(step).inputs, nodes)
    assert all(v not in free for node in found for v in node.outputs)


def test_what_a_kernel_makes_or_reads_is_in_memory():
    def product(x):
        return jnp.sin(x) @ X

    def summed(x):
        return jnp.sin(x) + x.reshape(64).sum()

    for read in (product, summed):
        assert not landmarks(chain(200, read).nodes)


def test_what_is_made_of_inputs_is_free_as_far_as_the_first_landmark():
    whole = chain(FARTHEST + 2, jnp.cos)
    free = free_values(whole.inputs, whole.nodes)
    assert [v in free for node in whole.nodes for v in node.outputs] == [True] * FARTHEST + [
        False,
        False,
    ]


@pytest.mark.parametrize("layout, copies", [
    (("NHWC", "HWIO", "NHWC"), ()),
    (("NCHW", "HWIO", "NHWC"), (0,)),
    (("NHWC", "OIHW", "NHWC"), (1,)),
    (("NHWC", "HWOI", "NCHW"), (1, 2)),
    (("NWHC", "WHIO", "NWHC"), ()),
])  # fmt: skip
def test_convolutions_copy_what_lies_otherwise(layout, copies):
    sizes = {"N": 2, "H": 5, "W": 7, "C": 3, "I": 3, "O": 4}
    x, k = (jnp.ones([sizes[c] for c in spec]) for spec in layout[:2])
    options = {"dimension_numbers": layout, "window_strides": (1, 1), "padding": "SAME"}
    (node,) = graph(lambda x, k: jax.lax.conv_general_dilated(x, k, **options), x, k).nodes
    nbytes = [4 * 2 * 5 * 7 * 3, k.nbytes, 4 * 2 * 5 * 7 * 4]
    assert transposed_bytes(node) == sum(nbytes[i] for i in copies)


def test_no_layer_is_that_long():
    def layer(p, x):
        x = x + jax.nn.gelu(x @ p)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return jax.nn.softmax(x @ p) * jax.nn.silu(x)

    def loss(p, x):
        for _ in range(8):
            x = x + layer(p, x)
        return jnp.sum(x**2)

    assert not landmarks(graph(loss, X, X).nodes)


def last_readers(fun, *args):
    """By the ops that make what is in memory, the op of the last node that reads it there."""
    traced = graph(fun, *args)
    found = {}
    for buffer in liveness(traced, fused=True).buffers:
        if buffer.kind == "temporary":
            found[traced.producer[buffer.value].op.name] = traced.nodes[buffer.last].op.name
    return found


CHEAP = {
    "mul": lambda x: x * 2,
    "max": lambda x: jnp.maximum(x, 0),
    "sub": lambda x: x - jnp.arange(8.0),
    "neg": lambda x: -x,
    "rev": lambda x: lax.rev(x, (0,)),
}
DEAR = {
    "exp": jnp.exp,
    "div": lambda x: 1 / x,
    "add": lambda x: x + lax.cumsum(x),  # of two arrays
}


@pytest.mark.parametrize("name", CHEAP)
def test_what_is_cheap_is_made_again_in_each_loop(name):
    """XLA holds what it is made of instead, and it as well while a kernel has not read it."""

    def loops(x):
        cheap = CHEAP[name](lax.cumprod(x))
        return lax.sort(jnp.sin(cheap) @ X) * cheap

    def kernel(x):
        cheap = CHEAP[name](lax.cumprod(x))
        return lax.sort(cheap @ X) * cheap

    found = last_readers(loops)
    assert (found.get(name), found["cumprod"]) == (None, "mul")
    found = last_readers(kernel)
    assert (found[name], found["cumprod"]) == ("dot_general", "mul")


@pytest.mark.parametrize("name", DEAR)
def test_what_is_dear_is_made_once(name):
    def loops(x):
        dear = DEAR[name](lax.cumprod(x))
        return lax.sort(jnp.sin(dear) @ X) * dear

    found = last_readers(loops)
    assert found[name] == "mul" and found["cumprod"] != "mul"


def test_sums_read_what_is_cheap_from_memory():
    """XLA makes a cheap value again in a loop, and not in that of a sum."""

    def summed(x):
        cheap = lax.cumprod(x) * 2
        return (cheap * X).reshape(64).sum(), lax.sort(jnp.sin(cheap))

    assert last_readers(summed)["mul"] == "reduce_sum"


@pytest.mark.parametrize("width, inside", [(ROW - 2, True), (ROW, False)])
def test_long_rows_are_joined_in_memory(width, inside):
    def joined(x):
        return jnp.concatenate([jnp.sin(x), jnp.cos(x)], 1) * 2

    found = last_readers(joined, jnp.ones((8, width // 2)))
    assert ("concatenate" not in found, "sin" not in found) == (inside, inside)
