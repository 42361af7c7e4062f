"""The start of a second process with a cache: seconds of its first call / those of the first one's.

    python benchmarks/cache.py
    python benchmarks/cache.py --layers 12 --budget 0.6 --json cache.json

Each start is a process of its own: it imports, traces, plans, compiles and runs one step of a GPT.
The first one finds an empty folder, the second one what the first one left. `call` is the first
call, of which `passes` and `planning` are parts; `compiles` are rounds of the search for a plan.
The column `passes / call` tells what it would gain at most to keep the graphs as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from script import finish, parser

from backpass.bench.measure import environment, note

COLUMNS = ("start", "budget", "process", "call", "planning", "compiles", "passes / call")


@dataclass(frozen=True)
class Start:
    """Seconds of one process: from its start, and of its first call."""

    process: float
    call: float
    planning: float
    passes: float
    compiles: int
    loss: float


def start(layers: int, width: int, budget: int, folder: str) -> Start:
    """Run one step in a new process."""
    begin = perf_counter()
    command = [sys.executable, __file__, "--child", str(layers), str(width), str(budget), folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=dict(os.environ))
    return Start(perf_counter() - begin, **json.loads(done.stdout))


def child(layers: int, width: int, budget: int, folder: str) -> dict[str, Any]:
    """What the new process does; a budget of 0 is none."""
    import jax

    import backpass as bp
    from backpass.bench.models.sequences import gpt

    bp.cache(folder)
    model = gpt(layers, width, 4, 2 * width, 8, 1024)
    params, batch = model.init(jax.random.key(0)), model.batch(jax.random.key(1))

    def step(params, batch):
        loss, grads = bp.value_and_grad(model.loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

    f = bp.compile(step, donate_argnums=0, memory_budget=budget or None)
    begin = perf_counter()
    loss = float(f(params, batch)[1])
    call = perf_counter() - begin
    (trace,) = f.explain().traces
    return {
        "call": call,
        "planning": trace.planning,
        "passes": trace.passes,
        "compiles": trace.compiles,
        "loss": loss,
    }


def least(layers: int, width: int, part: float) -> int:
    """A budget in bytes: `part` of the predicted peak of the plain step."""
    import jax

    import backpass as bp
    from backpass.bench.models.sequences import gpt

    model = gpt(layers, width, 4, 2 * width, 8, 1024)

    def step(params, batch):
        loss, grads = bp.value_and_grad(model.loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

    plain = bp.compile(step, donate_argnums=0, memory_budget=1 << 50).lower(*model.shapes())
    return int(part * plain.plan.baseline_bytes)


def main(argv: Sequence[str] | None = None) -> list[Any]:
    """Measure both starts, without and with a budget; print and return the rows."""
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--budget", type=float, default=0.6, help="part of the plain step's peak")
    args = options.parse_args(argv)
    tiny = 2, 16, 0.75
    layers, width, part = tiny if args.tiny else (args.layers, args.width, args.budget)
    stamp, rows, results = environment(), [], []
    for name, budget in (("none", 0), (f"{part:g}", least(layers, width, part))):
        with tempfile.TemporaryDirectory() as folder:
            first, second = (start(layers, width, budget, folder) for _ in range(2))
        assert first.loss == second.loss
        for label, each in (("first", first), ("second", second)):
            note(f"{label}, budget {name}: {each}")
            ratios = (each.process / first.process, each.call / first.call)
            planning = each.planning / first.planning if first.planning else 1.0
            cells = [f"{x:.2f}" for x in (*ratios, planning)]
            share = f"{each.passes / each.call:.2f}"
            rows.append((label, name, *cells, str(each.compiles), share))
            results.append({"start": label, "budget": budget, **asdict(each)})
    finish(stamp, [(COLUMNS, rows)], results, args.json)
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(*map(int, sys.argv[2:5]), sys.argv[5])))
    else:
        main()
