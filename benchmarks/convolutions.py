"""Convolutions of one layer by XLA:CPU's two libraries, and gradients of filters as products.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --images 1 4 32 --sides 16 --channels 64

A 3x3 layer at stride 1, forward, and its gradients by the images and by the filters. `ynn` is the
time as XLA has it by itself, where YNNPACK computes what it can, over that by Eigen, which
`bp.compile` asks for (`runtime/xla.py`); `cores` are those that each keeps busy, CPU seconds by
seconds. `product` is the form of `passes/convolutions` for the gradient by the filters, over the
convolution, both by Eigen: the pass takes it where there are few images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import mean, median
from typing import Any

from script import finish_rows, parser

from backpass.bench.measure import calls_for, environment, fix_allocator, interleave, note

PARTS = ("forward", "images", "filters")
# What XLA gives to YNNPACK by itself.
STOCK = ",".join(
    f"LIBRARY_FUSION_TYPE_{each}" for each in ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION", "REDUCE")
)
COLUMNS = ("images", "side", "channels", "ms", *PARTS, "cores", "by Eigen", "product")


@dataclass(frozen=True)
class Row:
    """A layer: `ms` by Eigen of all parts; ratios of times and busy cores, by part."""

    images: int
    side: int
    channels: int
    ms: float
    ynn: dict[str, float]
    cores: tuple[float, ...]
    product: float

    def cells(self) -> list[str]:
        """Return the row as text."""
        sizes = [str(self.images), str(self.side), str(self.channels), f"{self.ms:.1f}"]
        cores = [f"{each:.1f}" for each in self.cores]
        return [*sizes, *(f"{self.ynn[part]:.2f}" for part in PARTS), *cores, f"{self.product:.2f}"]


def layer(part: str) -> Callable[[Any, Any, Any], Any]:
    """A function of images, filters and the result's cotangent."""
    from jax import lax

    import backpass as bp

    def forward(x: Any, w: Any, ct: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    def loss(x: Any, w: Any, ct: Any) -> Any:
        return (forward(x, w, ct) * ct).sum()

    return forward if part == "forward" else bp.grad(loss, argnums=PARTS.index(part) - 1)


def measure(images: int, side: int, channels: int, repeats: int) -> Row:
    """Time a layer's parts in turns."""
    import jax
    import numpy as np

    import backpass as bp
    from backpass.passes import DEFAULT
    from backpass.passes.convolutions import Convolutions
    from backpass.runtime.xla import LIBRARY

    random = np.random.default_rng(0)
    shapes = (images, side, side, channels), (3, 3, channels, channels)
    x, w = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    stay, turn = (
        tuple(replace(p, images=most) if isinstance(p, Convolutions) else p for p in DEFAULT)
        for most in (0, images)
    )
    wall: dict[tuple[str, str], float] = {}
    cores: dict[tuple[str, str], float] = {}
    for part in PARTS:
        made = {
            "ynn": bp.compile(layer(part), passes=stay, compiler_options={LIBRARY: STOCK}),
            "eigen": bp.compile(layer(part), passes=stay),
        }
        if part == "filters":
            made["product"] = bp.compile(layer(part), passes=turn)
        runs = {name: lambda f=f: jax.block_until_ready(f(x, w, x)) for name, f in made.items()}
        calls = {name: calls_for(run) for name, run in runs.items()}
        for name, found in interleave(runs, repeats, calls).items():
            wall[name, part] = median(found.wall)
            cores[name, part] = median(found.cpu) / wall[name, part]
    row = Row(
        images,
        side,
        channels,
        ms=1e3 * sum(wall["eigen", part] for part in PARTS),
        ynn={part: wall["ynn", part] / wall["eigen", part] for part in PARTS},
        cores=tuple(mean(cores[name, part] for part in PARTS) for name in ("ynn", "eigen")),
        product=wall["product", "filters"] / wall["eigen", "filters"],
    )
    note("  ".join(row.cells()))
    return row


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure each layer; print and return the rows."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, nargs="+", default=[1, 4, 8, 32])
    options.add_argument("--sides", type=int, nargs="+", default=[16, 32])
    options.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128])
    options.add_argument("--repeats", type=int, default=7)
    args = options.parse_args(argv)
    sizes = [(2, 4, 16)] if args.tiny else product(args.images, args.sides, args.channels)
    rows = [measure(*each, args.repeats) for each in sizes]
    finish_rows(environment(), COLUMNS, rows, args.json)
    return rows


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
