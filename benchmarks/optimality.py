"""How far the planner is from the best schedule there is: ratios of predicted step time and peak.

    python benchmarks/optimality.py
    python benchmarks/optimality.py --programs random --budgets 10 --limit 120

The programs are small, up to 40 values that a schedule may keep, and have no scans. The best one is
that of an integer program (`passes/rematerialise/exact.py`); both are written out as graphs, which
the roofline and the liveness analysis measure. `minimum` compares the leanest peaks; the
budgets lie evenly between the larger of these and the plain step's peak. `chain` is the planner
without its local search, as it plans what is larger. Where the solver was stopped by its limit,
`bound` is less than 1: the best schedule's time is between that and 1 of the one found.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from script import finish, parser

from backpass.bench.measure import environment, note

Program = tuple[Callable[..., Any], list[Any], Any]


@dataclass(frozen=True)
class Result:
    """One program: times are the planner's over the solver's at each budget, `minimum` bytes."""

    program: str
    values: int
    minimum: float
    times: list[float]
    chain: list[float]
    bounds: list[float]


def shape(*sizes: int) -> Any:
    """Return an argument in float32."""
    import jax
    import jax.numpy as jnp

    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def mlp(layers: int) -> Program:
    """Return a chain of equal layers."""
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    return loss, [shape(64, 64)] * layers, shape(512, 64)


def widths(layers: int) -> Program:
    """Return a chain of layers of different widths."""
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        for i, w in enumerate(params):
            x = jnp.sin(x @ w) if i % 2 else jnp.tanh(x @ w)
        return jnp.mean(x**2)

    sizes = [32 + (37 * i) % 151 for i in range(layers + 1)]
    return loss, [shape(*pair) for pair in zip(sizes, sizes[1:], strict=False)], shape(512, 32)


def residual(blocks: int) -> Program:
    """Return normalised residual blocks, `x + gelu(norm(x) @ up) @ down`."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        for up, down in params:
            y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x + jax.nn.gelu(y @ up) @ down
        return jnp.mean(x**2)

    return loss, [(shape(64, 256), shape(256, 64))] * blocks, shape(512, 64)


def unet(levels: int) -> Program:
    """Return layers of which the second half adds what the first made, in reverse."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        kept = []
        for w in params[:levels]:
            x = jax.nn.gelu(x @ w)
            kept.append(x)
        for w in params[levels:]:
            x = jax.nn.relu(x @ w) + kept.pop()
        return jnp.mean(x**2)

    return loss, [shape(64, 64)] * (2 * levels), shape(512, 64)


def attention(blocks: int) -> Program:
    """Return blocks of one head of attention and a layer, with residual connections."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        for q, k, v, w in params:
            scores = jax.nn.softmax((x @ q) @ (x @ k).mT / 8)
            x = x + scores @ (x @ v)
            x = x + jnp.tanh(x @ w)
        return jnp.mean(x**2)

    return loss, [(shape(64, 64),) * 4] * blocks, shape(4, 128, 64)


def random(seed: int) -> Program:
    """Return a program of 16 random steps, each of which reads one or two values made before."""
    import jax.numpy as jnp
    import numpy as np

    draw = np.random.default_rng(seed)
    steps = [(int(draw.integers(6)), *map(int, draw.integers(1, 5, 2))) for _ in range(16)]

    def loss(params: Any, x: Any) -> Any:
        made, weights = [x], iter(params)
        for kind, a, b in steps:
            x, y = made[-min(a, len(made))], made[-min(b, len(made))]
            if kind < 3:
                x = x @ next(weights)
            x = [jnp.tanh(x), x, jnp.sin(x), x + y, x * y, jnp.exp(-x * x)][kind]
            made.append(x)
        return sum(jnp.mean(x**2) for x in made[-3:])

    return loss, [shape(64, 64)] * sum(kind < 3 for kind, _, _ in steps), shape(512, 64)


PROGRAMS: dict[str, tuple[Callable[[int], Program], tuple[int, ...]]] = {
    "mlp": (mlp, (4, 6, 8, 10, 12)),
    "widths": (widths, (4, 6, 8, 10)),
    "residual": (residual, (1, 2, 3)),
    "unet": (unet, (1, 2, 3, 4)),
    "attention": (attention, (1, 2)),
    "random": (random, tuple(range(12))),
}


def measured(name: str, program: Program, budgets: int, limit: float, device: str) -> Result:
    """Compare planner and solver on one program."""
    import jax
    import numpy as np

    import backpass as bp
    from backpass.ir.device import device_named
    from backpass.ir.liveness import liveness
    from backpass.passes import PLANNED
    from backpass.passes.rematerialise.exact import Exact
    from backpass.passes.rematerialise.frontier import Frontier

    loss, params, data = program

    def step(params: Any, data: Any) -> Any:
        value, grads = bp.value_and_grad(loss)(params, data)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    frontier = Frontier(
        bp.compile(step, passes=PLANNED).lower(params, data).graph, device_named(device)
    )
    (treatment,) = frontier.treatments
    stages = treatment.stages
    exact = Exact(stages, limit)
    rest = sum(frontier.clock.seconds(node) for node in treatment.joint.rest)

    def cost(state: Any) -> tuple[int, float]:
        graph = stages.graph(name, stages.schedule(state))
        time = sum(map(frontier.clock.seconds, graph.nodes))
        return liveness(graph, fused=True).peak_bytes, time

    leanest = cost(exact.leanest.state)[0]
    chain = [treatment.candidate(slots) for slots in treatment.sizes]
    chain.append(treatment.plain)
    low = max(leanest, frontier.leanest.bytes)
    times, alone, bounds = [], [], []
    for budget in np.linspace(low, frontier.plain.bytes, budgets + 1)[:-1]:
        best, ours = exact.fastest(budget), frontier.fastest(budget)
        if best is None or ours is None:
            continue
        seconds = cost(best.state)[1]
        times.append(ours.seconds / seconds)
        alone.append(min((c.seconds for c in chain if c.bytes <= budget), default=np.inf) / seconds)
        bounds.append((best.bound + rest) / (best.state.seconds + rest))
    values = len(stages.sizes)
    return Result(name, values, frontier.leanest.bytes / leanest, times, alone, bounds)


def cells(result: Result) -> list[str]:
    """Return a row of the table as text."""
    times, chain = result.times, result.chain
    found = (
        result.minimum,
        statistics.median(times),
        max(times),
        statistics.median(chain),
        max(chain),
        min(result.bounds),
    )
    return [result.program, str(result.values), *(f"{each:.3f}" for each in found)]


def summary(results: Sequence[Result]) -> list[str]:
    """Return the last row: the median and the worst over all programs and budgets."""
    times = [time for result in results for time in result.times]
    chain = [time for result in results for time in result.chain]
    bounds = [bound for result in results for bound in result.bounds]
    worst = max(result.minimum for result in results)
    found = (worst, statistics.median(times), max(times), statistics.median(chain), max(chain))
    return ["all", str(len(times)), *(f"{each:.3f}" for each in (*found, min(bounds)))]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Compare planner and solver on every program; print ratios and return the results."""
    options = parser(__doc__)
    options.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options.add_argument("--budgets", type=int, default=6, metavar="N", help="a program")
    options.add_argument("--limit", type=float, default=60, metavar="S", help="seconds a solution")
    options.add_argument("--device", default="cpu", help="whose speeds count")
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for kind in args.programs:
        make, sizes = PROGRAMS[kind]
        for size in sizes[:1] if args.tiny else sizes:
            name, budgets = f"{kind} {size}", 2 if args.tiny else args.budgets
            results.append(measured(name, make(size), budgets, args.limit, args.device))
            note("  ".join(cells(results[-1])))
    columns = ("program", "values", "minimum", "time", "worst", "chain", "worst", "bound")
    rows = [*map(cells, results), summary(results)]
    finish(stamp, [(columns, rows)], [asdict(each) for each in results], args.json)
    return results


if __name__ == "__main__":
    main()
