"""`chunked(shared, rows) {num_shared, num_sums, chunk} body, rest`: a function of rows, in parts.

    body: shared ++ `chunk` rows of each array   ->  sums ++ rows
    rest: the same for what is left over where `chunk` does not divide the rows

Sums are added up over the parts, rows stand one behind the other. All arrays of rows have them in
front. What the body makes exists for one part at a time: the logits of a large vocabulary, say.

Reverse mode: where one number is differentiated, a sum, its gradient is taken part by part in the
same pass, and multiplied by the number's cotangent later. Otherwise the body runs once more, part
by part, when the cotangents are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jax import lax

from ..op import Attrs, Cts, Differentiator, ForwardDifferentiator, Op, Pullback
from ..types import ArrayType
from .tangents import Result

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Values = Sequence["Value"]
Part = Callable[["Builder", Values], Values]


def _types(inputs: Values, attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType, ...]:
    k, count = attrs["num_sums"], inputs[-1].shape[0]
    outs = [value.type.strong() for value in regions[0].outputs]
    return (*outs[:k], *(t.with_shape((count, *t.shape[1:])) for t in outs[k:]))


def _lower(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    n, k, chunk = attrs["num_shared"], attrs["num_sums"], attrs["chunk"]
    shared, rows = args[:n], args[n:]
    parts = rows[0].shape[0] // chunk

    def body(totals: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = run(regions[0], *shared, *xs)
        return [a + b for a, b in zip(totals, outs, strict=False)], outs[k:]

    zeros = [lax.full(v.shape, 0, v.dtype) for v in regions[0].outputs[:k]]
    stacked = [x[: parts * chunk].reshape(parts, chunk, *x.shape[1:]) for x in rows]
    totals, ys = lax.scan(body, zeros, stacked)
    ys = [y.reshape(parts * chunk, *y.shape[2:]) for y in ys]
    if len(regions) == 1:
        return [*totals, *ys]
    outs = run(regions[1], *shared, *(x[parts * chunk :] for x in rows))
    totals = [a + b for a, b in zip(totals, outs, strict=False)]
    return [*totals, *(lax.concatenate(both, 0) for both in zip(ys, outs[k:], strict=True))]


def evenly(count: int, chunk: int) -> int:
    """Return the size next to `chunk` that divides `count` rows, or `chunk` if none is near."""
    near = [n for n in range(chunk * 3 // 4, chunk * 5 // 4 + 1) if n and count % n == 0]
    return min(near, key=lambda n: abs(n - chunk), default=chunk)


def emit_parts(
    b: Builder,
    parts: Sequence[Part],
    shared: Values,
    rows: Values,
    chunk: int,
    num_sums: int,
) -> list[Value]:
    """Emit `part(b, shared ++ rows)` for each chunk by a scan, and for the rest if there is one.

    `parts` are the function for whole chunks and the one for the rest; each gives sums first.
    """
    count = rows[0].shape[0]
    whole = count // chunk
    sub = b.nested()
    inner_shared = b.fresh(shared)
    slices = [sub.value(x.type.with_shape((chunk, *x.shape[1:])).strong()) for x in rows]
    found = parts[0](sub, [*inner_shared, *slices])
    carry = b.fresh(found[:num_sums])
    sums = [sub.add_any(total, x) for total, x in zip(carry, found, strict=False)]
    inputs = [*inner_shared, *carry, *slices]
    graph = sub.graph("chunk", inputs, [*sums, *found[num_sums:]])
    zeros = [b.zeros(x) for x in carry]
    stacked = [
        b.reshape(b.slice_in_dim(x, 0, whole * chunk, 0), (whole, chunk, *x.shape[1:]))
        for x in rows
    ]
    outs = b.scan(shared, zeros, stacked, graph, whole)
    totals = list(outs[:num_sums])
    ys = [b.reshape(y, (whole * chunk, *y.shape[2:])) for y in outs[num_sums:]]
    if whole * chunk < count:
        left = [b.slice_in_dim(x, whole * chunk, count, 0) for x in rows]
        more = parts[1](b, [*shared, *left])
        totals = [b.add_any(x, y) for x, y in zip(totals, more, strict=False)]
        ys = [b.concatenate(both, 0) for both in zip(ys, more[num_sums:], strict=True)]
    return [*totals, *ys]


def _linearise(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Values, Pullback]:
    seeded = [i for i, on in enumerate(ad.activity(node.regions[0], needs)) if on]
    if len(seeded) == 1 and seeded[0] < node.attrs["num_sums"] and not node.outputs[seeded[0]].ndim:
        return _at_once(b, node, needs, ad, seeded[0])
    return _twice(b, node, needs, ad, seeded)


def _divided(node: Node) -> tuple[Values, Values]:
    n = node.attrs["num_shared"]
    return node.inputs[:n], node.inputs[n:]


def _wanted(node: Node, needs: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Places of the shared inputs and of the rows that have cotangents."""
    n = node.attrs["num_shared"]
    active = [i for i, need in enumerate(needs) if need]
    return [i for i in active if i < n], [i for i in active if i >= n]


def _gradients(b: Builder, cts: Cts, wanted: Sequence[int], inputs: Values) -> list[Value]:
    return [b.zeros(inputs[i]) if (ct := cts[i]) is None else ct for i in wanted]


def _at_once(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator, seeded: int
) -> tuple[Values, Pullback]:
    """Outputs and gradients in one pass; the cotangent, one number, is multiplied in later."""
    k = node.attrs["num_sums"]
    on_shared, on_rows = _wanted(node, needs)

    def part(region: Graph) -> Part:
        def emit(b: Builder, inputs: Values) -> Values:
            outputs, pull = ad.inline(b, region, inputs, needs)
            phase, b.phase = b.phase, "backward"
            seed = [b.ones(v) if i == seeded else None for i, v in enumerate(outputs)]
            cts = pull(b, seed)
            found = _gradients(b, cts, [*on_shared, *on_rows], inputs)
            b.phase = phase
            n = len(on_shared)
            return [*outputs[:k], *found[:n], *outputs[k:], *found[n:]]

        return emit

    shared, rows = _divided(node)
    parts = list(map(part, node.regions))
    found = emit_parts(b, parts, shared, rows, node.attrs["chunk"], k + len(on_shared))
    middle = k + len(on_shared)
    count = len(node.outputs) - k
    outputs = [*found[:k], *found[middle : middle + count]]
    gradients = [*found[k:middle], *found[middle + count :]]

    def pullback(b: Builder, cts: Cts) -> Cts:
        result: list[Value | None] = [None] * len(node.inputs)
        ct = cts[seeded]
        if ct is not None:
            for i, gradient in zip([*on_shared, *on_rows], gradients, strict=True):
                result[i] = b.mul(
                    gradient, b.broadcast(b.convert(ct, gradient.dtype), gradient.shape)
                )
        return result

    return outputs, pullback


def _twice(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator, seeded: Sequence[int]
) -> tuple[Values, Pullback]:
    """The body runs again when the cotangents are known: nothing of it is kept."""
    k = node.attrs["num_sums"]
    on_shared, on_rows = _wanted(node, needs)
    shared, rows = _divided(node)
    outputs = b.emit(node.op, node.inputs, node.attrs, node.regions)

    def pullback(b: Builder, cts: Cts) -> Cts:
        given = [i for i in seeded if cts[i] is not None]
        to_sums = [ct for i in given if i < k and (ct := cts[i]) is not None]
        to_rows = [ct for i in given if i >= k and (ct := cts[i]) is not None]

        def part(region: Graph) -> Part:
            def emit(b: Builder, inputs: Values) -> Values:
                n, m = len(shared), len(to_sums)
                own = [*inputs[:n], *inputs[n + m : n + m + len(rows)]]
                seeds = [*inputs[n : n + m], *inputs[n + m + len(rows) :]]
                outer, b.phase = b.phase, "forward"
                outs, pull = ad.inline(b, region, own, needs)
                b.phase = outer
                by_place = dict(zip(given, seeds, strict=True))
                found = pull(b, [by_place.get(i) for i in range(len(outs))])
                return _gradients(b, found, [*on_shared, *on_rows], own)

            return emit

        parts = list(map(part, node.regions))
        found = emit_parts(
            b,
            parts,
            [*shared, *to_sums],
            [*rows, *to_rows],
            node.attrs["chunk"],
            len(on_shared),
        )
        result: list[Value | None] = [None] * len(node.inputs)
        for i, ct in zip([*on_shared, *on_rows], found, strict=True):
            result[i] = ct
        return result

    return outputs, pullback


def _tangents(b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator) -> Result:
    """Each part carries its tangents, as any region does."""
    n, k = node.attrs["num_shared"], node.attrs["num_sums"]
    active = [t is not None for t in tangents]
    wanted = list(ad.activity(node.regions[0], active))
    count = len(node.outputs)
    more = sum(wanted[:k])

    def joint(region: Graph) -> Graph:
        both = ad.region(region, active, wanted)
        ins, outs = both.inputs, both.outputs
        m = n + sum(active[:n])
        mine, theirs = ins[: len(active)], ins[len(active) :]
        inputs = (*mine[:n], *theirs[: m - n], *mine[n:], *theirs[m - n :])
        outputs = (*outs[:k], *outs[count : count + more], *outs[k:count], *outs[count + more :])
        return type(both)(both.name, inputs, both.nodes, outputs)

    given = [t for t in tangents[:n] if t is not None]
    inputs = [*node.inputs[:n], *given, *node.inputs[n:]]
    inputs += [t for t in tangents[n:] if t is not None]
    attrs = {**node.attrs, "num_shared": n + len(given), "num_sums": k + more}
    found = b.emit(node.op, inputs, attrs, list(map(joint, node.regions)))
    rest = iter([*found[k : k + more], *found[count + more :]])
    outputs = [*found[:k], *found[k + more : count + more]]
    return outputs, [next(rest) if on else None for on in wanted]


def _flops(node: Node) -> int:
    """The body's for each chunk, and the rest's."""
    count, chunk = node.inputs[-1].shape[0], node.attrs["chunk"]
    each = [sum(n.op.flops(n) for n in region.nodes) for region in node.regions]
    return int(count // chunk) * each[0] + sum(each[1:])


CHUNKED = Op("chunked", _types, _lower, linearise=_linearise, jvp=_tangents, flops=_flops)
OPS: tuple[Op, ...] = (CHUNKED,)
