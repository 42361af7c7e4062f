"""Which op runs in which precision under `Autocast`."""

from __future__ import annotations

import numpy as np

from ...ir.fusion import MOVES
from ...ir.graph import Literal, Node, Value

# Products, whose operands are cast: what takes the time and what tolerates it.
PRODUCTS = frozenset("dot_general conv_general_dilated ragged_dot_general".split())
# Ops that run in the narrow dtype where their operands are there already: moves, and element-wise
# ops of bounded slope that lose no more than the product in front of them.
FOLLOWING = (
    MOVES
    | frozenset("gather dynamic_slice stack unstack tile optimization_barrier".split())
    | frozenset("add sub mul neg abs max min sign select_n clamp tanh logistic erf".split())
    | frozenset("eq ne lt le gt ge".split())
) - {"constant", "iota"}
# All others run in the dtype that the program says: sums, softmax, norms, losses, exp, log, pow,
# divisions, and the update of the parameters.

WIDE = np.dtype(np.float32)


def is_wide(value: Value) -> bool:
    """True for what may be narrowed: float32."""
    return bool(value.dtype == WIDE)


def follows(node: Node) -> bool:
    """True for an op that runs in the dtype of its operands: `FOLLOWING`, x**3 and x / 2.0.

    Cubes and halves are those of a gelu; squares are most often on their way into a sum.
    """
    name = node.op.name
    if name == "integer_pow":
        return bool(node.attrs["y"] == 3)
    if name == "div":
        return isinstance(node.inputs[1], Literal)
    return name in FOLLOWING or is_relu(node)


def is_relu(node: Node) -> bool:
    """True for `jax.nn.relu`, which has a rule of its own for 0."""
    return node.op.name == "custom_jvp_call" and node.attrs.get("name") == "relu"


def of_product(node: Node) -> list[Value]:
    """What a product multiplies, and what it gives."""
    return [*node.inputs[:2], *node.outputs]


def arrays(node: Node) -> list[Value]:
    """The operands that may be narrowed and are no literals."""
    return [v for v in node.inputs if is_wide(v) and not isinstance(v, Literal)]
