"""How arrays lie on a mesh of devices: from arguments and constraints through a whole graph.

    x: f32[16/data:2,64]  .  w: f32[64,256/model:4]   ->   f32[16/data:2,256/model:4]

XLA's partitioner decides where each array lies when it compiles; it starts, as this does, from what
the user said of arguments and of `with_sharding_constraint`, and carries it along. So sizes can be
told for one device without compiling. `Builder` applies the rule of each node that it emits
(`spread_rules.py`); `spread` completes a graph, loops and branches included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .graph import Graph, Node, Value
from .spec import by_partition, merged, sliced, stacked
from .spread_back import wanted
from .spread_rules import Specs, is_spread, shapes, spread_of
from .types import ArrayType, Spec

ROUNDS = 8  # back and on again; two do for a training step


def spread(graph: Graph, *, back: bool = False) -> Graph:
    """Complete what is told of how values lie; the same graph where nothing is added.

    With `back` by what reads them too, as XLA does; JAX's own types know nothing of that.
    """
    says = ("sharding_constraint", "reshard", "shard_map")
    if not is_spread(graph.inputs) and not any(n.op.name in says for n in graph.walk()):
        return graph
    specs = [value.type.spec for value in graph.inputs]
    found = _Walk({}).graph(graph, specs)
    for _ in range(ROUNDS if back else 0):
        if (more := _Walk(wanted(found)).graph(found, specs)) is found:
            break
        found = more
    return found


class _Walk:
    """Graphs that were completed, by their inputs' specs, as many nodes share a region.

    `wanted` tells how values lie that lie in no way by what they are made of.
    """

    def __init__(self, wanted: Mapping[Value, Spec]) -> None:
        self.wanted = wanted
        self.known: dict[tuple[int, tuple[Spec, ...]], Graph] = {}
        self.held: list[Graph] = []
        self.types: dict[tuple[ArrayType, Spec], ArrayType] = {}

    def graph(self, graph: Graph, specs: Specs) -> Graph:
        key = (id(graph), tuple(specs))
        if key not in self.known:
            self.held.append(graph)  # so that its identity stays its own
            self.known[key] = self._graph(graph, specs)
        return self.known[key]

    def _graph(self, graph: Graph, specs: Specs) -> Graph:
        env: dict[Value, Value] = {}
        inputs = self._renewed(graph.inputs, specs, env)
        nodes = [self._node(node, env) for node in graph.nodes]
        if not env and all(new is old for new, old in zip(nodes, graph.nodes, strict=True)):
            return graph
        outputs = tuple(env.get(value, value) for value in graph.outputs)
        return Graph(graph.name, inputs, tuple(nodes), outputs)

    def _renewed(
        self, values: Sequence[Value], specs: Specs, env: dict[Value, Value]
    ) -> tuple[Value, ...]:
        """Values of other types where these differ."""
        found = []
        for value, spec in zip(values, specs, strict=True):
            if value.type.spec != spec:
                kind = self.types.setdefault((value.type, spec), value.type.spread(spec))
                env[value] = Value(kind, value.name)
            found.append(env.get(value, value))
        return tuple(found)

    def _node(self, node: Node, env: dict[Value, Value]) -> Node:
        inputs = tuple(env.get(value, value) for value in node.inputs)
        regions, found = self._outputs(node, inputs)
        pairs = zip(found, node.outputs, strict=True)
        specs = [spec or self.wanted.get(v) or v.type.spec for spec, v in pairs]
        outputs = self._renewed(node.outputs, specs, env)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        same = same and all(a is b for a, b in zip(outputs, node.outputs, strict=True))
        same = same and all(a is b for a, b in zip(regions, node.regions, strict=True))
        return node if same else replace(node, inputs=inputs, outputs=outputs, regions=regions)

    def _outputs(self, node: Node, inputs: Sequence[Value]) -> tuple[tuple[Graph, ...], Specs]:
        """The regions completed, and how the outputs lie."""
        name, given = node.op.name, [value.type.spec for value in inputs]
        if not node.regions:
            return (), spread_of(name, inputs, node.attrs, [v.type for v in node.outputs])
        if name == "shard_map":  # inside, sizes are those of one device already
            sizes, outs = (
                dict(node.attrs["mesh"].shape),
                zip(node.attrs["out_specs"], node.outputs, strict=True),
            )
            return node.regions, [by_partition(spec, sizes, v.ndim) for spec, v in outs]
        if name in ("scan", "while"):
            return self._loop(node, given)
        if name == "cond":
            bodies = tuple(self.graph(region, given[1:]) for region in node.regions)
            columns = zip(*(body.outputs for body in bodies), strict=True)
            both = zip(columns, shapes(node.outputs), strict=True)
            return bodies, [merged((v.type.spec for v in c), shape) for c, shape in both]
        first = node.regions[0]
        if len(first.inputs) != len(inputs) or shapes(first.inputs) != shapes(inputs):
            types = [v.type for v in node.outputs]
            return node.regions, spread_of(name, inputs, node.attrs, types)
        body = self.graph(first, given)
        found = [*body.outputs, *(inputs[i] for i in node.attrs.get("wrt", ()))]
        if shapes(found) != shapes(node.outputs):
            return node.regions, spread_of(name, inputs, {}, [v.type for v in node.outputs])
        return (body, *node.regions[1:]), [value.type.spec for value in found]

    def _loop(self, node: Node, given: Specs) -> tuple[tuple[Graph, ...], Specs]:
        """A carry lies as it starts and as the body gives it back, one of which may not be told."""
        scan = node.op.name == "scan"
        if scan:
            skip, n, k = 0, node.attrs["num_consts"], node.attrs["num_carry"]
        else:
            skip, n = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
            k = len(given) - skip - n
        tests, consts, carry = given[:skip], given[skip : skip + n], list(given[skip + n :][:k])
        slices = [sliced(spec) for spec in given[skip + n + k :]]
        region = node.regions[-1]
        for _ in range(3):
            body = self.graph(region, [*consts, *carry, *slices])
            back = [v.type.spec for v in body.outputs[:k]]
            sizes = shapes(body.outputs[:k])
            both = [merged(pair, s) for *pair, s in zip(carry, back, sizes, strict=True)]
            if both == carry:
                break
            carry = both
        if not scan:
            return (self.graph(node.regions[0], [*tests, *carry]), body), carry
        return (body,), [*carry, *(stacked(v.type.spec) for v in body.outputs[k:])]
