"""Calls are inlined, products are two-dimensional: text in, text out."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass.ir import verify
from backpass.passes import Canonicalise
from passes.texts import assert_rewrites, assert_same_values, compiled, graph, ops

CASES = {
    "scale of scores goes to the queries": (
        "%0: f32[2,8,3], %1: f32[2,8,3], %2: f32[]",
        """
        %3: f32[2,8,8] = dot_general(%0, %1) {dimension_numbers=(((2,),(2,)),((0,),(0,)))}
        %4: f32[2,8,8] = broadcast_in_dim(%2) {broadcast_dimensions=()}
        %5: f32[2,8,8] = div(%3, %4) @ model.py:5
        return %5
        """,
        """
        %3: f32[2,8,8] = dot_general(%0, %1) {dimension_numbers=(((2,),(2,)),((0,),(0,)))}
        %4: f32[2,8,8] = broadcast_in_dim(%2) {broadcast_dimensions=()}
        %5: f32[2,8,3] = broadcast_in_dim(%2) {broadcast_dimensions=()} @ model.py:5
        %6: f32[2,8,3] = div(%0, %5) @ model.py:5
        %7: f32[2,8,8] = dot_general(%6, %1) {dimension_numbers=(((2,),(2,)),((0,),(0,)))}
        return %7
        """,
    ),
    "array by its parts": (
        "%0: f32[8,2,3]",
        """
        %1: f32[8,3], %2: f32[8,3] = unstack(%0) {axis=1}
        return %1, %2
        """,
        """
        %1: f32[8,1,3] = slice(%0) {start_indices=(0,0,0), limit_indices=(8,1,3), strides=None}
        %2: f32[8,3] = reshape(%1) {new_sizes=(8,3)}
        %3: f32[8,1,3] = slice(%0) {start_indices=(0,1,0), limit_indices=(8,2,3), strides=None}
        %4: f32[8,3] = reshape(%3) {new_sizes=(8,3)}
        return %2, %4
        """,
    ),
    "number times a product": (
        "%0: f32[8,2], %1: f32[2,8]",
        """
        %2: f32[8,8] = dot_general(%0, %1) {dimension_numbers=(((1,),(0,)),((),()))}
        %3: f32[8,8] = mul(2.0:f32, %2)
        return %3
        """,
        """
        %2: f32[8,8] = dot_general(%0, %1) {dimension_numbers=(((1,),(0,)),((),()))}
        %3: f32[8,2] = broadcast_in_dim(2.0:f32) {broadcast_dimensions=()}
        %4: f32[8,2] = mul(%0, %3)
        %5: f32[8,8] = dot_general(%4, %1) {dimension_numbers=(((1,),(0,)),((),()))}
        return %5
        """,
    ),
    "values times weights, transposed": (
        "%0: f32[2,8,4,3], %1: f32[2,4,8,8]",
        """
        %2: f32[2,4,3,8] = dot_general(%0, %1) {dimension_numbers=(((1,),(3,)),((0,2),(0,1)))}
        %3: f32[2,8,4,3] = transpose(%2) {permutation=(0,3,1,2)}
        return %3
        """,
        """
        %2: f32[2,4,3,8] = dot_general(%0, %1) {dimension_numbers=(((1,),(3,)),((0,2),(0,1)))}
        %3: f32[2,4,8,3] = dot_general(%1, %0) {dimension_numbers=(((3,),(1,)),((0,1),(0,2)))}
        %4: f32[2,8,4,3] = transpose(%3) {permutation=(0,2,1,3)}
        return %4
        """,
    ),
    "call": (
        "%0: f32[3]",
        """
        %1: f32[3] = jit(%0) {name="inner"} @ model.py:9 outer
          graph inner(%0: f32[3]) {
            %1: f32[3] = sin(%0)            @ model.py:3 mlp
            %2: f32[3] = exp(%1)            @ model.py:4
            return %2
          }
        return %1
        """,
        """
        %1: f32[3] = sin(%0) @ model.py:3 outer/mlp
        %2: f32[3] = exp(%1) @ model.py:4 outer
        return %2
        """,
    ),
    "library call shows the caller": (
        "%0: f32[3]",
        """
        %1: f32[3] = jit(%0) {name="silu"} @ model.py:9 outer
          graph silu(%0: f32[3]) {
            %1: f32[3] = logistic(%0)
            %2: f32[3] = mul(%0, %1)
            return %2
          }
        return %1
        """,
        """
        %1: f32[3] = logistic(%0) @ model.py:9 outer
        %2: f32[3] = mul(%0, %1)  @ model.py:9 outer
        return %2
        """,
    ),
    "calls in calls": (
        "%0: f32[3]",
        """
        %1: f32[3] = jit(%0) {name="a"}     @ model.py:9 a
          graph a(%0: f32[3]) {
            %1: f32[3] = closed_call(%0)    @ model.py:5 b
              graph b(%0: f32[3]) {
                %1: f32[3] = sin(%0)        @ model.py:3 c
                return %1
              }
            return %1
          }
        return %1, %0
        """,
        """
        %1: f32[3] = sin(%0) @ model.py:3 a/b/c
        return %1, %0
        """,
    ),
    "call that returns its argument": (
        "%0: f32[3]",
        """
        %1: f32[3], %2: f32[] = jit(%0) {name="a"}
          graph a(%0: f32[3]) {
            return %0, 2.0:f32
          }
        return %1, %2
        """,
        "return %0, 2.0:f32",
    ),
    "call in a scan": (
        "%0: f32[], %1: f32[5]",
        """
        %2: f32[] = scan(%0, %1) {length=5, num_carry=1, num_consts=0, reverse=False, unroll=1}
          graph body(%0: f32[], %1: f32[]) {
            %2: f32[] = jit(%0, %1) {name="a"}
              graph a(%0: f32[], %1: f32[]) {
                %2: f32[] = mul(%0, %1)
                return %2
              }
            return %2
          }
        return %2
        """,
        """
        %2: f32[] = scan(%0, %1) {length=5, num_carry=1, num_consts=0, reverse=False, unroll=1}
          graph body(%0: f32[], %1: f32[]) {
            %2: f32[] = mul(%0, %1)
            return %2
          }
        return %2
        """,
    ),
    "phase of the caller": (
        "%0: f32[3]",
        """
        backward:
          %1: f32[3] = jit(%0) {name="inner"}
            graph inner(%0: f32[3]) {
              %1: f32[3] = sin(%0)
              return %1
            }
        return %1
        """,
        """
        backward:
          %1: f32[3] = sin(%0)
        return %1
        """,
    ),
    "dense layer": (
        "%0: f32[2,3,4], %1: f32[4,5]",
        """
        %2: f32[2,3,5] = dot_general(%0, %1) {dimension_numbers=(((2,),(0,)),((),()))}
        return %2
        """,
        """
        %2: f32[6,4] = reshape(%0)
        %3: f32[6,5] = dot_general(%2, %1) {dimension_numbers=(((1,),(0,)),((),()))}
        %4: f32[2,3,5] = reshape(%3)
        return %4
        """,
    ),
    "two contracted dimensions": (
        "%0: f32[2,3,4], %1: f32[3,4,5]",
        """
        %2: f32[2,5] = dot_general(%0, %1) {dimension_numbers=(((1,2),(0,1)),((),()))}
        return %2
        """,
        """
        %2: f32[2,12] = reshape(%0)
        %3: f32[12,5] = reshape(%1)
        %4: f32[2,5] = dot_general(%2, %3) {dimension_numbers=(((1,),(0,)),((),()))}
        return %4
        """,
    ),
    "contracted first": (
        "%0: f32[4,2,3], %1: f32[5,4]",
        """
        %2: f32[2,3,5] = dot_general(%0, %1) {dimension_numbers=(((0,),(1,)),((),()))}
        return %2
        """,
        """
        %2: f32[4,6] = reshape(%0)
        %3: f32[6,5] = dot_general(%2, %1) {dimension_numbers=(((0,),(1,)),((),()))}
        %4: f32[2,3,5] = reshape(%3)
        return %4
        """,
    ),
    "two-dimensional": (
        "%0: f32[3,4], %1: f32[4,5]",
        """
        %2: f32[3,5] = dot_general(%0, %1) {dimension_numbers=(((1,),(0,)),((),()))}
        return %2
        """,
        None,
    ),
    "of two matrices in full": (
        "%0: f32[3,4], %1: f32[3,4]",
        """
        %2: f32[] = dot_general(%0, %1) {dimension_numbers=(((0,1),(0,1)),((),()))}
        return %2
        """,
        None,
    ),
    "batched": (
        "%0: f32[2,3,4], %1: f32[2,4,5]",
        """
        %2: f32[2,3,5] = dot_general(%0, %1) {dimension_numbers=(((2,),(1,)),((0,),(0,)))}
        return %2
        """,
        None,
    ),
    "contracted dimensions apart": (
        "%0: f32[2,3,4], %1: f32[2,4,5]",
        """
        %2: f32[3,5] = dot_general(%0, %1) {dimension_numbers=(((0,2),(0,1)),((),()))}
        return %2
        """,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    assert_rewrites(Canonicalise(), *CASES[name])


def layouts():
    """Every `dot_general` of a small rank: which dimensions are contracted, and in which order."""
    for ranks in itertools.product((1, 2, 3), (1, 2, 3)):
        for count in range(1, min(ranks) + 1):
            for left in itertools.permutations(range(ranks[0]), count):
                for right in itertools.combinations(range(ranks[1]), count):
                    yield ranks, left, right


@pytest.mark.parametrize("operands", [(2, 3), (1, 2), (3, 3)], ids=str)
def test_product_in_every_layout(operands):
    """The value stays, also where a dimension has size one."""
    found = [case for case in layouts() if case[0] == operands]
    assert found
    for (m, n), left, right in found:
        size = dict(zip(left, (2, 3, 1), strict=False))
        x = np.zeros([size.get(i, 2 + i) for i in range(m)], np.float32)
        back = dict(zip(right, left, strict=True))
        y = np.zeros([size[back[j]] if j in back else 5 + j for j in range(n)], np.float32)
        product = compiled(lambda x, y: lax.dot_general(x, y, ((left, right), ((), ()))), x, y)  # noqa: B023
        canonical = Canonicalise()(product)
        verify(canonical)
        assert_same_values(canonical, product, 1e-5)
        assert Canonicalise()(canonical) is canonical
        (dot,) = (node for node in canonical.nodes if node.op.name == "dot_general")
        if dot is not product.nodes[0]:
            assert max(value.ndim for value in dot.inputs) <= 2


def test_no_elements():
    given = graph(
        "%0: f32[0,3,4], %1: f32[4,5]",
        """
        %2: f32[0,3,5] = dot_general(%0, %1) {dimension_numbers=(((2,),(0,)),((),()))}
        return %2
        """,
    )
    assert_same_values(Canonicalise()(given), given)


def test_dtypes_of_a_product_stay():
    x, w = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)

    def fun(x, w):
        return jnp.einsum("btd,df->btf", x, w, preferred_element_type=jnp.float32)

    canonical = Canonicalise()(compiled(fun, x, w))
    assert "jit" not in ops(canonical)
    assert canonical.outputs[0].dtype == jnp.float32
    assert_same_values(canonical, compiled(fun, x, w))
