"""Pictures of plans: bytes over program order with and without a budget, and what became of values.

    python benchmarks/gallery.py --out docs/images/gallery

Everything is predicted, for a device by its name, from shapes alone: the pictures are the same on
every machine. So are the pictures of docs/gallery.md made, and its table.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import backpass as bp
from backpass.bench.models.model import Model
from backpass.bench.models.sizes import models
from backpass.ir.tables import table

NAMES = ("gpt", "gpt_scan", "unet", "lstm")
MIB = 1 << 20
COLOURS = {"save": "#1f77b4", "recompute": "#ff7f0e", "offload": "#2ca02c"}
WORDS = {"save": "saved", "recompute": "made again", "offload": "on the host"}
SHOWN = 7  # ops in the lower half of a picture


@dataclass(frozen=True)
class Pair:
    """The plan of a model's plain step, and the one under a budget; seconds of the plain step."""

    name: str
    plain: bp.MemoryPlan
    lean: bp.MemoryPlan


def pair_of(model: Model, part: float, device: str) -> Pair:
    """Plan for `part` of the way from the least peak to the plain one."""

    def step(params: Any, batch: Any) -> Any:
        loss, grads = bp.value_and_grad(model.loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

    shapes = model.shapes()
    compiled = bp.compile(step, donate_argnums=0)
    (plain,) = bp.plan(compiled, *shapes, budgets=["1TiB"], device=device)
    least = bp.plan(compiled, *shapes, budgets=[1], device=device).minimum_bytes
    budget = int(least + part * (plain.predicted_bytes - least))
    (lean,) = bp.plan(compiled, *shapes, budgets=[budget], device=device)
    return Pair(model.name, plain, lean)


def bytes_by(plan: bp.MemoryPlan) -> Counter[tuple[str, str]]:
    """Bytes by (op, action)."""
    found: Counter[tuple[str, str]] = Counter()
    for each in plan.decisions:
        found[each.value.split()[0], each.action] += each.bytes
    return found


def draw(pair: Pair, path: Path) -> None:
    """Above: live bytes over program order. Below: the ops whose results are kept or made again."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    over, under = figure.subplots(2, height_ratios=(3, 2))
    for plan, label, colour in ((pair.plain, "plain", "0.55"), (pair.lean, "planned", "#1f77b4")):
        line = plan.timeline
        place = [100 * i / (len(line) - 1) for i in range(len(line))]
        sizes = [size / MIB for size in line]
        over.fill_between(place, sizes, step="post", alpha=0.25, color=colour)
        label = f"{label}: peak {max(sizes):,.1f} MiB, {len(line):,} nodes"
        over.plot(place, sizes, drawstyle="steps-post", color=colour, label=label, lw=1.2)
    budget = (pair.lean.budget_bytes or 0) / MIB
    over.axhline(budget, ls="--", color="crimson", lw=1, label=f"budget {budget:,.1f} MiB")
    over.set(title=pair.name, xlabel="program order, %", ylabel="live bytes, MiB", xlim=(0, 100))
    over.set_ylim(bottom=0)
    figure.legend(
        *over.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="outside upper center",
    )

    found = bytes_by(pair.lean)
    sums: Counter[str] = Counter()
    for (op, _), size in found.items():
        sums[op] += size
    ops = [op for op, _ in sums.most_common(SHOWN)][::-1]
    left = [0.0] * len(ops)
    for action, colour in COLOURS.items():
        sizes = [found[op, action] / MIB for op in ops]
        if any(sizes):
            under.barh(ops, sizes, left=left, color=colour, label=WORDS[action])
            left = [a + b for a, b in zip(left, sizes, strict=True)]
    under.set(xlabel="bytes of the op's results, under the budget, MiB")
    under.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (over, under):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def row(pair: Pair) -> tuple[str, ...]:
    """Peaks in MiB, time as of the plain step's, and MiB of what is kept and made again."""
    plain, lean = pair.plain, pair.lean
    by_action: Counter[str] = Counter()
    for (_, action), size in bytes_by(lean).items():
        by_action[action] += size
    sizes = (plain.predicted_bytes, lean.budget_bytes or 0, lean.predicted_bytes)
    kept = (by_action["save"], by_action["recompute"])
    time = lean.predicted_seconds / lean.baseline_seconds
    return (
        pair.name,
        *(f"{size / MIB:,.1f}" for size in sizes),
        f"{time:.2f}",
        *(f"{size / MIB:,.1f}" for size in kept),
    )


def main(argv: Sequence[str] | None = None) -> list[Pair]:
    """Draw a picture for each model, and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--models", nargs="+", default=NAMES, metavar="NAME")
    options.add_argument("--part", type=float, default=0.3, help="of the way down to the least")
    options.add_argument("--device", default="cpu", help="a device's name: cpu, h100, ...")
    options.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    options.add_argument("--out", type=Path, default=Path("benchmarks/out/gallery"))
    args = options.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = []
    for model in models(args.models, "tiny" if args.tiny else "small"):
        pairs.append(pair_of(model, args.part, args.device))
        draw(pairs[-1], args.out / f"{model.name}.png")
        print(args.out / f"{model.name}.png", file=sys.stderr)
    head = ("model", "plain", "budget", "peak", "time", "saved", "made again")
    print(table(head, [row(pair) for pair in pairs]))
    return pairs


if __name__ == "__main__":
    main()
