"""Budgets, results and times of thirty-two training steps that no pass was tuned for.

    python benchmarks/sweep/run.py
    python benchmarks/sweep/run.py --models swin ctc --by jax --budgets 6 --json out.json

Each is written as an outsider writes it, with Optax's AdamW, and compiled twice: with
`bp.value_and_grad`, and with `jax.value_and_grad` inside, as a step that already exists. Budgets
are spread between the least that is feasible and the peak of `jax.jit`; all figures are relative
to that step. `plain`: peak and time without a budget. `least`: the smallest budget, and its time.
`median`: the median of times under the budgets. `apart`: the largest difference of loss or
gradients, of a leaf to its largest element. `fault` names what broke: a budget that was exceeded,
refused though feasible, a lower one that raised the peak, or results that differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).parents[1]))
from script import finish_rows, parser
from sweep import images, learning, science, sequences

import backpass as bp
from backpass.bench.arms import differences, in_turns, jitted
from backpass.bench.measure import environment, fix_allocator, note, ratio
from backpass.bench.models.model import Model
from backpass.bench.suites.memory import peak_of, shared
from backpass.bench.task import Arm, Task

COLUMNS = "model by MiB plain time least time median apart fault".split()
GRADIENTS: Mapping[str, Callable[..., Any]] = {"bp": bp.value_and_grad, "jax": jax.value_and_grad}
APART = 1e-3

# Builders by name, and the sizes to see that they run.
MODELS: Mapping[str, tuple[Callable[..., Model], Mapping[str, int]]] = {
    "swin": (images.swin, dict(batch=2, size=8, width=8, window=2, depth=2)),
    "convnext": (images.convnext, dict(batch=2, size=8, width=4, depth=2)),
    "densenet": (images.densenet, dict(batch=2, size=8, growth=2, depth=2)),
    "diffusion": (images.diffusion, dict(batch=2, size=8, width=8)),
    "vqvae": (images.vqvae, dict(batch=2, size=8, width=4, codes=8)),
    "flow": (images.flow, dict(batch=4, width=4, hidden=8, depth=2)),
    "rays": (images.rays, dict(count=4, samples=4, width=8, depth=2)),
    "contrasts": (images.contrasts, dict(batch=4, wide=8, depth=2)),
    "penalty": (images.penalty, dict(batch=2, size=8, width=4)),
    "translation": (sequences.translation, dict(batch=2, length=4, width=8, depth=1, words=16)),
    "llama": (sequences.llama, dict(batch=2, length=4, width=16, depth=2, words=16)),
    "distances": (sequences.distances, dict(batch=2, length=4, width=8, depth=2)),
    "kernels": (sequences.kernels, dict(batch=2, length=8, width=4, depth=2, states=4)),
    "mamba": (sequences.mamba, dict(batch=2, length=8, width=4, depth=2, states=2)),
    "linear_attention": (sequences.linear_attention, dict(batch=2, length=4, width=8, depth=2)),
    "ctc": (sequences.ctc, dict(batch=2, length=12, width=4, labels=4, classes=6)),
    "wavenet": (sequences.wavenet, dict(batch=2, length=16, width=4, depth=3)),
    "likelihood": (science.likelihood, dict(points=8, inside=2, features=4)),
    "residuals": (science.residuals, dict(points=8, width=4, depth=2)),
    "forces": (science.forces, dict(batch=2, atoms=4, width=4, depth=1)),
    "trajectories": (science.trajectories, dict(batch=4, width=4, steps=3)),
    "stencil": (science.stencil, dict(size=8, steps=3)),
    "equilibrium": (science.equilibrium, dict(batch=4, width=8, rounds=3)),
    "graph": (science.graph, dict(nodes=8, edges=16, width=8, depth=2)),
    "policy": (learning.policy, dict(steps=4, worlds=2, width=4)),
    "critics": (learning.critics, dict(batch=4, width=4)),
    "tasks": (learning.tasks, dict(count=2, shots=4, width=4, rounds=2)),
    "adapters": (learning.adapters, dict(batch=2, length=4, width=8, depth=2, rank=2)),
    "mixture": (learning.mixture, dict(batch=4, width=4, parts=2, out=2)),
    "capsules": (learning.capsules, dict(batch=2, inside=4, out=2, rounds=2)),
    "recommendations": (learning.recommendations, dict(batch=4, tables=2, rows=8, width=4)),
    "reversible": (learning.reversible, dict(batch=2, width=4, depth=3)),
}


@dataclass(frozen=True)
class Result:
    """One step: bytes of the plain one, and per budget its part of them, the peak's, and times."""

    model: str
    by: str
    bytes: int
    plain: tuple[float, float]
    budgets: list[tuple[float, float, float]]
    apart: float
    faults: list[str]

    def cells(self) -> list[str]:
        """Return the row as text."""
        budget, _, time = self.budgets[-1] if self.budgets else (np.nan, np.nan, np.nan)
        times = [each[2] for each in self.budgets] or [np.nan]
        figures = (*self.plain, budget, time, median(times))
        told = (f"{self.bytes / 2**20:.1f}", *(f"{figure:.2f}" for figure in figures))
        return [self.model, self.by, *told, f"{self.apart:.0e}", "; ".join(self.faults) or "-"]


def step_of(value_and_grad: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step of AdamW, whose state is parameters and the optimiser's."""

    def step(state: Any, batch: Any, rate: Any) -> Any:
        params, memory = state
        value, grads = value_and_grad(loss)(params, batch)
        updates, memory = optax.adamw(rate).update(grads, memory, params)
        return (optax.apply_updates(params, updates), memory), value

    return step


def gradients(state: Any, arm: Arm) -> tuple[float, list[np.ndarray[Any, Any]]]:
    """Return the loss, and the first moments after one step: the gradients, scaled."""
    value, leaves = arm.first(1e-3)
    _, memory = jax.tree.unflatten(jax.tree.structure(state), leaves)
    return value, jax.tree.leaves(memory[0].mu)


def measure(name: str, by: str, build: Callable[[], Model], budgets: int, repeats: int) -> Result:
    """Compile all, compare their results, then time them in turns."""
    task = Task.of(build)
    state = (task.params, optax.adamw(1e-3).init(task.params))
    task = Task(build, task.model, state, task.batch)
    stock = jax.jit(step_of(jax.value_and_grad, task.model.loss), donate_argnums=0)
    step = step_of(GRADIENTS[by], task.model.loss)
    plain = jitted("jax", stock, task)
    peak = peak_of(plain)
    arms, faults = [plain, jitted("ours", bp.compile(step, donate_argnums=0), task)], []
    if peak_of(arms[1]) > peak:
        faults.append(f"without a budget {peak_of(arms[1]) / peak:.3f}")
    asked = []
    for budget in np.linspace(peak, least(step, task), budgets).astype(int).tolist():
        compiled = bp.compile(step, donate_argnums=0, memory_budget=budget)
        try:
            arms.append(jitted(f"{budget}", compiled, task))
        except bp.BudgetError as error:
            faults.append(f"{budget / peak:.3f} refused, {error.minimum_bytes / peak:.3f} named")
            continue
        asked.append(budget)
        if peak_of(arms[-1]) > budget:
            faults.append(f"{peak_of(arms[-1]) / peak:.3f} for {budget / peak:.3f}")
        if len(asked) > 1 and peak_of(arms[-1]) > peak_of(arms[-2]):
            faults.append(f"more for {budget / peak:.3f}")
        note(f"  {budget / peak:.3f}: {peak_of(arms[-1]) / peak:.3f}")
    moments = jax.tree.leaves(state[1][0].mu)
    theirs = gradients(state, plain)
    apart = max(max(differences(moments, gradients(state, arm), theirs)) for arm in arms[1:])
    if not apart < APART:
        faults.append("results differ")
    times = shared(arms, in_turns(arms, repeats)) if repeats else None
    relative = [
        ratio(times[id(arm)].wall, times[id(plain)].wall).median if times else np.nan
        for arm in arms
    ]
    rows = [
        (budget / peak, peak_of(arm) / peak, time)
        for budget, arm, time in zip(asked, arms[2:], relative[2:], strict=True)
    ]
    return Result(name, by, peak, (peak_of(arms[1]) / peak, relative[1]), rows, apart, faults)


def least(step: Callable[..., Any], task: Task) -> int:
    """Return the smallest budget in bytes that is said to be feasible."""
    try:
        jitted("least", bp.compile(step, donate_argnums=0, memory_budget=1), task)
    except bp.BudgetError as error:
        return error.minimum_bytes
    raise AssertionError("a step within a byte")


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the models asked for; print and return their rows."""
    options = parser(__doc__)
    options.add_argument(
        "--models", nargs="+", choices=list(MODELS), metavar="NAME", default=MODELS
    )
    options.add_argument("--by", nargs="+", choices=list(GRADIENTS), default=list(GRADIENTS))
    options.add_argument("--budgets", type=int, default=5, help="budgets of each step")
    options.add_argument("--repeats", type=int, default=7, help="samples of each; 0: no times")
    args = options.parse_args(argv)
    stamp = environment(["optax"])
    results = []
    for name in args.models:
        make, tiny = MODELS[name]
        for by in args.by:
            build = lambda make=make, tiny=tiny: make(**tiny if args.tiny else {})
            note(f"{name} by {by}")
            try:
                results.append(measure(name, by, build, args.budgets, args.repeats))
            except Exception as error:
                note(f"  {type(error).__name__}: {error}")
                results.append(
                    Result(name, by, 0, (np.nan, np.nan), [], np.nan, [type(error).__name__])
                )
            note("  " + "  ".join(results[-1].cells()[2:]))
            jax.clear_caches()
    finish_rows(stamp, COLUMNS, results, args.json)
    return results


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
