"""What a first call costs before XLA: `bp.compile` / `jax.jit`, on unrolled GPTs.

    python benchmarks/tracing.py
    python benchmarks/tracing.py --layers 12 --profile

Ours is to trace, import, differentiate, clean up and bind; JAX's is to trace and differentiate.
Both are `.trace(...)` of a jitted step (loss, gradients, SGD) at abstract arguments, so that both
end in a jaxpr of the joint program. Every sample has function objects of its own, and in both arms
`jax.clear_caches()` comes before each sample, off the clock; `--keep-caches` clears in neither.

The first table is ours / JAX's: `trace` and `cpu` (medians of the ratios of the rounds, and their
quartiles; wall clock, seconds of all cores), `lower` (the jaxpr to StableHLO), `equations` in the
jaxpr, nested ones included. The second tells where our time goes, as shares of JAX's whole trace.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from measure import Ratio, environment, finish, fix_allocator, interleave, note, parser, ratio
from steps import step_of

COLUMNS = ("model", "trace", "cpu", "lower", "equations")


@dataclass(frozen=True)
class Result:
    """Ratios ours / JAX's, shares of JAX's trace by phase, and the seconds of each sample."""

    model: str
    trace: Ratio
    cpu: Ratio
    lower: Ratio
    equations: dict[str, int]
    phases: dict[str, float]
    seconds: dict[str, tuple[float, ...]]

    def cells(self) -> list[str]:
        """Return the row as text."""
        equations = self.equations["backpass"] / self.equations["jax"]
        return [self.model, str(self.trace), str(self.cpu), str(self.lower), f"{equations:.2f}"]


def count(jaxpr: Any) -> int:
    """Number of equations, those of nested jaxprs included."""
    return sum(1 + sum(map(count, inner(eqn.params.values()))) for eqn in jaxpr.eqns)


def inner(values: Any) -> Iterator[Any]:
    """Jaxprs among the parameters of an equation."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield from inner([value.jaxpr])


def phases_of(step: Any, args: Sequence[Any], whole: float) -> dict[str, float]:
    """Seconds of each phase of a step that has been traced once, in `whole` seconds."""
    trace = step.explain().traces[-1]
    stages = step.lower(*args).stages[1:]
    seconds = {"trace+import": trace.tracing}
    for stage in stages:  # a pass may run more than once
        seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.seconds
    return {**seconds, "bind": trace.binding, "rest": whole - sum(seconds.values()) - trace.binding}


def arguments(model: Any) -> tuple[Any, ...]:
    """Parameters, batch and rate as `jax.ShapeDtypeStruct`s."""
    import jax
    import jax.numpy as jnp

    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(model.init, key), jax.eval_shape(model.batch, key)
    return (*shapes, jax.ShapeDtypeStruct((), jnp.float32))


def fresh(value_and_grad: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that no cache has seen."""
    return step_of(value_and_grad, lambda params, batch: loss(params, batch))


def traced_by(step: Any, args: Sequence[Any]) -> Any:
    """Trace a compiled function up to the jaxpr that JAX would lower."""
    step._at(args, {})  # how arguments lie, which a call finds out
    traced = step._binding.jit.trace(*args)
    step._finish()  # or it would tell that XLA is at work
    return traced


def measure(model: Any, repeats: int, keep_caches: bool, options: dict[str, Any]) -> Result:
    """Trace in turns, and lower what was traced."""
    import jax

    import backpass as bp

    args = arguments(model)
    held: dict[str, Any] = {}  # freed between samples, off the clock
    phases: list[dict[str, float]] = []
    lowering: dict[str, list[float]] = {"backpass": [], "jax": []}
    equations = {}

    def ours() -> None:
        start = perf_counter()
        step = bp.compile(fresh(bp.value_and_grad, model.loss), **options)
        held["backpass"] = traced_by(step, args)
        whole = perf_counter() - start
        held["phases"] = step, whole

    def theirs() -> None:
        held["jax"] = jax.jit(fresh(jax.value_and_grad, model.loss)).trace(*args)

    def settle() -> None:
        """Read off what the last sample left, then forget it."""
        if "phases" in held:
            step, whole = held.pop("phases")
            phases.append(phases_of(step, args, whole))
        for name in held:
            equations[name] = count(held[name].jaxpr)
            start = perf_counter()
            held[name].lower()
            lowering[name].append(perf_counter() - start)
        held.clear()
        if not keep_caches:
            jax.clear_caches()

    arms = {"backpass": ours, "jax": theirs}
    interleave(arms, 1, before=settle)  # imports and tables that are made once a process
    settle()
    phases.clear()
    for seconds in lowering.values():
        seconds.clear()
    samples = interleave(arms, repeats, before=settle)
    settle()
    a, b = samples["backpass"], samples["jax"]
    base = statistics.median(b.wall)
    shares = {name: statistics.median(p[name] for p in phases) / base for name in phases[0]}
    walls = {name: sample.wall for name, sample in samples.items()}
    lower = ratio(lowering["backpass"], lowering["jax"])
    return Result(
        model.name, ratio(a.wall, b.wall), ratio(a.cpu, b.cpu), lower, equations, shares, walls
    )


def profile(model: Any, options: dict[str, Any], top: int = 30) -> str:
    """Return the functions of our arm that take most, by themselves and with what they call."""
    import jax

    import backpass as bp

    args = arguments(model)
    jax.clear_caches()
    profiler = cProfile.Profile()
    profiler.enable()
    traced_by(bp.compile(fresh(bp.value_and_grad, model.loss), **options), args)
    profiler.disable()
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    stats.sort_stats("tottime").print_stats(top)
    stats.sort_stats("cumulative").print_stats(top)
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure each depth; print and return the rows."""
    from dataclasses import replace

    from workloads import gpt

    options = parser(__doc__)
    options.add_argument("--layers", nargs="+", type=int, metavar="N", help="default 12 48")
    options.add_argument("--repeats", type=int, default=7, help="rounds of both arms in turns")
    options.add_argument("--passes", help="pipeline in place of the default one")
    options.add_argument("--keep-caches", action="store_true", help="JAX's caches stay warm")
    options.add_argument("--profile", action="store_true", help="our top functions, on stderr")
    args = options.parse_args(argv)
    stamp = {**environment(), "caches": "kept" if args.keep_caches else "cleared"}
    passes = {"passes": args.passes} if args.passes else {}
    results = []
    for layers in args.layers or ([1, 2] if args.tiny else [12, 48]):
        model = gpt(layers, 16, 2, 8, 2, 32) if args.tiny else gpt(layers, 128, 4, 64, 2, 512)
        model = replace(model, name=f"gpt {layers} layers")
        note(model.name)
        result = measure(model, args.repeats, args.keep_caches, passes)
        for name, seconds in result.seconds.items():
            count_ = result.equations[name]
            note(f"  {name}: {statistics.median(seconds):.3f} s, {count_} equations")
        if args.profile:
            note(profile(model, passes))
        results.append(result)
    names = list(dict.fromkeys(name for r in results for name in r.phases))
    shares = [[r.model, *(f"{r.phases.get(n, 0):.2f}" for n in names)] for r in results]
    tables = [(COLUMNS, [r.cells() for r in results]), (("share of JAX's trace", *names), shares)]
    finish(stamp, tables, [asdict(r) for r in results], args.json)
    return results


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
