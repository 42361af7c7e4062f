"""Rules of the collectives: types, and the transpose over all places, under `jax.vmap`."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from backpass.ir.builder import Builder
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Value
from backpass.ir.op import no_gradient
from backpass.ir.ops import OPS, collectives
from backpass.ir.ops.varying import aligned, varying
from backpass.ir.parser import parse
from backpass.ir.types import ArrayType, type_of
from backpass.ir.verifier import verify
from ops.draws import real

pytestmark = pytest.mark.usefixtures("float64")

PLACES = 4
GATHER = {"axis_name": ("i",), "axis_index_groups": None, "axis_size": PLACES}
TYPED = {"axis_name": ("i",), "axis_size": PLACES}
EXCHANGE = {"axis_name": "i", "axis_index_groups": None, "axis_size": PLACES, "tiled": False}


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a collective on a shard; `typed` needs the checked types of `shard_map`."""

    op: str
    shard: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    typed: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{'x'.join(map(str, self.shard))}-{self.attrs.get('tiled', '')}"


ALL = {"axes": ("i",), "axis_index_groups": None}
USES = (
    Use("psum", (2, 3), ALL),
    Use("psum", (), ALL),
    Use("psum", (2, 3), {"axes": ("i", 1), "axis_index_groups": None}),
    Use("psum", (2, 3), {"axes": (0,), "axis_index_groups": None}),
    Use("pmax", (2, 3), ALL),
    Use("pmin", (2, 3), ALL),
    Use("all_gather", (2, 3), {**GATHER, "all_gather_dimension": 1, "tiled": False}),
    Use("all_gather", (2, 3), {**GATHER, "all_gather_dimension": 1, "tiled": True}),
    Use("reduce_scatter", (2, 4), {**GATHER, "scatter_dimension": 1, "tiled": False}),
    Use("reduce_scatter", (2, 8), {**GATHER, "scatter_dimension": 1, "tiled": True}),
    Use("all_to_all", (4, 3, 2), {**EXCHANGE, "split_axis": 0, "concat_axis": 2}),
    Use("all_to_all", (3, 4), {**EXCHANGE, "split_axis": 1, "concat_axis": 0}),
    Use("all_to_all", (4, 3), {**EXCHANGE, "split_axis": 0, "concat_axis": 0}),
    Use("ppermute", (2, 3), {"axis_name": ("i",), "perm": ((0, 1), (1, 3), (3, 0), (2, 2))}),
    Use("pbroadcast", (2, 3), {"axis_name": ("i",), "source": 2}),
    Use("axis_index", (), {"axis_name": "i"}),
    Use("psum_invariant", (2, 3), {"axes": ("i",)}, typed=True),
    Use("pvary", (2, 3), {"axes": ("i",)}, typed=True),
    Use("all_gather_invariant", (2, 3), {**TYPED, "all_gather_dimension": 1, "tiled": True}, True),
    Use("all_gather_invariant", (2, 3), {**TYPED, "all_gather_dimension": 0, "tiled": False}, True),
)
LINEAR = [use for use in USES if OPS[use.op].vjp not in (None, no_gradient)]


def forward_graph(use: Use):
    """shard -> result."""
    b = Builder(OPS)
    inputs = [] if use.op == "axis_index" else [Value(ArrayType(use.shard, np.dtype(float)))]
    return b.graph(use.op, inputs, b.emit(use.op, inputs, use.attrs))


def transposed_graph(use: Use):
    """Cotangent of the result -> cotangent of the shard."""
    (node,) = forward_graph(use).nodes
    b, ct = Builder(OPS), Value(node.output.type)
    (found,) = node.op.vjp(b, node, [ct], [True])
    assert found.type == node.inputs[0].type
    return b.graph(f"{use.op}_vjp", [ct], [found])


def everywhere(use: Use, graph, xs, varies: bool):
    """Run at all places; results stacked, or alone where they are the same at all places."""
    if not use.typed:
        return jax.vmap(lambda x: evaluate(graph, x)[0], axis_name="i")(xs)
    axes, names = [frozenset("i" if varies else "")], frozenset("i")
    cast = aligned(graph, axes, names)
    (out,) = varying(graph, axes, names)
    mesh = jax.make_mesh((PLACES,), ("i",), axis_types=(AxisType.Auto,))

    def shard(x):
        (found,) = evaluate(cast, x[0] if varies else x)
        return found[None] if out else found

    specs = {True: P("i"), False: P()}
    return jax.shard_map(shard, mesh=mesh, in_specs=specs[varies], out_specs=specs[bool(out)])(xs)


def test_every_collective_has_a_use() -> None:
    assert {op.name for op in collectives.OPS} == {use.op for use in USES}


@pytest.mark.parametrize("use", USES, ids=str)
def test_shape_rule_tells_what_the_lowering_gives(use: Use) -> None:
    graph, found = forward_graph(use), []
    verify(graph)
    mesh = jax.make_mesh((PLACES,), ("i",), axis_types=(AxisType.Auto,))

    def shard(*xs):
        found.extend(map(type_of, evaluate(graph, *xs)))

    args = [
        jnp.zeros((PLACES * value.shape[0], *value.shape[1:]) if value.shape else ())
        for value in graph.inputs
    ]
    spec = P("i") if use.shard and use.op != "pvary" else P()
    if use.op == "pvary":
        args = [jnp.zeros(use.shard)]
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=use.typed)
    jax.eval_shape(mapped, *args)
    assert found == [value.type for value in graph.outputs]


@pytest.mark.parametrize("use", USES, ids=str)
def test_text_of_a_node_is_read_back(use: Use) -> None:
    graph = forward_graph(use)
    assert parse(str(graph)) == graph


@pytest.mark.parametrize("use", LINEAR, ids=str)
def test_vjp_is_the_transpose(use: Use) -> None:
    """<ct, f(x)> = <vjp(ct), x>, summed over all places; what is the same everywhere counts once."""
    forward, backward = forward_graph(use), transposed_graph(use)
    x = real(*use.shard) if use.op == "pvary" else real(PLACES, *use.shard)
    out = everywhere(use, forward, x, varies=use.op != "pvary")
    ct = real(*out.shape)
    found = everywhere(use, backward, ct, varies=out.ndim > forward.outputs[0].ndim)
    assert found.shape == x.shape
    assert np.vdot(ct, out) == pytest.approx(np.vdot(found, x), rel=1e-9)
    assert np.any(found)
