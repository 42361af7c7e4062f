"""Loops and branches for a part of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...ir.graph import Graph, Node, Value
from ..scan import Scan
from .custom import custom_jvp, custom_vjp
from .split import SUM, Coupled, Kind, Part, Region, Split, Step


def _scan(part: Part, node: Node, kinds: Sequence[Kind]) -> Step:
    """Run the body on a part's slices; the carry is what the body makes of it in the end."""
    scan = Scan(node)
    consts, carry, xs = scan.parts
    if any(isinstance(kind, Split) and kind.dim == 0 for kind in kinds[xs]):
        return _over_samples(part, scan, kinds)
    inner = [*kinds[: xs.start], *map(_inner, kinds[xs])]
    body = _settled(part, node, scan.body, inner, carry)
    outer = map(_outer, body.outputs[scan.carried :])
    wanted = [*body.inputs[: xs.start], *map(_outer, body.inputs[xs])]
    outputs = [*body.outputs[: scan.carried], *outer]
    return Step(wanted, outputs, regions=(body.graph,))


def _settled(
    part: Part, node: Node, body: Graph, kinds: Sequence[Kind], carry: slice, *, sums: bool = True
) -> Region:
    """Return the body with a carry that comes out as it goes in."""
    kinds, wanted = list(kinds), dict[int, Kind]()
    while True:
        found = part.region(body, kinds, node, wanted)
        kinds = list(found.inputs)
        changed = False
        for i, (into, out) in enumerate(zip(kinds[carry], found.outputs, strict=False)):
            if into == out:
                continue
            if into is not None and out is not None:
                raise Coupled(node, "its carry holds the samples otherwise after a step")
            if out == SUM and not sums:
                raise Coupled(node, "its carry sums over the samples")
            changed = True
            wanted[i] = kinds[carry.start + i] = out if into is None else into
        if not changed:
            return found


def _over_samples(part: Part, scan: Scan, kinds: Sequence[Kind]) -> Step:
    """A scan along the samples, which only adds up: fewer steps."""
    node, (consts, carry, xs) = scan.node, scan.parts
    if any(kinds[: xs.start]):
        raise Coupled(node, "it runs along the samples and over them")
    split = next(kind for kind in kinds[xs] if isinstance(kind, Split))
    outputs: list[Kind] = []
    for into, out in zip(scan.body.inputs[carry], scan.body.outputs, strict=False):
        if not adds(into, out, scan.body):
            raise Coupled(node, "its steps, one a sample, depend on each other")
        outputs.append(SUM if into is not out else None)
    wanted: list[Kind] = [*kinds[consts], *outputs, *[split] * len(kinds[xs])]
    outputs += [split] * (len(node.outputs) - len(outputs))
    return Step(wanted, outputs, {"length": scan.length // part.k})


def adds(into: Value, out: Value, body: Graph) -> bool:
    """True where a carry is handed on, or something is added to it that does not know it."""
    if into is out:
        return True
    maker, users = body.producer.get(out), body.users.get(into, ())
    if len(users) == 1 and users[0].op.name == "convert_element_type":  # a weak type made strong
        same = users[0].output.dtype == into.dtype and into not in body.outputs
        return same and adds(users[0].output, out, body)
    if maker is None or maker.op.name not in ("add", "add_any"):
        return False
    once = maker.inputs.count(into) == 1 and into not in body.outputs
    return once and users == (maker,)


def _inner(kind: Kind) -> Kind:
    return Split(kind.dim - 1, kind.stride) if isinstance(kind, Split) else kind


def _outer(kind: Kind) -> Kind:
    return Split(kind.dim + 1, kind.stride) if isinstance(kind, Split) else kind


def _while(part: Part, node: Node, kinds: Sequence[Kind]) -> Step:
    """Every part runs as many steps as the batch: how many must not depend on a sample."""
    n, m = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
    cond, body = node.regions
    inner = _settled(part, node, body, kinds[n:], slice(m, len(kinds) - n), sums=False)
    carried = list(inner.inputs[m:])
    test = part.region(cond, [*kinds[:n], *carried], node, {})
    if test.outputs[0] is not None or list(test.inputs[n:]) != carried:
        raise Coupled(node, "how often it runs depends on the samples")
    wanted = [*test.inputs[:n], *inner.inputs]
    return Step(wanted, carried, regions=(test.graph, inner.graph))


def _cond(part: Part, node: Node, kinds: Sequence[Kind]) -> Step:
    """All branches take the same and give the same."""
    if kinds[0] is not None:
        raise Coupled(node, "which branch is taken depends on the samples")
    inner, wanted = list(kinds[1:]), dict[int, Kind]()
    while True:
        found = [part.region(region, inner, node, wanted) for region in node.regions]
        ins = [_joined(node, all) for all in zip(*(each.inputs for each in found), strict=True)]
        outs = [_joined(node, all) for all in zip(*(each.outputs for each in found), strict=True)]
        same = all(list(each.outputs) == outs for each in found)
        if same and ins == inner:
            return Step([None, *ins], outs, regions=tuple(each.graph for each in found))
        inner, wanted = ins, dict(enumerate(outs))


def _joined(node: Node, kinds: Sequence[Kind]) -> Kind:
    found = {kind for kind in kinds if kind is not None}
    if len(found) > 1:
        raise Coupled(node, "its branches hold the samples in different places")
    return found.pop() if found else None


def _call(part: Part, node: Node, kinds: Sequence[Kind]) -> Step:
    """What runs its one region, once."""
    found = part.region(node.regions[0], kinds, node, {})
    return Step(found.inputs, found.outputs, regions=(found.graph,))


REGIONS: Mapping[str, Callable[[Part, Node, Sequence[Kind]], Step]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "remat2": _call,
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
}
