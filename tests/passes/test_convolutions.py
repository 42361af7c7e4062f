"""Convolutions in other forms: the same values, and which form stands where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

import backpass as bp
from backpass.passes import DEFAULT, Convolutions, default
from passes.texts import compiled, graph

EAGER = Convolutions(images=99, channels=2, cached=200)
PASSES = tuple(EAGER if isinstance(each, Convolutions) else each for each in DEFAULT)
NUMBERS = ("NHWC", "HWIO", "NHWC")
LINE = ("NWC", "WIO", "NWC")

# Of the input, the kernel and the keywords: what is left of the convolutions of loss and gradients.
LAYERS = {
    "pointwise": ((2, 5, 5, 4), (1, 1, 4, 3), {}, 0),
    "pointwise, strided": ((2, 5, 5, 4), (1, 1, 4, 3), {"window_strides": (2, 2)}, 0),
    "patches": ((2, 6, 6, 3), (2, 3, 3, 4), {"window_strides": (2, 3)}, 0),
    "patches, one cut off": ((2, 7, 8, 3), (2, 3, 3, 4), {"window_strides": (2, 3)}, 0),
    "patches with gaps": ((2, 9, 9, 3), (2, 2, 3, 4), {"window_strides": (3, 4)}, 0),
    "patches, padded": (
        (2, 5, 6, 3),
        (2, 2, 3, 4),
        {"window_strides": (2, 2), "padding": ((1, 0), (1, 1))},
        0,
    ),
    "upsampled": (
        (2, 3, 4, 3),
        (2, 2, 3, 4),
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
        0,
    ),
    "upsampled with gaps": (
        (2, 3, 4, 3),
        (2, 2, 3, 4),
        {"lhs_dilation": (3, 2), "padding": ((1, 3), (2, -1))},
        0,
    ),
    "depthwise": ((2, 6, 6, 4), (3, 3, 1, 4), {"feature_group_count": 4}, 0),
    "depthwise, twice each": ((2, 6, 6, 4), (3, 3, 1, 8), {"feature_group_count": 4}, 4),
    "depthwise, strided": (
        (3, 7, 7, 4),
        (3, 3, 1, 4),
        {"feature_group_count": 4, "window_strides": (2, 2), "padding": ((1, 1), (1, 1))},
        0,
    ),
    "depthwise, dilated": (
        (2, 9, 9, 4),
        (3, 3, 1, 4),
        {"feature_group_count": 4, "rhs_dilation": (2, 3), "padding": ((2, 2), (3, 0))},
        0,
    ),
    "depthwise, 4x4": ((3, 7, 7, 4), (4, 4, 1, 4), {"feature_group_count": 4}, 0),
    "grouped": ((2, 6, 6, 8), (3, 3, 2, 8), {"feature_group_count": 4}, 8),
    "grouped, thin": ((2, 6, 6, 4), (3, 3, 1, 8), {"feature_group_count": 4}, 4),
    "grouped, batch": ((4, 6, 6, 2), (3, 3, 2, 4), {"batch_group_count": 2}, 4),
    "dense": ((3, 6, 6, 4), (3, 3, 4, 5), {"padding": ((1, 1), (1, 1))}, 2),
    "dense, strided": ((3, 9, 9, 4), (3, 3, 4, 5), {"window_strides": (2, 2)}, 2),
    "dense, dilated": ((3, 9, 9, 4), (3, 2, 4, 5), {"rhs_dilation": (2, 3)}, 2),
    "transposed": ((3, 5, 5, 4), (3, 3, 4, 5), {"lhs_dilation": (2, 2)}, 2),
}


def applied(keywords, numbers=("NHWC", "HWIO", "NHWC")):
    options = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), **keywords}

    def loss(x, w):
        return jnp.sin(lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)).sum()

    return loss


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def assert_same_gradients(loss, x, w, passes=PASSES):
    step = bp.compile(bp.value_and_grad(loss, argnums=(0, 1)), passes=passes)
    ours = jax.tree.leaves(step(x, w))
    theirs = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, w))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    return [n.op.name for n in step.lower(x, w).graph.walk()]


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_the_same(name):
    x, w, keywords, left = LAYERS[name]
    with jax.enable_x64(True):
        ops = assert_same_gradients(applied(keywords), *drawn(x, w))
    assert ops.count("conv_general_dilated") == left


@pytest.mark.parametrize(
    "numbers", [("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "NHWC"), ("HNWC", "HOWI", "CHWN")]
)
@pytest.mark.parametrize("name", ["patches", "upsampled", "depthwise", "grouped", "dense"])
def test_any_order_of_dimensions(name, numbers):
    x, w, keywords, left = LAYERS[name]
    sizes = dict(zip("NHWC", x, strict=True)), dict(zip("HWIO", w, strict=True))
    shapes = [[of[d] for d in order] for of, order in zip(sizes, numbers, strict=False)]
    with jax.enable_x64(True):
        ops = assert_same_gradients(applied(keywords, numbers), *drawn(*shapes))
    assert ops.count("conv_general_dilated") == left


@pytest.mark.parametrize(
    ("x", "w", "keywords", "numbers"),
    [
        ((3, 9, 4), (4, 1, 4), {"feature_group_count": 4, "padding": ((3, 0),)}, "W"),
        ((3, 9, 4), (3, 4, 5), {"padding": "SAME"}, "W"),
        ((2, 4, 4, 4, 2), (2, 2, 2, 2, 3), {"padding": "SAME"}, "DHW"),
        ((2, 4, 4, 4, 2), (2, 2, 2, 2, 3), {"window_strides": (2, 2, 2), "padding": "SAME"}, "DHW"),
        ((2, 4, 4, 4, 2), (3, 2, 2, 1, 2), {"feature_group_count": 2, "padding": "SAME"}, "DHW"),
    ],
)
def test_one_and_three_dimensions(x, w, keywords, numbers):
    options = {"window_strides": (1,) * len(numbers), **keywords}
    order = (f"N{numbers}C", f"{numbers}IO", f"N{numbers}C")
    with jax.enable_x64(True):
        assert_same_gradients(applied(options, order), *drawn(x, w))


@st.composite
def layers(draw):
    """A convolution of two dimensions with anything that `lax` lets one say."""

    def some(*values):
        return draw(st.sampled_from(values))

    groups, batches = some((1, 1), (1, 1), (2, 1), (3, 1), (1, 2))
    features, times = some(1, 1, 2, 3), some(1, 2)
    taps = some(1, 2, 3), some(1, 2, 3)
    keywords = {
        "window_strides": some((1, 1), (1, 2), (3, 2), taps),
        "lhs_dilation": some((1, 1), (1, 1), (2, 3), taps),
        "rhs_dilation": some((1, 1), (1, 1), (2, 1)),
        "padding": [(some(-1, 0, 1, 2), some(-1, 0, 1, 2)) for _ in taps],
        "feature_group_count": groups,
        "batch_group_count": batches,
    }
    x = (batches * some(1, 2, 3), some(3, 4, 7), some(3, 5), groups * features)
    return x, (*taps, features, groups * batches * times), keywords


@pytest.mark.hypothesis
@given(layers())
def test_any_layer(layer):
    x, w, keywords = layer
    loss = applied(keywords)
    with jax.enable_x64(True):
        args = drawn(x, w)
        try:
            jax.eval_shape(loss, *args)
        except (TypeError, ValueError):
            assume(False)
        assert_same_gradients(loss, *args)


def nodes_of_a_layer(images, filters):
    types = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (images, filters)]
    step = bp.compile(bp.value_and_grad(applied({"padding": "SAME"}), argnums=(0, 1)))
    return list(step.lower(*types).graph.walk())


@pytest.mark.parametrize("images, channels", [(5, 32), (3, 15), (32, 64)])
def test_gradients_of_filters_by_many_images_stay_convolutions(images, channels):
    nodes = nodes_of_a_layer((images, 6, 6, channels), (3, 3, channels, channels))
    assert [n.op.name for n in nodes].count("conv_general_dilated") == 3


@pytest.mark.parametrize("images, taps, left", [(1, 3, 1), (1, 4, 2), (2, 3, 2)])
def test_gradients_of_filters_along_a_line(images, taps, left):
    def loss(w, x):
        return jnp.sin(lax.conv_general_dilated(x, w, (1,), "SAME", None, None, LINE)).sum()

    types = [jax.ShapeDtypeStruct(s, np.float32) for s in ((taps, 32, 32), (images, 64, 32))]
    names = [n.op.name for n in bp.compile(bp.grad(loss)).lower(*types).graph.walk()]
    assert names.count("conv_general_dilated") == left


@pytest.mark.parametrize("images, channels", [(4, 32), (2, 15)])
def test_gradients_of_filters_by_few_images_are_products(images, channels):
    nodes = nodes_of_a_layer((images, 6, 6, channels), (3, 3, channels, channels))
    assert [n.op.name for n in nodes].count("conv_general_dilated") == 2
    (product,) = (n for n in nodes if n.op.name == "dot_general")
    assert product.output.shape == (3 * channels, 3 * channels)


def test_products_of_large_images_are_scanned():
    nodes = nodes_of_a_layer((4, 64, 64, 32), (3, 3, 32, 32))
    (scan,) = (n for n in nodes if n.op.name == "scan")
    assert scan.attrs["length"] == 4


def test_large_depthwise_sums_are_scanned():
    """XLA makes the products of all taps before it adds them up; of small images it may."""

    def scans(side):
        types = [jax.ShapeDtypeStruct(s, np.float32) for s in ((8, side, side, 32), (3, 3, 1, 32))]
        layer = applied({"padding": "SAME", "feature_group_count": 32})
        graph = bp.compile(bp.grad(layer, argnums=1)).lower(*types).graph
        return [node.attrs["length"] for node in graph.walk() if node.op.name == "scan"]

    assert scans(4) == [] and scans(64) == [8] and scans(512) == [8]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a form for CPU alone")
def test_no_copies_of_images_wait_for_the_backward_pass():
    """XLA would make them in the forward pass, and keep all layers' copies."""

    def loss(layers, x):
        for w in layers:
            x += jnp.tanh(lax.conv_general_dilated(x, w, (1, 1), "SAME", None, None, NUMBERS))
        return (x**2).mean()

    layers, x = [np.ones((3, 3, 32, 32), np.float32)] * 8, np.ones((4, 16, 16, 32), np.float32)
    ours = bp.compile(bp.value_and_grad(loss)).lower(layers, x).compile()
    stock = jax.jit(jax.value_and_grad(loss)).lower(layers, x).compile()
    ours, stock = (c.memory_analysis().temp_size_in_bytes for c in (ours, stock))
    assert ours < 1.2 * stock


def test_more_bundles_than_asked_for_stay_groups():
    few = Convolutions(channels=1, bundles=3)
    passes = tuple(few if isinstance(each, Convolutions) else each for each in DEFAULT)
    x, w, keywords, _ = LAYERS["grouped"]
    step = bp.compile(applied(keywords), passes=passes)
    (conv,) = (n for n in step.lower(*drawn(x, w)).graph.walk() if "conv" in n.op.name)
    assert conv.attrs["feature_group_count"] == 4


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gradients_of_grouped_filters_are_no_one_product(groups):
    """More taps than places; as many groups as there may be bundles of them come first."""

    def filters(x, g):
        return lax.conv_general_dilated(
            x, g, (1, 1), "VALID", dimension_numbers=NUMBERS, batch_group_count=groups
        )

    given = compiled(filters, *(jnp.zeros(s) for s in ((2 * groups, 8, 8, 3), (6, 6, 3, 6))))
    found = Convolutions(channels=1, bundles=0, images=99)(given)
    assert (found is given) == (groups > 1)


def test_short_floats_are_added_up_in_long_ones():
    x, w, keywords, _ = LAYERS["depthwise"]
    arrays = [a.astype(jnp.bfloat16) for a in drawn(x, w)]
    ours = bp.compile(bp.grad(applied(keywords), argnums=(0, 1)), passes=PASSES)(*arrays)
    theirs = jax.grad(applied(keywords), argnums=(0, 1))(*(a.astype(jnp.float32) for a in arrays))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0.05, atol=0.05)


def test_graphs_without_convolutions_are_the_same_object():
    given = graph("%0: f32[3]", "%1: f32[3] = exp(%0)\nreturn %1")
    assert EAGER(given) is given


def test_other_platforms_keep_their_convolutions():
    assert not any(isinstance(each, Convolutions) for each in default("gpu"))
    assert default("cpu") == DEFAULT
