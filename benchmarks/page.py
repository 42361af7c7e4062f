"""How long the HTML page of a large program takes to write, to open and to use in Chromium.

    python benchmarks/page.py
    python benchmarks/page.py --sizes 10000 50000

A program is a GPT-like training step of N nodes after the last pass, in layers by scope. `open` is
from the navigation to the first frame, `unfold` from the click on a layer to the frame after it,
`frame` the median frame while everything is unfolded and scrolled from top to bottom,
`search` from a key to the frame with its matches; milliseconds, the median of some runs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from script import finish, parser

from backpass.bench.measure import environment, fix_allocator, note

sys.path.append(str(Path(__file__).parents[1] / "tests"))

RUNS = 5
SCROLL = """(async () => {
  for (const g of app.tree.pairOf.values()) {
    for (let up = g.parent; up; up = up.parent) app.open.add(up.key);
  }
  setStage(app.index);
  const box = document.getElementById("scroll");
  const frame = () => new Promise(done => requestAnimationFrame(done));
  await frame();
  const spent = [];
  let last = performance.now();
  for (let i = 0; i <= 60; i++) {
    box.scrollTop = (i / 60) * (box.scrollHeight - box.clientHeight);
    await frame();
    const now = performance.now();
    spent.push(now - last);
    last = now;
  }
  return spent.sort((a, b) => a - b)[30];
})()"""
TIMED = """(async () => {
  const start = performance.now();
  ACTION;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
})()"""
UNFOLD = "document.querySelector('#rows .row .twist').click()"
SEARCH = "search.value = 'dot_general layer7'; filter()"


@dataclass(frozen=True)
class Result:
    """Figures of one page: bytes, seconds of the CPU to write it, milliseconds in the browser."""

    nodes: int
    stages: int
    bytes: int
    write_s: float
    open_ms: float
    unfold_ms: float
    frame_ms: float
    search_ms: float


def program(size: int) -> Any:
    """Return a lowered step of `size` nodes or a few more."""
    import jax
    import jax.numpy as jnp

    import backpass as bp

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def loss(params: Any, x: Any) -> Any:
        for i, (up, down) in enumerate(params):
            with jax.named_scope(f"layer{i}"):
                with jax.named_scope("norm"):
                    h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
                with jax.named_scope("mlp"):
                    x = x + jax.nn.gelu(h @ up) @ down
        return jnp.mean(x**2)

    def step(params: Any, x: Any) -> Any:
        value, grads = bp.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    layers = [(shape(64, 256 + i), shape(256 + i, 64)) for i in range(1 + size // 54)]
    return bp.compile(step).lower(layers, shape(512, 64))


def measure(size: int) -> Result:
    """Write a page and use it."""
    from ir.chromium import browser

    lowered = program(size)
    note(f"{len(lowered.graph.nodes)} nodes lowered")
    with tempfile.TemporaryDirectory() as folder, browser() as wire:
        path = Path(folder) / "page.html"
        start = process_time()
        lowered.to_html(path)
        written = process_time() - start
        opened, unfolded, frames, searched = [], [], [], []
        for _ in range(RUNS):
            start = perf_counter()
            tab = wire.open(path.as_uri())
            tab.settle()
            opened.append(1e3 * (perf_counter() - start))
            unfolded.append(tab.run(TIMED.replace("ACTION", UNFOLD)))
            frames.append(tab.run(SCROLL))
            searched.append(tab.run(TIMED.replace("ACTION", SEARCH)))
            tab.close()
        times = [round(median(each), 1) for each in (opened, unfolded, frames, searched)]
        count, size = len(lowered.graph.nodes), path.stat().st_size
        return Result(count, len(lowered.stages), size, round(written, 2), *times)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Measure pages of the sizes asked for; one row each."""
    made = parser(__doc__)
    made.add_argument("--sizes", nargs="+", type=int, default=[1000, 10000], help="of nodes")
    args = made.parse_args(arguments)
    if arguments is None:
        fix_allocator(args.default_allocator)
    sizes = [200] if args.tiny else args.sizes
    results = [*map(measure, sizes)]
    columns = [field.name for field in fields(Result)]
    rows = [[f"{each:,}" for each in astuple(result)] for result in results]
    finish(environment(), [(columns, rows)], [*map(asdict, results)], args.json)
    return results


if __name__ == "__main__":
    main()
