"""What is told of the first bad value: where it was made, of what, and what is to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ..ir.errors import NonFiniteError
from ..ir.graph import Graph, Literal, Node, Value
from ..ir.tables import count_text, table
from ..passes.probe import Birth, factors_of, hint_of
from .program import Program
from .repro import elementwise, wide, write_repro

_PHASES = {"forward": "forward pass", "backward": "backward pass", "update": "update"}


@dataclass(frozen=True)
class Found:
    """The first bad value of a program: operands and results of the node, as far as fetched.

    `mask` is the `select_n` that the node's results come to in the forward pass, where one is.
    """

    birth: Birth
    graph: Graph
    arrays: Mapping[Value, np.ndarray]
    mask: Node | None = None


def described(found: Found, program: Program, bad: Sequence[int]) -> NonFiniteError:
    """The error for what was found; `bad` are the positions of the results that it spoils."""
    node, leaves = found.birth.node, _paths(program, bad)
    if node is None:
        path = program.signature.paths[found.birth.argument or 0]
        return NonFiniteError(
            f"{program.name} was given NaN at {path}, which reaches {_some(leaves)}\n  look at "
            "what made this argument; an earlier step without debug='nan' may have",
            leaves=leaves,
        )
    phase, source = found.birth.phase, found.birth.source
    steps = tuple(step for _, _, step in found.birth.path if step is not None)
    results = [v for v in node.outputs if v in found.arrays and not _finite(found.arrays[v])]
    repro = write_repro(node, found.arrays, program.name, phase, source)
    lines = [
        f"{node.op.name} gave {_counted(found, results)} in the {_PHASES[phase]}",
        f"  at {_place(found)}",
        _indented(_statistics(node, found.arrays)),
        *_example(node, found.arrays, results),
        f"  it reaches {_some(leaves)}",
    ]
    hint = hint_of(found.birth, found.graph, found.mask if _hidden(found, results) else None)
    if hint:
        lines.append(f"  {hint}")
    if repro is not None:
        lines.append(f"  to compute it alone: python {repro}")
    return NonFiniteError(
        "\n".join(lines),
        op=node.op.name,
        phase=phase,
        source=source,
        scope=node.scope,
        steps=steps,
        leaves=leaves,
        repro=repro,
    )


def unexplained(program: Program, bad: Sequence[int]) -> NonFiniteError:
    """The error where the result is not finite, but is once every value is looked at."""
    leaves = _paths(program, bad)
    return NonFiniteError(
        f"{program.name} gave NaN or infinity at {_some(leaves)}, but not when it ran again with "
        "a record of every value, where XLA fuses less\n  sums beyond the dtype's range are the "
        "usual reason, as their order differs; `debug='verify-fusions'` looks at our own rewrites",
        leaves=leaves,
    )


def unlocated(program: Program, bad: Sequence[int]) -> NonFiniteError:
    """The error where the search for what is bad first failed."""
    leaves = _paths(program, bad)
    return NonFiniteError(
        f"{program.name} gave NaN or infinity at {_some(leaves)}\n  where it began could not be "
        "found; a smaller batch may need less memory for the search",
        leaves=leaves,
    )


def _paths(program: Program, bad: Sequence[int]) -> tuple[str, ...]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(program.out_shapes)]
    return tuple(f"result{jax.tree_util.keystr(paths[i])}" for i in bad)


def _some(leaves: Sequence[str]) -> str:
    more = f" and {len(leaves) - 1} more leaves" if len(leaves) > 1 else ""
    return f"{leaves[0]}{more}"


def _place(found: Found) -> str:
    node = found.birth.node
    assert node is not None
    place = found.birth.source or "an unknown line"
    place += f", in {node.scope}" if node.scope else ""
    for outer, _, step in reversed(found.birth.path):
        line = f" at {outer.source}" if outer.source else ""
        place += (
            f", in the {outer.op.name}{line}"
            if step is None
            else (f", in step {step} of the {outer.op.name}{line}")
        )
    return place


def _finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(wide(x)).all())


def _counted(found: Found, results: Sequence[Value]) -> str:
    """How many NaNs and infinities the node's first bad result holds."""
    if not results:
        return "NaN" if found.birth.nan else "infinity"
    x = wide(found.arrays[results[0]])
    nans, infinities = int(np.isnan(x).sum()), int(np.isinf(x).sum())
    parts = [
        f"{count_text(n)} {what}" for n, what in ((nans, "NaN"), (infinities, "infinite")) if n
    ]
    return f"{' and '.join(parts)} of {count_text(x.size)} numbers"


def _statistics(node: Node, arrays: Mapping[Value, np.ndarray]) -> str:
    """A row for each operand and result: its finite numbers' range, and how many are none."""
    head = ("", "type", "least", "mean", "greatest", "zeros", "infinite", "NaN")
    operands = [(f"operand {i}", v) for i, v in enumerate(node.inputs)]
    results = [("result", v) for v in node.outputs]
    return table(head, *([_row(n, v, arrays) for n, v in rows] for rows in (operands, results)))


def _row(name: str, value: Value, arrays: Mapping[Value, np.ndarray]) -> tuple[str, ...]:
    array = np.asarray(value.data) if isinstance(value, Literal) else arrays.get(value)
    if array is None or not array.size:
        return name, str(value.type), *[""] * 6
    x = wide(array) if array.dtype != bool else array.astype(np.float64)
    whole = np.abs(x) if np.iscomplexobj(x) else x
    fine = whole[np.isfinite(whole)]
    parts = (fine.min(), fine.mean(), fine.max()) if fine.size else ()
    figures = [f"{part:.4g}" for part in parts] or [""] * 3
    counts = [(x == 0).sum(), np.isinf(x).sum(), np.isnan(x).sum()]
    return name, str(value.type), *figures, *(count_text(int(n)) for n in counts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _example(node: Node, arrays: Mapping[Value, np.ndarray], results: Sequence[Value]) -> list[str]:
    """The first bad element, and what an element-wise op made it of."""
    if not results:
        return []
    out = arrays[results[0]]
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(wide(out)))[0])
    at = f"[{', '.join(map(str, place))}]" if place else "a scalar"
    if not elementwise(node):
        return [f"    the first is at {at}"]
    numbers = [_number(v, arrays, place) for v in node.inputs]
    return [f"    the first is {node.op.name}({', '.join(numbers)}) = {out[place]} at {at}"]


def _number(value: Value, arrays: Mapping[Value, np.ndarray], place: tuple[int, ...]) -> str:
    array = np.asarray(value.data) if isinstance(value, Literal) else arrays[value]
    return str(array[place] if array.ndim else array)


def _hidden(found: Found, results: Sequence[Value]) -> bool:
    """Whether the `where` keeps the bad value out of the pass forward, or its cotangent is 0.

    What the `where` gives is not there when nobody reads it, as in a step of gradients alone.
    """
    node = found.birth.node
    if found.mask is None or node is None or not results:
        return False
    if found.birth.phase == "forward":
        shown = found.arrays.get(found.mask.output)
        return shown is None or _finite(shown)
    bad = ~np.isfinite(wide(found.arrays[results[0]]))
    near = (*node.inputs, *factors_of(node, found.birth.graph))
    alike = [found.arrays[v] for v in near if v in found.arrays and v.shape == bad.shape]
    return any((x[bad] == 0).any() for x in alike)
