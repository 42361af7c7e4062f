"""The language: types, graphs, ops, text form, verifier and analyses. Knows no other layer."""

from .builder import Builder
from .cost import cost
from .diff import diff
from .evaluate import evaluate
from .graph import Graph, Literal, Node, Origin, Value
from .liveness import liveness
from .ops import OPS
from .parser import parse
from .printer import print_graph
from .types import ArrayType
from .verifier import verify

__all__ = [
    "OPS",
    "ArrayType",
    "Builder",
    "Graph",
    "Literal",
    "Node",
    "Origin",
    "Value",
    "cost",
    "diff",
    "evaluate",
    "liveness",
    "parse",
    "print_graph",
    "verify",
]
