"""A convolution as a sum over the taps of its kernel, each of which reads a shifted slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ...ir.builder import Builder
from ...ir.graph import Node, Value
from ...ir.ops.chunked import emit_parts, evenly

Dims = tuple[int, ...]
# Dimensions of an input.
BATCH, FEATURES = 0, 1


@dataclass(frozen=True)
class Window:
    """out[n, o, f] = sum over t, c of x[n, o * stride + t * dilation, c] k[t, c, f].

    x with its padding and its zeros in between; sizes are those of the spatial dimensions: `taps`
    the kernel's, `places` the output's. `features` counts c of one group, `batch` n, `filters` f.
    """

    node: Node

    @property
    def taps(self) -> Dims:
        """The kernel's spatial sizes."""
        k = self.node.inputs[1]
        return tuple(k.shape[i] for i in self.node.attrs["dimension_numbers"].rhs_spec[2:])

    @property
    def places(self) -> Dims:
        """The output's spatial sizes."""
        out = self.node.output
        return tuple(out.shape[i] for i in self.node.attrs["dimension_numbers"].out_spec[2:])

    @property
    def batch(self) -> int:
        """The input's batch."""
        return int(self.node.inputs[0].shape[self.node.attrs["dimension_numbers"].lhs_spec[0]])

    @property
    def channels(self) -> int:
        """The input's features, of all groups."""
        return int(self.node.inputs[0].shape[self.node.attrs["dimension_numbers"].lhs_spec[1]])

    @property
    def features(self) -> int:
        """The kernel's input features, those of one group."""
        return int(self.node.inputs[1].shape[self.node.attrs["dimension_numbers"].rhs_spec[1]])

    @property
    def filters(self) -> int:
        """The kernel's output features, of all groups."""
        return int(self.node.inputs[1].shape[self.node.attrs["dimension_numbers"].rhs_spec[0]])

    @property
    def groups(self) -> tuple[int, int]:
        """The groups of features, and those of the batch."""
        attrs = self.node.attrs
        return attrs["feature_group_count"], attrs["batch_group_count"]

    @property
    def correlates(self) -> bool:
        """True for a kernel with more taps than there are places, as a gradient of filters has."""
        return prod(self.taps) > prod(self.places)

    def images(self, b: Builder, first: int, last: int) -> Value:
        """Return the input: dimension `first` of (batch, features), the spatial ones, `last`."""
        spec = self.node.attrs["dimension_numbers"].lhs_spec
        return b.transpose(self.node.inputs[0], (spec[first], *spec[2:], spec[last]))

    def padded(self, b: Builder, images: Value) -> Value:
        """`images` with the padding around them and the zeros in between."""
        attrs = self.node.attrs
        gaps = [d - 1 for d in attrs["lhs_dilation"]]
        around = [(*p, gap) for p, gap in zip(attrs["padding"], gaps, strict=True)]
        return b.pad(images, 0, [(0, 0, 0), *around, (0, 0, 0)])

    def input(self, b: Builder, first: int, last: int) -> Value:
        """`images`, padded."""
        return self.padded(b, self.images(b, first, last))

    def kernel(self, b: Builder, *order: int) -> Value:
        """Return the kernel: (filters, features, spatial dimensions) in `order`."""
        spec = self.node.attrs["dimension_numbers"].rhs_spec
        return b.transpose(self.node.inputs[1], [spec[i] for i in order])

    def product(self, b: Builder, x: Value, y: Value, axis: int) -> Value:
        """`y` times a matrix: dimension `axis` of `x` and the first of `y` are contracted."""
        precision, dtype = self.node.attrs["precision"], self.node.attrs["preferred_element_type"]
        return b.dot_general(x, y, ((axis,), (0,)), precision=precision, dtype=dtype)

    def output(self, b: Builder, value: Value, batch: int, filters: int) -> Value:
        """`value` in the output's own order; its other dimensions are the spatial ones."""
        spec = self.node.attrs["dimension_numbers"].out_spec
        spatial = [i for i in range(value.ndim) if i not in (batch, filters)]
        place = dict(zip(spec, (batch, filters, *spatial), strict=True))
        return b.transpose(value, [place[i] for i in range(value.ndim)])


def positions(sizes: Sequence[int]) -> Iterator[Dims]:
    """All index tuples of an array of these sizes."""
    return product(*map(range, sizes))


def shifted(
    b: Builder, x: Value, starts: Sequence[int], counts: Sequence[int], strides: Sequence[int]
) -> Value:
    """`counts` elements from `starts` on, `strides` apart, of the dimensions from 1 on."""
    rest = x.ndim - 1 - len(starts)
    ends = [lo + (n - 1) * s + 1 for lo, n, s in zip(starts, counts, strides, strict=True)]
    low = (0, *starts, *[0] * rest)
    high = (x.shape[0], *ends, *x.shape[x.ndim - rest :])
    steps = (1, *strides, *[1] * rest)
    return b.slice(x, low, high, None if set(steps) == {1} else steps)


def in_parts(
    b: Builder, function: Callable[[Builder, Value, Value], Value], x: Value, g: Value, parts: float
) -> Value:
    """`function(b, x, g)` summed over about so many parts of the first dimension, by a scan."""
    count = x.shape[0]
    chunk = max(1, int(count / parts))
    if chunk >= count:
        return function(b, x, g)
    chunk = evenly(count, chunk)

    def part(b: Builder, values: Sequence[Value]) -> list[Value]:
        return [function(b, *values)]

    return emit_parts(b, [part, part], (), (x, g), chunk, 1)[0]
