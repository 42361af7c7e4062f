"""What devices send each other for a node: collectives of the program, and those that XLA will add.

    psum and its like          bytes of the result, twice over the link: reduced, then gathered
    all_gather                 bytes of the whole
    reduce_scatter             bytes of the whole
    all_to_all, ppermute       bytes of the operand

Of arrays that lie on a mesh, a product or a sum over a divided dimension is a sum over devices; an
operand divided by an axis that the result has along another dimension is gathered first.
Source: Thakur, Rabenseifner and Gropp 2005, on rings of many devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .graph import Node, Value
from .ops.collectives import names_of
from .types import ArrayType, Spec

_REDUCED = frozenset("psum psum_invariant pmax pmin".split())
_GATHERED = frozenset("all_gather all_gather_invariant".split())
_MOVED = frozenset("reduce_scatter all_to_all ppermute pbroadcast".split())
_SUMS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or".split())


@dataclass(frozen=True)
class Traffic:
    """Bytes of arrays that devices reduce together, and that they hand each other."""

    reduced: int = 0
    moved: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return self.reduced + self.moved

    @property
    def on_link(self) -> int:
        """Bytes that pass the link of a device."""
        return 2 * self.reduced + self.moved


NONE = Traffic()


def traffic(node: Node) -> Traffic:
    """What the devices send each other for one node without regions."""
    name = node.op.name
    if name in _REDUCED:
        return Traffic(_bytes(node.outputs)) if names_of(node.attrs) else NONE
    if name in _GATHERED:
        return Traffic(moved=_bytes(node.outputs))
    if name in _MOVED:
        return Traffic(moved=_bytes(node.inputs))
    if not any(value.type.spec for value in node.inputs):
        return NONE
    if name == "dot_general":
        return _of_product(node)
    if name in _SUMS:
        (x, *_), out = node.inputs, node.output
        return Traffic(out.type.nbytes) if _axes(x.type.spec) - _axes(out.type.spec) else NONE
    return NONE


def _of_product(node: Node) -> Traffic:
    """A sum over the contracted dimensions' axes, and the operands that are gathered."""
    (sides, batches), out = node.attrs["dimension_numbers"], node.output.type
    kept, summed, moved = _axes(out.spec), False, 0
    free = len(batches[0])  # where the operand's free dimensions begin in the result
    for value, contracted, batch in zip(node.inputs, sides, batches, strict=True):
        rest = [i for i in range(value.ndim) if i not in (*contracted, *batch)]
        places = *range(len(batch)), *range(free, free + len(rest))
        free += len(rest)
        lost = [
            _axes(value.type.spec, [i]) - _axes(out.spec, [to])
            for i, to in zip((*batch, *rest), places, strict=True)
        ]
        inner = _axes(value.type.spec, contracted)
        summed |= bool(inner - kept)
        moved += _gathered(value.type, frozenset.union(inner & kept, *lost))
    return Traffic(out.nbytes if summed else 0, moved)


def _gathered(kind: ArrayType, names: frozenset[str]) -> int:
    """Bytes of an array that is no longer divided by some axes; none where it never was."""
    count = 1
    for axes in kind.spec:
        for name, size in axes:
            count *= size if name in names else 1
    return kind.nbytes * count if count > 1 else 0


def _axes(spec: Spec, dims: Sequence[int] | None = None) -> frozenset[str]:
    chosen = spec if dims is None else [spec[i] for i in dims] if spec else ()
    return frozenset(name for axes in chosen for name, _ in axes)


def _bytes(values: Iterable[Value]) -> int:
    return sum(value.type.nbytes for value in values)
