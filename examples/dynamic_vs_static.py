"""One training step in two designs: recorded as it runs, and compiled as one static graph.

    python examples/dynamic_vs_static.py            about a minute on two CPU cores

The step is imperative: `loss.backward()`, `optimizer.step()`. It is run as it is, and under
`bp.compile`, from the same parameters on the same batches. Told are losses, time, memory, what the
first call costs and after how many steps that has paid off, and what each design can't do.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import matplotlib
import numpy as np

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import nn
from backpass.dynamic.nn import functional as F

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)

VOCABULARY = 64


class Block(nn.Module):
    """Attention and two layers, each behind a norm and beside a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
        q, k, v = (parts[:, :, i].permute(0, 2, 1, 3) for i in range(3))
        scores = q @ k.swapaxes(-1, -2) / (width // self.heads) ** 0.5
        future = np.triu(np.ones((length, length), bool), 1)
        mixed = scores.masked_fill(future, -1e9).softmax(-1) @ v
        x = x + self.out(mixed.permute(0, 2, 1, 3).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """Characters to scores `[batch, class, position]`."""

    def __init__(self, layers: int, width: int, length: int) -> None:
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(np.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x))).permute(0, 2, 1)


@dataclass(frozen=True)
class Run:
    """What a design did: losses, seconds of each step (the first with all that it costs), bytes."""

    losses: list[float]
    seconds: list[float]
    bytes: int

    @property
    def step(self) -> float:
        """Seconds of a step once everything is warm."""
        return statistics.median(self.seconds[len(self.seconds) // 2 :])

    @property
    def start(self) -> float:
        """Seconds that the first steps take above that."""
        return sum(self.seconds[:3]) - 3 * self.step


def build(layers: int, width: int, length: int) -> Callable[..., Any]:
    """The step, on fresh parameters of one seed."""
    dyn.manual_seed(0)
    model = Gpt(layers, width, length)
    optimizer = dyn.optim.AdamW(model.parameters(), lr=3e-3)

    def step(ids, following):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids), following)
        loss.backward()
        optimizer.step()
        return loss

    step.model = model
    return step


def batches(count: int, size: int, length: int) -> list[tuple[Any, Any]]:
    """Sequences that count up by a step of their own: easy to learn."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        start, by = random.integers(0, VOCABULARY, (2, size, 1))
        rows = (start + by % 5 * np.arange(length + 1)) % VOCABULARY
        found.append((dyn.tensor(rows[:, :-1]), dyn.tensor(rows[:, 1:])))
    return found


def run(step: Callable[..., Any], data: Sequence[tuple[Any, Any]], memory: int) -> Run:
    """Train over the batches."""
    losses, seconds = [], []
    for pair in data:
        start = perf_counter()
        losses.append(step(*pair).item())
        seconds.append(perf_counter() - start)
    return Run(losses, seconds, memory)


def recorded_bytes(step: Any, pair: tuple[Any, Any]) -> int:
    """Bytes of all arrays when the forward pass has been recorded: what waits for `backward`."""
    loss = F.cross_entropy(step.model(pair[0]), pair[1])
    held = sum(x.nbytes for x in jax.live_arrays())
    del loss
    return held


def peak_bytes(compiled: Any) -> int:
    """What XLA reports for a program: arguments, outputs and temporaries, less what is donated."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return int(total - m.alias_size_in_bytes)


def within(budget: int, step: Callable[..., Any], data: Sequence[tuple[Any, Any]]) -> Run:
    """The step compiled within a memory budget in bytes, over half of the batches."""
    small = bp.compile(step, memory_budget=budget)
    found = run(small, data[: len(data) // 2], 0)
    return Run(found.losses, found.seconds, peak_bytes(small.lower(*data[0]).compile()))


def overhead() -> float:
    """Seconds of Python and dispatch for one recorded operation on one number."""
    x = dyn.tensor(1.0, requires_grad=True)

    def chain() -> float:
        start, y = perf_counter(), x
        for _ in range(500):
            y = y * x
        return (perf_counter() - start) / 500

    return min(chain() for _ in range(5))


def can_loop(wrap: Callable[..., Any]) -> str:
    """Try a loop whose length hangs on values."""
    w = dyn.tensor(1.5, requires_grad=True)

    def double(w):
        while w.sum() < 100:
            w = w * 2
        return w

    try:
        wrap(double)(w)
    except bp.ConcretizationError:
        return "an error at its line"
    return "runs"


def rows(dynamic: Run, static: Run, budget: Run | None) -> list[tuple[str, str, str]]:
    """The table: what, dynamic, static."""
    apart = max(abs(a - b) for a, b in zip(dynamic.losses, static.losses, strict=True))
    gained = dynamic.step - static.step
    paid = max(0.0, static.start - dynamic.start) / gained if gained > 0 else float("inf")
    return [
        (
            "loss, first and last",
            *(f"{r.losses[0]:.3f}  {r.losses[-1]:.3f}" for r in (dynamic, static)),
        ),
        ("losses apart, at most", "", f"{apart:.1e}"),
        ("a step", f"{dynamic.step * 1e3:.1f} ms", f"{static.step * 1e3:.1f} ms"),
        ("memory", f"{dynamic.bytes / 2**20:.1f} MiB", f"{static.bytes / 2**20:.1f} MiB"),
        ("Python for an operation", f"{overhead() * 1e6:.0f} us", "none"),
        ("the first calls", f"{dynamic.start:.1f} s", f"{static.start:.1f} s"),
        ("compiling has paid off", "", f"after {paid:.0f} steps"),
        ("a loop that values decide", can_loop(lambda f: f), can_loop(bp.compile)),
        ("another shape", "more programs, small ones", "another program"),
        (
            "a memory budget",
            "checkpoint by hand",
            f"{budget.bytes / 2**20:.1f} MiB at {budget.step * 1e3:.1f} ms"
            if budget
            else "not tried",
        ),
    ]


def draw(dynamic: Run, static: Run, path: Path) -> None:
    """Losses, the time that has gone by, and memory."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    left.plot(dynamic.losses, linewidth=5, alpha=0.35, label="dynamic")
    left.plot(static.losses, linewidth=1.2, color="black", label="static")
    left.set(title="Loss, step by step", xlabel="step", ylabel="nats", ylim=(0, None))
    for each, name in ((dynamic, "dynamic"), (static, "static")):
        middle.plot(list(accumulate(each.seconds)), label=name, linewidth=2)
    middle.set(title="Time gone by", xlabel="step", ylabel="seconds", ylim=(0, None))
    sizes = [each.bytes / 2**20 for each in (dynamic, static)]
    bars = right.bar(
        ["dynamic:\nheld for backward", "static:\nXLA's peak"], sizes, color=["C0", "C1"]
    )
    right.bar_label(bars, fmt="%.0f MiB")
    right.set(title="Memory", ylabel="MiB")
    for axes in (left, middle):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> list[tuple[str, str, str]]:
    """Train in both designs; print the table, draw the picture, return the table's rows."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--tiny", action="store_true", help="sizes that say nothing")
    options.add_argument("--png", type=Path, default=Path("examples/out/contrast.png"))
    args = options.parse_args(argv)
    size = (
        {"layers": 1, "width": 16, "length": 8}
        if args.tiny
        else {"layers": 4, "width": 128, "length": 64}
    )
    data = batches(4 if args.tiny else args.steps, 4 if args.tiny else 16, size["length"])

    eager = build(**size)
    dynamic = run(eager, data, recorded_bytes(build(**size), data[0]))
    static_step = bp.compile(build(**size))
    static = run(static_step, data, 0)
    whole = peak_bytes(static_step.lower(*data[0]).compile())
    static = Run(static.losses, static.seconds, whole)
    budget = None if args.tiny else within(int(0.6 * whole), build(**size), data)

    table = rows(dynamic, static, budget)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    print(f"{'':{widths[0]}}  {'dynamic':>{widths[1]}}  {'static':>{widths[2]}}")
    for what, ours, theirs in table:
        print(f"{what:{widths[0]}}  {ours:>{widths[1]}}  {theirs:>{widths[2]}}")
    draw(dynamic, static, args.png)
    print(f"\npicture  {args.png}")
    return table


if __name__ == "__main__":
    main()
