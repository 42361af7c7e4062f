"""What a first call costs by phases, for GPTs of more and more layers.

Ours is to trace, import, differentiate, clean up and bind (`trace`), then to lower to StableHLO,
then XLA; JAX's is to trace and differentiate, lower, XLA. Arguments are abstract, and every sample
has function objects of its own; JAX's caches are cleared before each, off the clock. `total` is
the sum. `passes` are the seconds of our passes, `plan` those of a plan for a budget at
0.6 of the predicted peak, both over JAX's total; `equations` of the jaxpr, over those of JAX's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

from ...compiler.compile import compile
from ...compiler.gradients import value_and_grad
from ...passes.rematerialise import Forms
from ...runtime.device import live_spec
from ..arms import step_of
from ..measure import ratio
from ..models.model import Model
from ..models.sequences import gpt
from ..rows import Row, Setup

RATIOS = ("total", "trace", "lower", "xla")
FIGURES = ("equations", "passes", "plan")
LAYERS = {"tiny": (1, 2), "small": (3, 6, 12), "large": (6, 12, 24)}
BUDGET = 0.6  # of the plain step's predicted peak


@dataclass(frozen=True)
class First:
    """One first call: seconds of its phases, those of each pass, equations of the jaxpr."""

    seconds: Mapping[str, float]
    passes: Mapping[str, float]
    equations: int


def cases(size: str) -> Mapping[str, Callable[[], Model]]:
    """Return builders by name."""
    rest = (16, 2, 8, 2, 32) if size == "tiny" else (128, 4, 64, 2, 512)
    return {f"gpt {n} layers": partial(gpt, n, *rest) for n in LAYERS[size]}


def measure(suite: str, case: str, build: Callable[[], Model], setup: Setup) -> list[Row]:
    """Take first calls in turns, and plan once."""
    model = build()
    args = arguments(model)
    arms = {
        "backpass": partial(_ours, model, args, setup.passes),
        "jax": partial(_theirs, model, args),
    }
    for arm in arms.values():  # imports, and tables that are made once a process
        arm(whole=False)
    found: dict[str, list[First]] = {name: [] for name in arms}
    for i in range(setup.repeats):
        for name in list(arms)[:: -1 if i % 2 else 1]:
            jax.clear_caches()
            found[name].append(arms[name]())
            setup.tell(f"{case}, {name}: {_total(found[name][-1]):.1f} s")
    mine, theirs = found["backpass"], found["jax"]
    ratios = {"total": ratio([*map(_total, mine)], [*map(_total, theirs)])}
    for phase in RATIOS[1:]:
        ratios[phase] = ratio(*([each.seconds[phase] for each in one] for one in (mine, theirs)))
    whole, plan = median(map(_total, theirs)), planning(model, args)
    figures = {
        "equations": mine[0].equations / theirs[0].equations,
        "passes": median(sum(each.passes.values()) for each in mine) / whole,
        "plan": plan / whole,
        "plan_seconds": plan,
        "pass_seconds": {n: median(e.passes[n] for e in mine) for n in mine[0].passes},
        "seconds": [dict(each.seconds) for each in mine],
        "peer_seconds": [dict(each.seconds) for each in theirs],
    }
    return [Row(suite, case, "jax", ratios, figures)]


def arguments(model: Model) -> tuple[Any, ...]:
    """Return parameters, batch and rate as `jax.ShapeDtypeStruct`s."""
    return (*model.shapes(), jax.ShapeDtypeStruct((), jnp.float32))


def planning(model: Model, args: Sequence[Any]) -> float:
    """Return the seconds of a plan for a budget, from the graph on."""
    step = compile(step_of(value_and_grad, model.loss), donate_argnums=0)
    graphs, donated = step.forms(args, {})
    spec = live_spec()
    start = perf_counter()
    forms = Forms.of_graphs(graphs, spec, donated)
    forms.fastest(max(forms.leanest.bytes, int(BUDGET * forms.plain.bytes)))
    return perf_counter() - start


def _ours(model: Model, args: Sequence[Any], passes: str | None, whole: bool = True) -> First:
    start = perf_counter()
    step = compile(_fresh(value_and_grad, model.loss), passes=passes)
    step._at(args, {})  # how arguments lie, which a call finds out
    traced = step._binding.jit.trace(*args)
    step._binding.finish()  # or it would tell that XLA is at work
    seconds = perf_counter() - start
    by_pass: dict[str, float] = {}
    for stage in step.lower(*args).stages[1:]:  # a pass may run more than once
        by_pass[stage.name] = by_pass.get(stage.name, 0.0) + stage.seconds
    return First(_rest(seconds, traced, whole), by_pass, count(traced.jaxpr))


def _theirs(model: Model, args: Sequence[Any], whole: bool = True) -> First:
    start = perf_counter()
    traced = jax.jit(_fresh(jax.value_and_grad, model.loss)).trace(*args)
    return First(_rest(perf_counter() - start, traced, whole), {}, count(traced.jaxpr))


def _rest(seconds: float, traced: Any, whole: bool) -> dict[str, float]:
    """Seconds of all phases, after those of tracing; without XLA where it is not `whole`."""
    start = perf_counter()
    lowered = traced.lower()
    middle = perf_counter()
    if whole:
        lowered.compile()
    return {"trace": seconds, "lower": middle - start, "xla": perf_counter() - middle}


def _fresh(value_and_grad: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that no cache has seen."""
    return step_of(value_and_grad, lambda params, batch: loss(params, batch))


def _total(first: First) -> float:
    return sum(first.seconds.values())


def count(jaxpr: Any) -> int:
    """Return the number of equations, those of nested jaxprs included."""
    return sum(1 + sum(map(count, _inner(eqn.params.values()))) for eqn in jaxpr.eqns)


def _inner(values: Any) -> Iterator[Any]:
    """Jaxprs among the parameters of an equation."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield from _inner([value.jaxpr])
