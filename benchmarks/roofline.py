"""How far the planner's times are from real ones: predicted / measured, so that 1 is right.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --models gpt mlp --ops 40

The first table has the plain step of each model. The second has ops alone, each compiled by itself
at the shapes it has in the models, those first that the planner gives most of the time; an op that
XLA makes inside loops pays here for its operands too. Measured is the quickest run.

The third table tells what no rewrite around them can change: the time that the matrix products and
convolutions of a step take when each runs by itself, as a share of the step, and their rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from script import finish, parser

from backpass.bench.measure import environment, fix_allocator, note

SECONDS = 0.2  # of runs, for one program
SHAPES = 3  # of one kind of op


@dataclass(frozen=True)
class Row:
    """A step or an op: seconds as predicted and as measured; `count` runs in all models."""

    name: str
    what: str
    predicted: float
    measured: float
    count: int = 1

    @property
    def ratio(self) -> float:
        """Predicted / measured."""
        return self.predicted / self.measured

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [self.name, self.what, str(self.count), f"{self.ratio:.2f}"]


def least(run: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Seconds of the quickest run, after one to warm up."""
    run()
    best, end = float("inf"), perf_counter() + seconds
    while True:
        start = perf_counter()
        run()
        now = perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def step(model: Any, spec: Any) -> tuple[Row, Any]:
    """Compile and time a model's plain step; its graph besides."""
    import jax
    import jax.numpy as jnp

    import backpass as bp
    from backpass.bench.arms import step_of
    from backpass.bench.task import RATE

    state = [model.init(jax.random.key(0))]
    batch, rate = model.batch(jax.random.key(1)), jnp.float32(RATE)
    function = bp.compile(step_of(bp.value_and_grad, model.loss), donate_argnums=0)
    lowered = function.lower(state[0], batch, rate)
    compiled = lowered.compile()

    def run() -> None:
        state[0], value = compiled(state[0], batch, rate)
        jax.block_until_ready((state[0], value))

    nodes = lowered.graph.nodes
    predicted = sum(map(spec.seconds, nodes))
    return Row(model.name, f"{len(nodes)} nodes", predicted, least(run)), lowered.graph


def alone(node: Any, spec: Any) -> float:
    """Predicted seconds of a node that is a program by itself."""
    from backpass.ir.cost import node_cost
    from backpass.ir.fusion import is_fusible

    seconds = spec.seconds(node)
    if not is_fusible(node):
        return float(seconds)
    work = node_cost(node)
    factor = work.bytes / max(work.bytes_written, 1)
    return float(seconds * 2 * factor)


def timed(node: Any) -> float:
    """Measured seconds of a node that is a program by itself."""
    import jax

    from backpass.ir import Graph, evaluate
    from backpass.ir.graph import Literal

    inputs = tuple(dict.fromkeys(v for v in node.inputs if not isinstance(v, Literal)))
    graph = Graph(node.op.name, inputs, (node,), node.outputs)
    args = [_array(value.type) for value in inputs]
    program = jax.jit(lambda *args: evaluate(graph, *args))
    return least(lambda: jax.block_until_ready(program(*args)), SECONDS / 4)


def _array(kind: Any) -> Any:
    """Numbers that no op stumbles over: small indices, floats between 0 and 1."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jax.dtypes.issubdtype(kind.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), kind.shape)
    random = np.random.default_rng(0)
    if jnp.issubdtype(kind.dtype, jnp.floating):
        return jnp.asarray(random.uniform(0.1, 0.9, kind.shape), kind.dtype)
    return jnp.asarray(random.integers(0, 2, kind.shape), kind.dtype)


def ops(graphs: Sequence[Any], spec: Any, most: int) -> Iterator[Row]:
    """Time the ops that take most by prediction, some shapes of each kind."""
    from backpass.ir.device import kind

    found: dict[Any, tuple[Any, int]] = {}
    for node in (node for graph in graphs for node in graph.nodes):
        types = tuple(str(value.type) for value in (*node.inputs, *node.outputs))
        key = (node.op.name, repr(dict(node.attrs)), types, *map(id, node.regions))
        found[key] = (node, found.get(key, (node, 0))[1] + 1)
    shapes: dict[str, int] = {}
    rows = 0
    for node, count in sorted(found.values(), key=lambda f: -f[1] * alone(f[0], spec)):
        name = kind(node)
        shapes[name] = shapes.get(name, 0) + 1
        predicted = alone(node, spec)
        if shapes[name] > SHAPES or rows == most or not predicted:
            continue
        rows += 1
        types = " ".join(str(value.type) for value in node.inputs)
        result = str(node.outputs[0].type)
        yield Row(name, f"{types} -> {result}"[-60:], predicted, timed(node), count)


@dataclass(frozen=True)
class Share:
    """The products of a step, each timed by itself, and the step; floating-point operations."""

    name: str
    flops: int
    seconds: float
    step: float

    def cells(self) -> list[str]:
        """Return the row as text."""
        rate = self.flops / self.seconds / 1e9
        return [
            self.name,
            f"{self.flops / 1e9:.1f}",
            f"{rate:.0f}",
            f"{self.seconds / self.step:.2f}",
        ]


def products(graph: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Matrix products and convolutions, and how often each runs in a step."""
    for node in graph.nodes:
        if node.op.name in ("dot_general", "conv_general_dilated"):
            yield node, times
        for region in node.regions:
            yield from products(region, times * int(node.attrs.get("length", 1)))


def share(row: Row, graph: Any) -> Share:
    """Time the products of a model's step, each kind once."""
    from backpass.ir.cost import node_cost

    kinds: dict[Any, tuple[Any, int]] = {}
    for node, times in products(graph):
        key = (repr(dict(node.attrs)), *(str(value.type) for value in node.inputs))
        kinds[key] = (node, kinds.get(key, (node, 0))[1] + times)
    flops = sum(times * node_cost(node).flops for node, times in kinds.values())
    seconds = sum(times * timed(node) for node, times in kinds.values())
    return Share(row.name, flops, seconds, row.measured)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure the models and ops asked for, and print both tables."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", metavar="NAME", help="some models, not all")
    options.add_argument("--ops", type=int, default=60, help="rows of the second table")
    chosen = options.parse_args(argv)
    if argv is None:
        fix_allocator(chosen.default_allocator)
    from backpass.bench.models.sizes import models
    from backpass.runtime.device import live_spec, renew

    renew()
    spec = live_spec()
    stamp = environment()
    note(str(spec))
    steps, graphs = [], []
    for model in models(chosen.models, "tiny" if chosen.tiny else "small"):
        row, graph = step(model, spec)
        steps.append(row)
        graphs.append(graph)
        note(f"{row.name}: {1e3 * row.measured:.1f} ms, predicted {1e3 * row.predicted:.1f}")
    alone_rows = list(ops(graphs, spec, chosen.ops))
    shares = [share(row, graph) for row, graph in zip(steps, graphs, strict=True)]
    tables = [
        (("step", "of", "runs", "predicted / measured"), [row.cells() for row in steps]),
        (("op", "at", "runs", "predicted / measured"), [row.cells() for row in alone_rows]),
        (
            ("step", "GFLOP of products", "GF/s alone", "alone / step"),
            [each.cells() for each in shares],
        ),
    ]
    results = [asdict(row) for row in (*steps, *alone_rows, *shares)]
    finish(stamp, tables, results, chosen.json)
    return [*steps, *alone_rows]


if __name__ == "__main__":
    main()
