"""Peak memory and time of a step under budgets, beside plain JAX and `jax.checkpoint` by hand.

Budgets are spread between plain `jax.jit`'s peak and the smallest that is feasible. Peaks are those
that XLA reports: arguments + outputs + temporaries - donated. Beside `jax` each budget's step is
compared with the plain one, beside `jax-checkpoint` with the fastest of the plain one and the
policies that fits the same budget, all in the form in which it works on CPU. Programs that are
equal share their times. `budget` is of plain JAX's peak, `within` ours of the budget, `predicted`
of ours; `rounds` were compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from ...ir.errors import BudgetError
from ...runtime.xla import obeyed
from ..arms import POLICIES, checkpointed, in_turns, ours, stock
from ..measure import Ratio, Samples, pooled, ratio
from ..models.images import mlp, resnet, unet, vae, vit
from ..models.model import Model
from ..models.sequences import gpt, lstm, moe
from ..models.sizes import SIZES
from ..rows import Row, Setup, exact
from ..task import Arm, Task

RATIOS = ("time", "peak")
FIGURES = ("budget", "within", "predicted", "rounds", "rival")
BUDGETS = {"tiny": 3}  # of each model
MANY = 10

# Deep enough that there is something to recompute; they compile in seconds.
SMALL: Mapping[str, Callable[..., Model]] = {
    "mlp32": partial(mlp, 1024, (256, *[512] * 32, 10)),
    "gpt12": partial(gpt, 12, 128, 4, 128, 4, 1024),
    "gpt12_scan": partial(gpt, 12, 128, 4, 128, 4, 1024, scanned=True),
    "resnet": partial(resnet, 32, 32, (32, 64, 128)),
    "unet": partial(unet, 8, 64, (16, 32, 64)),
    "lstm": partial(lstm, 16, 512, 128, 64),
    "moe": partial(moe, 512, 64, 8, 2, 64),
    "vit": partial(vit, 16, 32, 4, 4, 96, 3),
    "vae": partial(vae, 256, 784, 512, 32),
}


def cases(size: str) -> Mapping[str, Callable[..., Model]]:
    """Return builders that take `remat`; on a GPU those of the suite `models`."""
    return {"tiny": {"mlp": SIZES["tiny"]["mlp"]}, "small": SMALL}.get(size) or SIZES[size]


def least(task: Task) -> int:
    """Return the smallest budget in bytes that is feasible."""
    try:
        ours(task, budget=1)
    except BudgetError as error:
        return error.minimum_bytes
    raise AssertionError("a step within a byte")


def measure(suite: str, case: str, build: Callable[..., Model], setup: Setup) -> list[Row]:
    """Compile every arm, then time ours beside the others."""
    task = Task.of(build, setup.seed, setup.precision)
    plain, rivals = stock(task), []
    if "jax-checkpoint" in setup.peers:
        rivals = [stock(task, "plain", options=obeyed(None))]
        rivals += [checkpointed(task, policy) for policy in POLICIES]
    for arm in rivals:
        setup.tell(f"{case}, {arm.name}: peak {peak_of(arm) / 2**20:.1f} MiB")
    count = BUDGETS.get(setup.size, MANY)
    spread = np.linspace(peak_of(plain), least(task), count).astype(int).tolist()
    planned = [ours(task, setup.passes, budget) for budget in spread]
    arms = [plain, *rivals, *planned]
    times = shared(arms, in_turns(arms, setup.repeats))
    rows = []
    for i, (budget, arm) in enumerate(zip(spread, planned, strict=True), 1):
        name = f"{case} budget {i} of {count}"
        own = _figures(arm, budget, plain)
        own |= {"time": ratio(times[id(arm)].wall, times[id(plain)].wall).median}
        if "jax" in setup.peers:
            rows.append(Row(suite, name, "jax", _ratios(arm, plain, times), own))
        if rivals:
            fastest = _fastest([plain, *rivals], budget, times)
            ratios = {} if fastest is None else _ratios(arm, fastest, times)
            rival = "none fits" if fastest is None else fastest.name
            told = own | {"rival": rival.removeprefix("jax-checkpoint ")}
            rows.append(Row(suite, name, "jax-checkpoint", ratios, told))
    return rows


def shared(arms: Sequence[Arm], samples: Sequence[Samples]) -> dict[int, Samples]:
    """Times by the arms' ids; of programs that are equal, medians of each round.

    Where their buffers come to lie differs from one to the other, and by it their times.
    """
    equal: dict[str, list[Samples]] = {}
    texts = [arm.program.as_text() for arm in arms]
    for text, each in zip(texts, samples, strict=True):
        equal.setdefault(text, []).append(each)
    return {id(arm): pooled(equal[text]) for arm, text in zip(arms, texts, strict=True)}


def peak_of(arm: Arm) -> int:
    """Return XLA's peak in bytes."""
    assert arm.peak_bytes is not None  # XLA tells it
    return arm.peak_bytes


def _fastest(arms: Sequence[Arm], budget: int, times: Mapping[int, Samples]) -> Arm | None:
    """The fastest arm that fits."""
    able = [arm for arm in arms if peak_of(arm) <= budget]
    return min(able, key=lambda arm: median(times[id(arm)].wall), default=None)


def _ratios(mine: Arm, other: Arm, times: Mapping[int, Samples]) -> dict[str, Ratio]:
    time = ratio(times[id(mine)].wall, times[id(other)].wall)
    return {"time": time, "peak": exact(peak_of(mine), peak_of(other))}


def _figures(arm: Arm, budget: int, plain: Arm) -> dict[str, Any]:
    plan, peak = arm.program.plan, peak_of(arm)
    return {
        "budget": budget / peak_of(plain),
        "within": peak / budget,
        "predicted": plan.predicted_bytes / peak,
        "rounds": plan.rounds,
        "budget_bytes": budget,
        "peak_bytes": peak,
        "plain_bytes": peak_of(plain),
    }
