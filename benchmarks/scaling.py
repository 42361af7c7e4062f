"""How the time to trace and differentiate grows with the program: seconds a node, by phase.

    python benchmarks/scaling.py --plot scaling.png
    python benchmarks/scaling.py --sizes 1000 10000 --profile

A program is one unrolled function of N equations or a few more, written in `jax.numpy`: `chain`
has a residual every few steps, values read in many places, and one parameter; `parameters` has a
parameter for every eight equations. The first call is followed to the end of binding: `ask` is
`bp.value_and_grad` while it is traced, which is JAX's `trace`, our `import` and a look at the
inputs; then come the passes, and `bind`. What `roll` makes is thrown away, so that the others see
every equation. Every number is CPU seconds an equation relative to those
of the smallest size: 1.00 is linear growth. `jax` is JAX's own trace and differentiation, which is
left out beyond 10,000 equations; the last column is `all` of ours / `jax`.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

from script import finish, parser

from backpass.bench.measure import environment, fix_allocator, note

JAX_LARGEST = 10_000
PARAMETERS_EVERY = 8


@dataclass(frozen=True)
class Result:
    """Seconds of each phase of one program at one size; `nodes` are those of the joint graph."""

    program: str
    size: int
    nodes: int
    seconds: dict[str, float]


def chain(size: int) -> tuple[Callable[[Any], Any], Any]:
    """Return a function of one array: five equations a round, residuals, one value for all."""
    import jax
    import jax.numpy as jnp

    def run(x: Any) -> Any:
        everywhere, old = jnp.sin(x), x
        for i in range(size // 5):
            h = jnp.tanh(x) * everywhere
            x = x + h * 0.5
            if i % 7 == 0:
                x, old = x - old, x
            else:
                x = x - h
        return jnp.sum(x)

    return run, jax.ShapeDtypeStruct((4,), jnp.float32)


def parameters(size: int) -> tuple[Callable[[Any], Any], Any]:
    """Return a function of `size / 8` arrays, eight equations for each."""
    import jax
    import jax.numpy as jnp

    def run(params: Sequence[Any]) -> Any:
        x = jnp.ones(4)
        for p in params:
            x = x + jnp.tanh(jnp.sin(x * p) + p) * p - x * 0.5
        return jnp.sum(x)

    kind = jax.ShapeDtypeStruct((4,), jnp.float32)
    return run, [kind] * (size // PARAMETERS_EVERY)


PROGRAMS = {"chain": chain, "parameters": parameters}


def phases(program: str, size: int) -> Result:
    """Trace, import, run every pass and bind a program, each on the clock."""
    import jax

    import backpass as bp
    from backpass.compiler.importer import import_jaxpr
    from backpass.compiler.program import collection_paused
    from backpass.passes import DEFAULT, Roll, run_passes
    from backpass.runtime.lower import lowered

    fun, args = PROGRAMS[program](size)
    step = bp.value_and_grad(fun)
    clock = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = process_time()
        found = run()
        clock[name] = process_time() - start
        return found

    with collection_paused():
        traced = timed("trace", lambda: jax.make_jaxpr(fun)(args))
        timed("import", lambda: import_jaxpr(traced, program))
        jax.clear_caches()
        jaxpr = timed("ask", lambda: jax.make_jaxpr(step)(args))
        graph = import_jaxpr(jaxpr, program)
        timed("roll", lambda: Roll()(graph))
        passes = [each for each in DEFAULT if not isinstance(each, Roll)]
        stages = run_passes(graph, passes)
        for stage in stages[1:]:
            clock[stage.name] = clock.get(stage.name, 0.0) + stage.seconds
        final, leaves = stages[-1].graph, jax.tree.leaves(args)
        call = lowered(final, [value.type for value in graph.outputs])
        timed("bind", lambda: jax.jit(call).trace(*leaves))
    clock["all"] = sum(seconds for name, seconds in clock.items() if name not in WITHIN)
    if size <= JAX_LARGEST:
        jax.clear_caches()
        timed("jax", lambda: jax.jit(jax.value_and_grad(fun)).trace(args))
    jax.clear_caches()
    return Result(program, size, len(final.nodes), clock)


def median(results: Sequence[Result]) -> Result:
    """Return the medians of the phases over repetitions."""
    first = results[0]
    names = first.seconds
    clock = {name: statistics.median(r.seconds[name] for r in results) for name in names}
    return Result(first.program, first.size, first.nodes, clock)


def growth(result: Result, smallest: Result) -> dict[str, float]:
    """Seconds a node of the traced program, relative to those of the smallest size."""
    return {
        name: (seconds / result.size) / (smallest.seconds[name] / smallest.size)
        for name, seconds in result.seconds.items()
    }


def cells(result: Result, smallest: Result) -> list[str]:
    """Return a row of the table as text."""
    told = growth(result, smallest)
    if "jax" in told:
        told["all / jax"] = result.seconds["all"] / result.seconds["jax"]
    return [f"{told[name]:.2f}" if name in told else "-" for name in (*NAMES, "all / jax")]


STYLE: Mapping[str, Mapping[str, Any]] = {
    "all": {"lw": 3, "color": "black"},
    "jax": {"lw": 2, "ls": "--", "color": "crimson"},
}


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw CPU seconds over equations, both logarithmic, a panel for each program."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    programs = list(dict.fromkeys(r.program for r in results))
    figure, panels = pyplot.subplots(
        1, len(programs), figsize=(6 * len(programs), 4.6), sharey=True, squeeze=False
    )
    colours = dict(zip(NAMES, pyplot.get_cmap("tab20").colors, strict=False))
    for panel, program in zip(panels[0], programs, strict=True):
        rows = [r for r in results if r.program == program]
        for name in rows[0].seconds:
            points = [(r.size, r.seconds[name]) for r in rows if name in r.seconds]
            style = {"color": colours[name], **STYLE.get(name, {})}
            panel.loglog(*zip(*points, strict=True), marker="o", ms=4, label=name, **style)
        ends = [rows[0].size, rows[-1].size]
        base = rows[0].seconds["all"]
        panel.loglog(ends, [base, base * ends[1] / ends[0]], ":", color="grey", label="linear")
        panel.set(title=program, xlabel="equations of the function")
        panel.grid(True, which="major", alpha=0.3)
    panels[0][0].set_ylabel("CPU seconds")
    panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    note(f"wrote {path}")


def profile(program: str, size: int, top: int = 25) -> str:
    """Return the functions that take most of the time."""
    profiler = cProfile.Profile()
    profiler.runcall(phases, program, size)
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    stats.sort_stats("tottime").print_stats(top)
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure every program at every size; print growth and return the results."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", type=int, metavar="N", help="default 1k 10k 100k")
    options.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options.add_argument("--repeats", type=int, default=3, help="of all sizes but the largest")
    options.add_argument("--plot", type=Path, metavar="PATH", help="draw seconds over size")
    options.add_argument("--profile", action="store_true", help="top functions, on stderr")
    args = options.parse_args(argv)
    stamp = environment()
    sizes = args.sizes or ([50, 100] if args.tiny else [1000, 10_000, 100_000])
    results, rows = [], []
    for program in args.programs:
        phases(program, min(sizes))  # imports and tables that are made once a process
        for size in sizes:
            repeats = args.repeats if size < max(sizes) or len(sizes) == 1 else 1
            result = median([phases(program, size) for _ in range(repeats)])
            smallest = next((r for r in results if r.program == program), result)
            results.append(result)
            note(f"{program} {size}: {result.seconds['all']:.2f} s, {result.nodes} joint nodes")
            rows.append([f"{program} {size}", *cells(result, smallest)])
            if args.profile:
                note(profile(program, size))
    finish(
        stamp,
        [(("seconds an equation", *NAMES, "all / jax"), rows)],
        [asdict(r) for r in results],
        args.json,
    )
    if args.plot:
        plot(results, args.plot)
    return results


PASSES = (
    "canonicalise sink hoist defer roll fuse autodiff fold simplify convolutions cse dce".split()
)
WITHIN = ("trace", "import")  # `ask` holds both
NAMES = (*WITHIN, "ask", *PASSES, "bind", "all", "jax")


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
