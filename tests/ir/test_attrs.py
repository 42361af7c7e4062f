"""Every kind of attribute value comes back; what has no text form is named and refused."""

import enum
import re
from typing import NamedTuple

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from backpass import ParseError
from backpass.ir import OPS, ArrayType, Graph, Value, parse
from backpass.ir.attrs import ENUMS, POLICIES, RECORDS, plain_attrs
from backpass.ir.graph import Node, same_attr
from backpass.ir.types import dtype_from_name, dtype_name, key_implementation

F32 = np.dtype("float32")


def graph_with(**attrs) -> Graph:
    return Graph("f", (), (Node(OPS["optimization_barrier"], (), (), attrs),), ())


def again(value):
    graph = graph_with(x=value)
    parsed = parse(str(graph))
    assert str(parsed) == str(graph)
    return parsed.nodes[0].attrs["x"]


def text_of(value) -> str:
    text = str(graph_with(x=value)).partition("{x=")[2].partition("}\n")[0]
    return re.sub(r"\n +", " ", text)


VALUES = {
    "None": None,
    "True": True,
    "-3": -3,
    "12345678901234567890": 12345678901234567890,
    "0.1": 0.1,
    "1e-05": 1e-5,
    "-0.0": -0.0,
    "inf": float("inf"),
    "nan": float("nan"),
    "1.0-2.0j": 1 - 2j,
    '"a\\"b\\n"': 'a"b\n',
    "()": (),
    "(1,)": (1,),
    "(1,(2.0,None))": (1, (2.0, None)),
    "[1,[]]": [1, []],
    '{"a": 1, 2: (3,)}': {"a": 1, 2: (3,)},
    'frozenset{"a","b"}': frozenset({"b", "a"}),
    "slice(None,3,-1)": slice(None, 3, -1),
    "P()": PartitionSpec(),
    'P("d",None,("m","n"))': PartitionSpec("d", None, ("m", "n")),
    "f32": F32,
    "bf16": jnp.dtype("bfloat16"),
    "bool": np.dtype(bool),
    "key<fry>": jax.random.key(0).dtype,
    "0.5:f32": np.float32(0.5),
    "7:i64": np.int64(7),
    "True:bool": np.bool_(True),
    "1.0+0.0j:c64": np.complex64(1),
    "0.1:bf16": jnp.dtype("bfloat16").type(0.1),
    "dense<f32[] [0.5]>": np.array(0.5, F32),
    "dense<i32[3] [1, 2, 3]>": np.array([1, 2, 3], np.int32),
    "dense<f32[1000] 0.0>": np.zeros(1000, F32),
    "dense<u8[2,0] []>": np.zeros((2, 0), np.uint8),
    "GatherScatterMode.CLIP": lax.GatherScatterMode.CLIP,
    "Precision.HIGHEST": lax.Precision.HIGHEST,
    "(Precision.DEFAULT,Precision.HIGH)": (lax.Precision.DEFAULT, lax.Precision.HIGH),
    "FftType.RFFT": lax.FftType.RFFT,
    "RandomAlgorithm.RNG_DEFAULT": lax.RandomAlgorithm.RNG_DEFAULT,
    "GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))": (
        lax.GatherDimensionNumbers((1,), (0,), (0,))
    ),
    "ScatterDimensionNumbers(update_window_dims=(), inserted_window_dims=(), "
    "scatter_dims_to_operand_dims=(0,))": lax.ScatterDimensionNumbers((), (), (0,)),
    "ConvDimensionNumbers(lhs_spec=(0,1), rhs_spec=(0,1), out_spec=(0,1))": (
        lax.ConvDimensionNumbers((0, 1), (0, 1), (0, 1))
    ),
    "prng<fry>": jax.extend.random.threefry_prng_impl,
    "prng<rbg>": jax.extend.random.rbg_prng_impl,
    "policy.nothing_saveable": jax.checkpoint_policies.nothing_saveable,
}


@pytest.mark.parametrize("text", VALUES)
def test_value(text):
    assert text_of(VALUES[text]) == text
    assert same_attr(again(VALUES[text]), VALUES[text])


@pytest.mark.parametrize("cls", ENUMS.values(), ids=lambda cls: cls.__name__)
def test_every_member_of_an_enum(cls):
    assert [again(member) for member in cls] == list(cls)


@pytest.mark.parametrize("name", POLICIES)
def test_policies(name):
    assert again(POLICIES[name]) is POLICIES[name]


def test_every_record_has_a_case():
    ragged = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
    algorithm = lax.DotAlgorithm(F32, F32, F32)
    tolerance = lax.Tolerance(atol=0.1)
    values = [ragged, algorithm, tolerance, *VALUES.values()]
    assert set(RECORDS.values()) <= {type(value) for value in values}
    for value in (ragged, algorithm):
        assert again(value) == value
    found = again(tolerance)
    assert (type(found), vars(found)) == (type(tolerance), vars(tolerance))


def test_jax_arrays_become_numpy_arrays():
    assert isinstance(again(jnp.arange(3)), np.ndarray)
    assert same_attr(again(jnp.arange(100)), jnp.arange(100))


def test_keys():
    keys = jax.random.split(jax.random.key(7), 3)
    assert same_attr(again(keys), keys)
    assert not same_attr(again(keys[0]), keys[1])
    assert same_attr(again(jax.random.key(1, impl="rbg")), jax.random.key(1, impl="rbg"))


def test_graph_as_a_value():
    x = Value(ArrayType((2,), F32), "x")
    inner = Graph("inner", (x,), (Node(OPS["neg"], (x,), (Value(x.type),)),), (x,))
    assert again(inner) == inner
    assert again((inner, {"k": inner})) == (inner, {"k": inner})


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    left: int


class Rude:
    def __repr__(self):
        raise RuntimeError("no")


OPAQUE = [
    Colour.RED,
    Pair(1),
    Rude(),
    object(),
    len,
    lambda: None,
    np.array(["a"]),
    np.array([None]),
    np.zeros(3, ">f4"),
    np.dtype(">f4"),
    np.dtype([("a", "i4")]),
    np.datetime64("2026-01-01"),
    jax.make_jaxpr(lambda x: x)(1.0),
    jax.tree.structure((1, 2)),
    b"bytes",
    range(3),
    {1, 2},
    F32.type,
    10**10_000,
]


@pytest.mark.parametrize("value", OPAQUE, ids=lambda value: type(value).__name__)
def test_opaque(value):
    text = str(graph_with(x=(1, value)))
    assert "opaque<" in text
    assert max(map(len, text.split("\n"))) < 250
    assert " at 0x" not in text
    message = "attribute 'x' of optimization_barrier is a Python object"
    with pytest.raises(ParseError, match=message):
        parse(text)


class Long:
    def __init__(self, length):
        self.length = length

    def __repr__(self):
        return "x" * self.length


def test_what_a_stranger_says_of_itself_is_cut_to_sixty_characters():
    assert f' {"x" * 60}">' in text_of(Long(60))
    assert f' {"x" * 57}...">' in text_of(Long(61))


def test_how_an_array_lies_is_named():
    on = jax.make_mesh((2, 4), ("d", "m"))
    text = text_of(jax.sharding.NamedSharding(on, PartitionSpec("d")))
    assert re.search(r"P(artitionSpec)?\('d',\) on Mesh d=2 m=4", text)


def test_plain_attributes_are_left_out():
    text = "backpass.ir 1\n\ngraph f(%0: f32[4]) {\n  %1: f32[2,2] = reshape(%0)\n"
    text += "  %2: f32[1] = slice(%0) {limit_indices=(1,), start_indices=(0,)}\n"
    text += "  %3: f32[] = scan() {-reverse, -unroll}\n"
    text += "  %4: f16[4] = convert_element_type(%0) {new_dtype=f32, -weak_type}\n  return\n}\n"
    graph = parse(text)
    attrs = [dict(node.attrs) for node in graph.nodes]
    assert attrs == [
        {"new_sizes": (2, 2)},
        {"limit_indices": (1,), "start_indices": (0,), "strides": None},
        {},
        {"new_dtype": F32},
    ]
    assert str(graph) == text


SCATTER = {"indices_are_sorted": False, "unique_indices": False}
OUT = {"preferred_element_type": F32}


@pytest.mark.parametrize("op, wanted", [
    ("broadcast_in_dim", {"shape": (2, 3)}),
    ("conv_general_dilated", {"batch_group_count": 1, "feature_group_count": 1, "precision": None} | OUT),
    ("convert_element_type", {"new_dtype": F32, "weak_type": False}),
    ("dot_general", {"precision": None} | OUT),
    ("gather", {"fill_value": None} | SCATTER),
    ("iota", {"dtype": F32, "shape": (2, 3)}),
    ("reshape", {"new_sizes": (2, 3)}),
    ("shard_map", {"check_vma": True}),
    ("scan", {"reverse": False, "unroll": 1}),
    ("slice", {"strides": None}),
    ("scatter-add", SCATTER),
    ("scatter-min", SCATTER),
    ("sin", {}),
])  # fmt: skip
def test_what_a_text_without_an_attribute_says(op, wanted):
    """Texts that were kept are read by this: it may grow, and not change."""
    assert plain_attrs(op, [Value(ArrayType((2, 3), F32))]) == wanted
    assert plain_attrs(op, []) == {}


def test_equal_graphs_have_equal_text():
    one = graph_with(a=1, b=frozenset("xyz"))
    two = graph_with(b=frozenset("zyx"), a=1)
    assert one == two
    assert str(one) == str(two)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.complex_numbers()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text())
    ),
    max_leaves=12,
)


@given(nested)
def test_drawn_values(value):
    assert same_attr(again(value), value)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (float("nan"), float("nan"), True),
        (0.0, -0.0, False),
        (1, True, False),
        (1, 1.0, False),
        ((1,), [1], False),
        ({"a": np.zeros(2)}, {"a": np.zeros(2)}, True),
        ({"a": np.zeros(2)}, {"b": np.zeros(2)}, False),
        (np.zeros(2), np.zeros(2, F32), False),
        (jnp.zeros(2), jnp.zeros(2), True),
        (jnp.zeros(2), np.ones(2, F32), False),
        (np.zeros(2), (0.0, 0.0), False),
    ],
)
def test_same_attr(a, b, same):
    assert same_attr(a, b) is same_attr(b, a) is same


def test_huge_arrays_are_not_even_looked_at():
    huge = np.broadcast_to(np.float32(0), (1 << 40,))
    text = str(graph_with(value=huge))
    assert "f32[1099511627776], 4398046511104 bytes: over the limit of the resources" in text


@pytest.mark.parametrize("name", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_dtype_of_keys_tells_their_generator(name):
    dtype = jax.random.key(0, impl=name).dtype
    assert key_implementation(dtype) == name
    assert dtype_from_name(dtype_name(dtype)) == dtype
