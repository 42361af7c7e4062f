"""Which axes values vary over in a map, beside what JAX's own types tell of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import backpass as bp
from backpass.ir import parse
from backpass.ir.evaluate import evaluate
from backpass.ir.jax_compat import varying_axes
from backpass.ir.ops.varying import aligned, varying
from backpass.ir.verifier import verify

NONE, D, DM = frozenset(), frozenset("d"), frozenset("dm")


def mesh():
    return jax.make_mesh((2, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)


@jax.custom_jvp
def halved(x, y):
    return x / 2, 2 * y


@halved.defjvp
def _(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return (x / 2, 2 * y), (dx / 2 + y, dy)


@jax.custom_vjp
def clipped(x, y):
    return jnp.tanh(x) + y


clipped.defvjp(lambda x, y: (jnp.tanh(x) + y, (x, y)), lambda kept, ct: (ct, ct * kept[1]))


@jax.custom_jvp
def asked(x, y):
    return x * y, -y


asked.defjvp(lambda primals, tangents: (asked(*primals), asked(*primals)), symbolic_zeros=True)


@jax.custom_vjp
def asked_back(x, y):
    return x * y, -y


asked_back.defvjp(
    lambda x, y: (asked_back(x.value, y.value), None), lambda kept, ct: ct, symbolic_zeros=True
)

# x varies over d, y over nothing.
FUNCTIONS = {
    "alike": lambda x, y: (x + y, jnp.sin(y), jnp.cos(x)),
    "barrier": lambda x, y: sum(lax.optimization_barrier((x, y))),
    "call": lambda x, y: jax.jit(lambda x, y: (-y, x * y))(x, y),
    "checkpoint": lambda x, y: jax.checkpoint(lambda x, y: (-y, x * y))(x, y),
    "cond": lambda x, y: lax.cond(y[0, 0] > 0, lambda x, y: (x, y), lambda x, y: (y, -y), x, y),
    "scan": lambda x, y: lax.scan(lambda c, t: ((c[0] + x[0], -c[1]), (c[0], t)), (y[0], y[1]), y),
    "scan whose carries follow each other": lambda x, y: lax.scan(
        lambda c, t: ((c[0] + t, c[0], c[1], -c[3]), None), (y[0], y[0], y[0], y[1]), x
    )[0],
    "while": lambda x, y: lax.while_loop(
        lambda c: (c[0] + y)[0, 0] < 3, lambda c: (c[0] + 1, c[1] + x), (y, y)
    ),
    "custom jvp": halved,
    "custom vjp": clipped,
    "custom jvp that asks": asked,
    "custom vjp that asks": asked_back,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_casts_make_operands_agree(name):
    """The graph is traced where nothing has such types; JAX refuses operands that differ."""
    x = y = np.zeros((2, 3), np.float32)
    graph, wanted = bp.compile(FUNCTIONS[name]).trace(x, y).graph, []
    cast = aligned(graph, [D, NONE], DM)
    verify(cast)

    def place(x, y):
        wanted.extend(varying_axes(jax.typeof(out)) for out in evaluate(cast, x, y))
        return x

    mapped = jax.shard_map(place, mesh=mesh(), in_specs=(P("d"), P()), out_specs=P("d"))
    jax.eval_shape(mapped, np.zeros((4, 3), np.float32), y)
    assert list(varying(graph, [D, NONE], DM)) == wanted
    assert aligned(cast, [D, NONE], DM) == cast


def slopes(x, y):
    return bp.value_and_grad(lambda x, y: jnp.sum(x) * y, (0, 1))(x, y[0, 0])


@pytest.mark.parametrize("function, op, found", [
    (slopes, "gradients", (D, D, NONE)), (lambda *args: jax.device_put(args), "device_put", (D, NONE)),
])  # fmt: skip
def test_each_result_varies_as_what_it_belongs_to(function, op, found):
    x = y = np.zeros((2, 3), np.float32)
    graph = bp.compile(function).trace(x, y).graph
    assert op in {node.op.name for node in graph.nodes}
    assert varying(graph, [D, NONE], DM) == found


TEXT = """backpass.ir 1

graph f(%0: f32[2] x) {
  %1: f32[2] = pvary(%0) {axes=("d","m")}
  %2: f32[2] = neg(%1)
  return %2
}
"""


@pytest.mark.parametrize("own, manual, casts", [
    (NONE, DM, [("d", "m")]), (D, DM, [("m",)]), (DM, DM, []), (NONE, D, [("d",)]), (NONE, NONE, []),
])  # fmt: skip
def test_a_value_is_cast_to_what_it_does_not_vary_over_yet(own, manual, casts):
    graph = parse(TEXT)
    found = aligned(graph, [own], manual)
    verify(found)
    assert [n.attrs["axes"] for n in found.nodes if n.op.name == "pvary"] == casts
    assert varying(graph, [own], manual) == (own | manual,)
    if casts == [("d", "m")]:
        assert found is graph


def test_a_map_within_a_map():
    """Along the outer one's axis, results vary as they do inside."""
    w = np.arange(8, dtype=np.float32).reshape(2, 4)

    def inner(x, y):
        return jnp.sin(x) * lax.axis_index("m"), y + 1

    def outer(x, y):
        specs = {"in_specs": (P("m"), P()), "out_specs": (P("m"), P()), "axis_names": {"m"}}
        a, b = jax.shard_map(inner, **specs)(x, y)
        return (a + x) * y, b

    specs = {"in_specs": (P(None, "d"), P()), "out_specs": (P(None, "d"), P()), "axis_names": {"d"}}
    step = jax.shard_map(outer, mesh=mesh(), **specs)

    found = bp.compile(step)(w, np.float32(2))
    rows = np.arange(2, dtype=np.float32)[:, None]
    np.testing.assert_allclose(found[0], (np.sin(w) * rows + w) * 2, rtol=1e-6)
    assert found[1] == 3
