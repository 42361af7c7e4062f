"""The pass: a step over a batch becomes a loop over parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from ...ir.cost import node_costs
from ...ir.errors import BatchError
from ...ir.graph import Graph, Node, Value
from ...ir.spec import dims_of
from ...ir.types import places
from ..picks import own_rows
from .divide import Division, divide
from .loop import looped
from .split import Split
from .weights import made_of, weights_of

# So much of the arithmetic that the samples ask for has to run part by part.
SHARE = 0.9
# So much of all arithmetic on real numbers has to, for a dimension to be that of the samples.
LEAST = 0.25
# So many dimensions of arguments are tried, the likely ones first.
TRIED = 256


@dataclass(frozen=True)
class Microbatch:
    """The batch in `steps` parts, one after the other; their gradients add up.

        loss, grads = f(params, x[B])  ->  scan(parts of x) { f(params, x[B / steps]) }, summed

    The dimension of the samples is found: it is one of an argument, along which everything is done
    sample by sample up to sums over all of them. What a part needs of all samples, and is cheap,
    runs ahead: how many tokens a mask leaves, say.

    Raises `BatchError` where the samples depend on each other, as in batch normalisation.
    """

    steps: int = 1

    name: ClassVar[str] = "microbatch"

    def __call__(self, graph: Graph) -> Graph:
        """Return the graph with its loop, or `graph` itself for one part."""
        if self.steps == 1:
            return graph
        graph = own_rows(graph)
        tried: list[Division] = []
        flops = {node: work.flops for node, work in node_costs(graph).items()}
        total = sum(map(flops.__getitem__, graph.nodes))
        least = LEAST * _real(graph, flops)
        weights = weights_of(graph)
        made = made_of(graph, weights)
        able = []
        for seed, split in islice(seeds(graph, self.steps, weights), TRIED):
            tried.append(divide(graph, seed, split, self.steps))
            if _is_whole(tried[-1], flops) and _is_of_samples(tried[-1], flops, least, made):
                able.append(tried[-1])
                if _inside(tried[-1], flops) >= SHARE * total:
                    break
        if not able:
            raise _refusal(self.steps, graph, tried, weights)
        return looped(max(able, key=lambda each: _inside(each, flops)))


def seeds(graph: Graph, k: int, weights: Set[Value]) -> Iterator[tuple[Value, Split]]:
    """Inputs with a dimension that k divides, those first that are likely to hold samples.

    Samples are no weights, are more often in the last argument than in the first, and along the
    first dimension.
    """
    read = {v for node in graph.nodes for v in node.inputs} | set(graph.outputs)
    read_at = {v: i for i, v in enumerate(graph.inputs) if v in read}
    found = [
        ((v in weights, dim, -place), v, Split(dim, size // (k * _over(v, dim, k))))
        for v, place in read_at.items()
        for dim, size in enumerate(v.shape)
        if size and size % k == 0
    ]
    return iter([(v, split) for _, v, split in sorted(found, key=lambda each: each[0])])


def _over(value: Value, dim: int, k: int) -> int:
    """On how many devices a dimension lies, if each of them can take its share of every part."""
    over = places(dims_of(value.type)[dim])
    return over if value.shape[dim] % (k * over) == 0 else 1


def _inside(found: Division, flops: Mapping[Node, int]) -> int:
    """FLOPs of the loop."""
    return sum(map(flops.__getitem__, found.inside))


def _is_whole(found: Division, flops: Mapping[Node, int]) -> bool:
    """True where nearly all arithmetic on samples runs in the loop."""
    inside = _inside(found, flops)
    tied = {v for met in found.coupled for v in met.node.outputs}
    outside = sum(flops[met.node] for met in found.coupled)
    for node in found.late if found.coupled else ():
        if not tied.isdisjoint(node.inputs):
            tied.update(node.outputs)
            outside += flops[node]
    return inside > 0 and inside >= SHARE * (inside + outside)


def _real(graph: Graph, flops: Mapping[Node, int]) -> int:
    """FLOPs on real numbers, but those of updates."""
    nodes = (n for n in graph.nodes if n.phase != "update" and n.outputs)
    return sum(flops[node] for node in nodes if node.outputs[0].type.is_inexact)


def _is_of_samples(
    found: Division, flops: Mapping[Node, int], least: float, made: Set[Value]
) -> bool:
    """True where weights are whole in each part, and their gradients sums over the parts.

    Else it is features that are divided: batch normalisation does the same to each of them, and
    weights are divided with them. Where weights are sliced and others are there as a whole, it is
    the gradient by samples that is asked for. Samples have at least `least` FLOPs in the loop.
    """
    if _inside(found, flops) < least:
        return False
    sliced = any(value in made for value, _ in found.around.xs)
    shared = any(value in made and len(value.shape) > 1 for value in found.around.consts)
    return not sliced or shared or all(split.dim == 0 for _, split in found.around.xs)


def _refusal(k: int, graph: Graph, tried: Sequence[Division], weights: Set[Value]) -> BatchError:
    """Tell what couples the samples, taking the largest array that holds no weights for them."""
    samples = [each for each in tried if each.seed not in weights]
    if not samples:
        sizes = sorted({size for v in graph.inputs for size in v.shape[:1]})
        return BatchError(
            f"accumulate_steps={k} wants an array argument with a dimension of samples that {k} "
            f"divides; first dimensions of the arguments are {sizes}"
        )
    found = max(samples, key=lambda each: each.seed.type.nbytes)
    met = found.coupled[0] if found.coupled else None
    where = f"\n  at {met.node.place}: {met.node.op.name}: {met}" if met else ""
    return BatchError(
        f"accumulate_steps={k} can't run {found.seed.name or 'an argument'} {found.seed.type} in "
        f"parts of its dimension {found.split.dim}: its samples depend on each other{where}; batch "
        "normalisation and losses over pairs of samples need the whole batch at once"
    )
