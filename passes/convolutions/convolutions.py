"""The pass: convolutions that XLA's CPU backend runs slowly, in forms that it runs fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import jax.numpy as jnp

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ..rewriter import Rule, rewrite
from . import depthwise, groups, products
from .window import Window


@dataclass(frozen=True)
class Convolutions:
    """Grouped convolutions and gradients of filters take other forms; CPU only.

    | convolution | form | where |
    |---|---|---|
    | depthwise | a sum of shifted inputs | up to `taps` taps |
    | its gradient of filters | a sum for each tap | up to `taps` taps |
    | grouped, or its gradient | dense ones of `channels` or more | up to `bundles` of them |
    | gradient of filters | a product | up to `images`, half as many of few channels, |
    | | | a fourth and three taps in one dimension |
    | gradient of 1x1 filters | a product | always |

    Gradients of filters are summed over parts of the batch that take `cached` bytes at most. Runs
    after autodiff, on forward and backward convolutions alike; docs/graph-forms.md has what was
    measured. Zeros of a block's other groups and of padding are multiplied too, so that an infinity
    may reach its neighbours as a NaN.
    """

    taps: int = 64
    images: int = 4
    channels: int = 32
    bundles: int = 32
    cached: int = 1 << 22

    name: ClassVar[str] = "convolutions"

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself when nothing changes."""
        if not any(node.op.name == "conv_general_dilated" for node in graph.walk()):
            return graph
        return rewrite(rewrite(graph, _for(self._ungrouped)), _for(self._product))

    def _ungrouped(self, b: Builder, w: Window) -> Value | None:
        features, batches = w.groups
        if features > 1:
            if w.features == 1 and prod(w.taps) <= self.taps:
                return depthwise.taps(b, w)
            size = self._bundle(features, w.features)
            return groups.bundled(b, w, size) if size else None
        if batches > 1:
            if w.batch == batches and prod(w.places) <= self.taps:
                return depthwise.filter_sums(b, w, self.cached)
            size = self._bundle(batches, w.batch // batches)
            return groups.bundled_filters(b, w, size) if size else None
        return None

    def _bundle(self, count: int, channels: int) -> int:
        """How many of `count` groups come together; 0 where they would make too many bundles."""
        sizes = (n for n in range(1, count + 1) if count % n == 0)
        size = next((n for n in sizes if n * channels >= self.channels), count)
        return size if count // size <= self.bundles else 0

    def _product(self, b: Builder, w: Window) -> Value | None:
        if max(w.groups) > 1 or not w.correlates:
            return None
        if prod(w.places) > 1 and w.features > self._most_images(w):
            return None
        return products.summed(b, w, self.cached)

    def _most_images(self, w: Window) -> int:
        """Up to how many images a product is faster than a convolution: few along a line."""
        if sum(size > 1 for size in w.taps) == 1:
            return self.images // 4 if prod(w.places) <= 3 else 0
        thin = min(w.batch, w.filters) < self.channels // 2
        return self.images // (1 + thin)


def _for(form: Callable[[Builder, Window], Value | None]) -> Rule:
    """The rule that offers convolutions to `form`; empty and complex ones stay as they are."""

    def rule(b: Builder, node: Node) -> Sequence[Value] | None:
        if node.op.name != "conv_general_dilated" or not all(
            v.type.size and jnp.issubdtype(v.dtype, jnp.floating)
            for v in (*node.inputs, node.output)
        ):
            return None
        found = form(b, Window(node))
        return None if found is None else [found]

    return rule
