"""A file that computes one node of a program alone, on the operands that it had."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..ir.builder import Builder
from ..ir.errors import BackpassError
from ..ir.graph import Graph, Literal, Node, Value
from ..ir.ops import OPS
from ..ir.ops.elementwise import OPS as ELEMENTWISE
from ..ir.ops.special import OPS as SPECIAL
from ..ir.parser import parse
from ..ir.types import ArrayType

FEW = 8  # bad elements of an element-wise op that are written out
MOST = 2**28  # bytes of operands; of larger ones no file is made
_NAMES = frozenset(op.name for op in (*ELEMENTWISE, *SPECIAL))

_FILE = '''"""{op} gave NaN or infinity in the {phase} pass of {name}.

At {source}.
"""

from pathlib import Path

import numpy as np

import backpass as bp

GRAPH = """
{graph}
"""
saved = np.load(Path(__file__).with_suffix(".npz"))
dtypes = {dtypes}
operands = [saved[f"arr_{{i}}"].view(dtype) for i, dtype in enumerate(dtypes)]
for i, x in enumerate(operands):
    print(f"operand {{i}}: {{x.dtype}}{{list(x.shape)}}", x if x.size <= {few} else "", sep="\\n")
for x in bp.ir.evaluate(bp.ir.parse(GRAPH), *operands):
    print(f"result: {{x.dtype}}{{list(x.shape)}}", x, sep="\\n")
'''


def elementwise(node: Node) -> bool:
    """True where each number of the result is made of those at the same place in the operands."""
    if node.op.name not in _NAMES or len(node.outputs) != 1:
        return False
    return all(v.shape in ((), node.output.shape) for v in node.inputs)


def wide(x: np.ndarray) -> np.ndarray:
    """As float64 or complex128, of which NumPy knows everything."""
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def write_repro(
    node: Node, arrays: Mapping[Value, np.ndarray], name: str, phase: str, source: str
) -> Path | None:
    """Write the file and its operands; returns the path, or None where that can't be done.

    Into the folder of `$BACKPASS_DUMP`, or a new one among the temporary files. Of element-wise
    ops a few bad elements alone are kept.
    """
    if any(v not in arrays for v in (*node.inputs, *node.outputs) if not isinstance(v, Literal)):
        return None
    alone, operands = _few(node, arrays) if elementwise(node) else _alone(node, arrays)
    text = str(alone)
    try:
        parse(text)
    except BackpassError:  # custom rules have no text form
        return None
    if sum(x.nbytes for x in operands) > MOST:
        return None
    text = _FILE.format(
        op=node.op.name,
        phase=phase,
        name=name,
        source=source or "an unknown line",
        graph=text,
        dtypes=[str(x.dtype) for x in operands],
        few=FEW,
    )
    try:
        folder = _folder()
        path = folder / f"nonfinite_{node.op.name}.py"
        np.savez(path.with_suffix(".npz"), *(x.view(_plain(x.dtype)) for x in operands))
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path


def _folder() -> Path:
    root = os.environ.get("BACKPASS_DUMP")
    if root:
        Path(root).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="backpass-", dir=root))


def _plain(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or one of NumPy's own of the same size, as files know no other."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _alone(node: Node, arrays: Mapping[Value, np.ndarray]) -> tuple[Graph, list[np.ndarray]]:
    inputs = [v for v in dict.fromkeys(node.inputs) if not isinstance(v, Literal)]
    graph = Graph(node.op.name, tuple(inputs), (node,), node.outputs)
    return graph, [arrays[v] for v in inputs]


def _few(node: Node, arrays: Mapping[Value, np.ndarray]) -> tuple[Graph, list[np.ndarray]]:
    """The node on a few bad elements alone."""
    out = arrays[node.output]
    bad = np.flatnonzero(~np.isfinite(wide(out)))[:FEW]
    if not bad.size or not node.output.shape:
        return _alone(node, arrays)
    b = Builder(OPS, node.origin)
    b.phase = node.phase
    new: dict[Value, Value] = {}
    operands = []
    for value in node.inputs:
        if isinstance(value, Literal) or value in new:
            continue
        array = arrays[value].reshape(-1)[bad] if value.shape else arrays[value]
        new[value] = Value(ArrayType(array.shape, value.dtype))
        operands.append(np.ascontiguousarray(array))
    outputs = b.emit(node.op, [new.get(v, v) for v in node.inputs], node.attrs)
    return b.graph(node.op.name, list(new.values()), outputs), operands
