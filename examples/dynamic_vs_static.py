"""One training step in two designs: recorded as it runs, and compiled as one static graph.

    python examples/dynamic_vs_static.py            two minutes on two CPU cores

The step is imperative: `loss.backward()`, `optimizer.step()`. It is run as it is, and under
`bp.compile`, from the same parameters on the same batches, with a small and a large GPT: what
Python costs for each operation weighs in the one, arithmetic in the other. Told are losses, time,
memory, what the first calls cost and after how many steps that has paid off, and what each design
can't do. Times are medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
class Size:
    """Of a model and its batches."""

    layers: int
    width: int
    length: int
    batch: int
    steps: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.layers} layers of width {self.width}, {self.batch} x {self.length} tokens"


TINY = Size(layers=1, width=16, length=8, batch=4, steps=4)
SMALL = Size(layers=4, width=32, length=16, batch=4, steps=200)
LARGE = Size(layers=4, width=128, length=64, batch=16, steps=40)


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
        return max(0.0, sum(self.seconds[:3]) - 3 * self.step)


@dataclass(frozen=True)
class Pair:
    """Both designs at one size; `within` is the static one under a memory budget."""

    size: Size
    dynamic: Run
    static: Run
    within: Run | None = None

    @property
    def paid(self) -> float:
        """The number of steps after which compiling has paid off; infinite if it never does."""
        gained = self.dynamic.step - self.static.step
        lost = max(0.0, self.static.start - self.dynamic.start)
        return lost / gained if gained > 0 else float("inf")


def build(size: Size) -> Callable[..., Any]:
    """The step, on fresh parameters of one seed."""
    dyn.manual_seed(0)
    model = Gpt(size.layers, size.width, size.length)
    optimizer = dyn.optim.AdamW(model.parameters(), lr=3e-3)

    def step(ids, following):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids), following)
        loss.backward()
        optimizer.step()
        return loss

    step.model = model
    return step


def batches(size: Size) -> list[tuple[Any, Any]]:
    """Sequences that count up by a step of their own: easy to learn."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(size.steps):
        start, by = random.integers(0, VOCABULARY, (2, size.batch, 1))
        rows = (start + by % 5 * np.arange(size.length + 1)) % VOCABULARY
        found.append((dyn.tensor(rows[:, :-1]), dyn.tensor(rows[:, 1:])))
    return found


# What is measured


def race(steps: Sequence[Callable[..., Any]], data: Sequence[tuple[Any, Any]]) -> list[Run]:
    """Train each over the batches, in turns, so that what else the machine does meets all."""
    runs = [Run([], [], 0) for _ in steps]
    for pair in data:
        for step, found in zip(steps, runs, strict=True):
            start = perf_counter()
            found.losses.append(step(*pair).item())
            jax.block_until_ready([p.value for p in step.model.parameters()])
            found.seconds.append(perf_counter() - start)
    return runs


def recorded_peak(size: Size, pair: tuple[Any, Any]) -> int:
    """Most bytes of arrays alive in a recorded step, which is walked node by node.

    Looked at when the forward pass is recorded, and whenever a parameter's gradient is there.
    """
    alive: list[int] = []

    def look(_: Any) -> None:
        alive.append(sum(x.nbytes for x in jax.live_arrays()))

    look(None)
    step = build(size)
    for p in step.model.parameters():
        p.register_post_accumulate_grad_hook(look)
    step(*pair)
    return max(alive) - alive[0]


def peak_bytes(compiled: Any) -> int:
    """What XLA reports for a program: arguments, outputs and temporaries, less what is donated."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return int(total - m.alias_size_in_bytes)


def both(size: Size, budget: str | None = None) -> Pair:
    """Train in both designs; and under a memory budget, if one is given."""
    data = batches(size)
    steps = [build(size), bp.compile(build(size))]
    if budget:
        steps.append(bp.compile(build(size), memory_budget=budget))
    found = race(steps, data)
    peaks = [recorded_peak(size, data[0])]  # after the race: it warms caches
    peaks += [peak_bytes(step.lower(*data[0]).compile()) for step in steps[1:]]
    return Pair(size, *(replace(each, bytes=x) for each, x in zip(found, peaks, strict=True)))


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


def rows(small: Pair, large: Pair) -> list[tuple[str, str, str]]:
    """The table: what, dynamic, static."""
    dynamic, static, within = large.dynamic, large.static, large.within
    apart = max(
        abs(a - b)
        for pair in (small, large)
        for a, b in zip(pair.dynamic.losses, pair.static.losses, strict=True)
    )
    ends = (f"{r.losses[0]:.3f} to {r.losses[-1]:.3f}" for r in (dynamic, static))
    table = [("loss, first and last", *ends), ("losses apart, at most", "", f"{apart:.1e}")]
    for name, pair in (("small", small), ("large", large)):
        runs = pair.dynamic, pair.static
        never = "it has not" if np.isinf(pair.paid) else "at once"
        paid = f"after {np.ceil(pair.paid):.0f} steps" if 0 < pair.paid < np.inf else never
        table += [
            (f"{name}: a step", *(f"{r.step * 1e3:.1f} ms" for r in runs)),
            (f"{name}: the first calls", *(f"{r.start:.1f} s" for r in runs)),
            (f"{name}: compiling has paid off", "", paid),
        ]
    budget = f"{mib(within)}, {within.step * 1e3:.1f} ms a step" if within else "not tried"
    return [
        *table,
        ("large: memory", mib(dynamic), mib(static)),
        ("large: a memory budget", "checkpoint by hand", budget),
        ("Python for an operation", f"{overhead() * 1e6:.0f} us", "none"),
        ("a loop that values decide", can_loop(lambda f: f), can_loop(bp.compile)),
        ("another shape", "more programs, small ones", "another program"),
    ]


def mib(run: Run) -> str:
    """Its bytes in words."""
    return f"{run.bytes / 2**20:.1f} MiB"


# The picture

BLUE, ORANGE, GREEN = "#4477aa", "#ee7733", "#228833"


def draw(small: Pair, large: Pair, path: Path) -> None:
    """Losses, the time of a step, memory, and how compiling pays off."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    draw_losses(axes[0, 0], large)
    draw_steps(axes[0, 1], small, large)
    draw_memory(axes[1, 0], large)
    draw_total(axes[1, 1], small)
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, axis="y")
        each.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_losses(axes: Any, pair: Pair) -> None:
    """Step by step."""
    steps = range(1, len(pair.dynamic.losses) + 1)
    axes.plot(steps, pair.dynamic.losses, linewidth=7, alpha=0.35, color=BLUE, label="dynamic")
    axes.plot(steps, pair.static.losses, linewidth=1.5, color=ORANGE, label="static")
    axes.set(title="The same losses", xlabel="step", ylabel="nats", ylim=(0, None))
    axes.legend(frameon=False)


def draw_steps(axes: Any, small: Pair, large: Pair) -> None:
    """Time of a step, with the dynamic one's as 1."""
    places, pairs = np.arange(2), (small, large)
    for shift, name, colour in ((-0.2, "dynamic", BLUE), (0.2, "static", ORANGE)):
        times = [getattr(pair, name).step for pair in pairs]
        shares = [time / pair.dynamic.step for time, pair in zip(times, pairs, strict=True)]
        bars = axes.bar(places + shift, shares, 0.38, color=colour, label=name)
        axes.bar_label(bars, [f"{time * 1e3:.3g} ms" for time in times], padding=2)
    names = [f"{name}\n{pair.size}" for name, pair in zip(("small", "large"), pairs, strict=True)]
    axes.set_xticks(places, [name.replace(", ", "\n") for name in names])
    axes.set(title="Time of a step", ylabel="share of the dynamic one's")
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(frameon=False, loc="upper left", ncols=2)


def draw_memory(axes: Any, pair: Pair) -> None:
    """Peaks in MiB."""
    shown = [
        ("dynamic:\nlive arrays", pair.dynamic, BLUE),
        ("static:\nXLA's peak", pair.static, ORANGE),
    ]
    if pair.within:
        shown.append(("static,\nwithin a budget", pair.within, GREEN))
    names, runs, colours = zip(*shown, strict=True)
    bars = axes.bar(names, [r.bytes / 2**20 for r in runs], 0.6, color=colours)
    axes.bar_label(bars, [f"{mib(r)}\n{r.step * 1e3:.0f} ms a step" for r in runs], padding=2)
    axes.set(title="Memory of the large one", ylabel="MiB")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])


def draw_total(axes: Any, pair: Pair) -> None:
    """Seconds gone by, as measured, and as the medians say it goes on."""
    steps = len(pair.dynamic.seconds)
    crosses = 0 < pair.paid < 20 * steps
    last = max(2 * pair.paid, 1.5 * steps) if crosses else 1.5 * steps
    for name, each, colour in (("dynamic", pair.dynamic, BLUE), ("static", pair.static, ORANGE)):
        gone = np.cumsum([0.0, *each.seconds])
        axes.plot(gone, color=colour, linewidth=2.5, label=name)
        ends = [gone[-1], gone[-1] + (last - len(gone) + 1) * each.step]
        axes.plot([len(gone) - 1, last], ends, color=colour, linestyle=":", linewidth=1.5)
    if crosses:
        level = pair.dynamic.start + pair.paid * pair.dynamic.step
        axes.plot([pair.paid], [level], "o", color="black", markersize=5)
        text = f"compiling has paid off\nafter {pair.paid:.0f} steps"
        axes.annotate(
            text,
            (pair.paid, level),
            (0.45, 0.12),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "alpha": 0.4},
        )
    axes.set(title="Time gone by, the small one (dotted: as it goes on)", xlabel="step")
    axes.set(ylabel="seconds", ylim=(0, None), xlim=(0, None))
    axes.legend(frameon=False)


def main(argv: Sequence[str] | None = None) -> list[tuple[str, str, str]]:
    """Train in both designs; print the table, draw the picture, return the table's rows."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--tiny", action="store_true", help="a size that says nothing")
    options.add_argument("--png", type=Path, default=Path("examples/out/dynamic-vs-static.png"))
    args = options.parse_args(argv)
    small = both(TINY if args.tiny else SMALL)
    large = small if args.tiny else both(LARGE, budget="52MiB")

    table = rows(small, large)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    print(f"small: {small.size}; large: {large.size}")
    print(f"{'':{widths[0]}}  {'dynamic':>{widths[1]}}  {'static':>{widths[2]}}")
    for what, ours, theirs in table:
        print(f"{what:{widths[0]}}  {ours:>{widths[1]}}  {theirs:>{widths[2]}}")
    draw(small, large, args.png)
    print(f"\npicture  {args.png}")
    return table


if __name__ == "__main__":
    main()
