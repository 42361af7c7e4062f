"""Whether our answer to a question is right: JAX's own gradient, and finite differences.

reference   jax.value_and_grad, its jaxpr evaluated by `interpret`
slope       (loss(x + h d) - loss(x - h d)) / 2h = <gradient, d>, at two h: where they differ
            the loss is not smooth at x, and the slope tells nothing
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp
from backpass.compiler.budget import peak_bytes
from backpass.ir.errors import ParseError
from backpass.ir.parser import parse
from backpass.passes import DEFAULT, Convolutions, Defer, Fuse, Hoist, Roll, Strip, planned
from fuzz.interpret import run_graph, run_jaxpr
from fuzz.questions import Question, asked

STEP = 1e-5
OPAQUE = "Python object that text cannot bring back"
# Rewrites wherever they are right, paying or not: these programs are small.
EAGER = {
    "hoist": Hoist(ratio=0, room=1e9),
    "defer": Defer(ratio=0, room=1e9),
    "roll": Roll(True),
    "fuse": Fuse(chunk=2, least=1, block=2, scores=1),
    "convolutions": Convolutions(images=99, channels=2, cached=200),
}
INSIDE = {
    **EAGER,
    "strip": Strip(least=4),
    "fuse": Fuse(chunk=2, least=1, block=2, blocks=16, gain=0, scores=1),
    "hoist": Hoist(ratio=0, room=1e9, innermost=True),
    "defer": Defer(ratio=0, room=1e9, innermost=True),
}
# Ways that give a graph, which NumPy runs: by which passes.
PASSES = {
    "bare": "canonicalise,autodiff,dce",
    "pipeline": None,
    "rewrites": tuple(EAGER.get(each.name, each) for each in DEFAULT),
    "strips": tuple(INSIDE.get(each.name, each) for each in planned("cpu")[1]),
}


class Discarded(Exception):
    """The question has no answer to compare with: JAX has none, or the numbers are no good."""


class Wrong(Exception):
    """Our answer is wrong; `kind` is the signature of how."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass(frozen=True)
class Expected:
    """What a question's answer has to be; the numbers are made when they are first asked for."""

    question: Question

    @cached_property
    def _traced(self) -> tuple[Any, Any]:
        args = self.question.program.inputs
        try:
            return jax.make_jaxpr(asked(self.question, jax), return_shape=True)(*args)
        except (NotImplementedError, ValueError, TypeError) as error:
            raise Discarded(f"JAX: {error}") from error

    @property
    def shapes(self) -> Any:
        """The tree of types of value and gradient."""
        return self._traced[1]

    @cached_property
    def leaves(self) -> list[np.ndarray]:
        """Value and gradient. Raises `Discarded` where they are not finite or far too large."""
        found = run_jaxpr(self._traced[0], *self.question.program.inputs)
        leaves = [np.asarray(x) for x in found]
        for x in leaves:
            if x.dtype.kind in "fc" and x.size and not np.abs(x).max() < 1e5:
                raise Discarded("numbers too large")
        return leaves

    @cached_property
    def slope(self) -> tuple[Any, float, float] | None:
        """`(directions, slope, uncertainty)`, or None where the loss is not smooth."""
        q = self.question
        args = q.program.inputs
        if any(np.asarray(args[i]).dtype.itemsize < 8 for i in q.wrt):
            return None
        rng = np.random.default_rng(q.seed)
        directions = [_direction(rng, args[i]) for i in q.wrt]
        jaxpr = jax.make_jaxpr(q.loss())(*args)

        def loss(step: float) -> float:
            moved = list(args)
            for i, d in zip(q.wrt, directions, strict=True):
                moved[i] = args[i] + step * d if np.ndim(args[i]) else _alike(args[i], step * d)
            return float(np.asarray(run_jaxpr(jaxpr, *moved)[0]))

        near, far = ((loss(h) - loss(-h)) / (2 * h) for h in (STEP, 4 * STEP))
        uncertain = abs(near - far)
        if not uncertain <= 1e-5 * (1 + abs(near)):
            return None
        return directions, near, uncertain


def _direction(rng: np.random.Generator, x: Any) -> Any:
    d = rng.normal(size=np.shape(x))
    return d + 1j * rng.normal(size=np.shape(x)) if np.iscomplexobj(x) else d


def _alike(x: Any, step: Any) -> Any:
    return float(x + step) if isinstance(x, float) else np.asarray(x + step)


def check(expected: Expected, way: str) -> None:
    """Compare our answer, got in a way of `PASSES` or of `BY_XLA`. Raises `Wrong`, or `Discarded`."""
    q = expected.question
    want, shapes = expected.leaves, expected.shapes
    try:
        with warnings.catch_warnings():  # a program drawn at random may well have no slope
            warnings.simplefilter("ignore", bp.ZeroGradientWarning)
            found, given = _answer(q, way)
    except Wrong:
        raise
    except jax.errors.JaxRuntimeError as error:  # a program that XLA itself cannot run
        raise Discarded(f"XLA: {error}") from error
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise Wrong(f"{type(error).__name__} {first[:70]}", str(error)[:1500]) from error
    _same_types(shapes, given, [isinstance(q.program.inputs[i], float) for i in q.wrt])
    try:
        for name, x, y in zip(_paths(shapes), found, want, strict=True):
            _close(name, np.asarray(x), y, _scale(want), q)
    except Wrong:
        if _refuted(expected, found):
            raise Discarded("JAX is wrong, by finite differences") from None
        if way in BY_XLA and _xla_rounds_so(q, found):
            raise Discarded("XLA gives the same number for JAX's own gradient") from None
        raise
    if q.exact and expected.slope is not None:
        _along(expected.slope, found[-len(q.wrt) :])


def _refuted(expected: Expected, found: Sequence[Any]) -> bool:
    """True when finite differences agree with us and not with JAX."""
    count = len(expected.question.wrt)
    if expected.slope is None:
        return False
    try:
        _along(expected.slope, found[-count:])
    except Wrong:
        return False
    try:
        _along(expected.slope, expected.leaves[-count:])
    except Wrong:
        return True
    return False


def _xla_rounds_so(q: Question, found: Sequence[Any]) -> bool:
    """True when JAX's gradient, compiled, is ours.

    XLA may compute a value once for a maximum and again, rounded otherwise, for the comparison with
    it: then no element attains the maximum, and both gradients are 0 / 0.
    """
    theirs = jax.tree.leaves(jax.jit(asked(q, jax))(*q.program.inputs))
    return all(
        np.allclose(x, y, rtol=1e-9, atol=1e-9, equal_nan=True)
        for x, y in zip(found, theirs, strict=True)
    )


def _answer(q: Question, way: str) -> tuple[Sequence[Any], Any]:
    """Leaves of our value and gradient, and the tree of their types."""
    args = q.program.inputs
    function = asked(q, bp)
    if way in BY_XLA:
        args = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in args]
        found = BY_XLA[way](function)(*args)
        return jax.tree.leaves(found), found
    lowered = bp.compile(function, passes=PASSES[way], debug=True).lower(*args)
    if q.seed % 8 == 0:
        for stage in lowered.stages:
            _reads_back(stage.graph)
    return run_graph(lowered.graph, *args), lowered.out_info


def _lean(function: Any) -> Any:
    """The function within the smallest budget that is feasible."""

    def run(*args: Any) -> Any:
        try:
            return bp.compile(function, memory_budget=1, debug=True)(*args)
        except bp.BudgetError as error:
            least = error.minimum_bytes
        step = bp.compile(function, memory_budget=least, debug=True)
        peak = peak_bytes(step.lower(*args).compile().memory_analysis())
        if peak > least:
            raise Wrong("budget", f"the peak is {peak} bytes of {least}")
        return step(*args)

    return run


# Ways that go through XLA as a whole: what is called for a function.
BY_XLA: dict[str, Any] = {
    "call": lambda function: function,
    "compiled": partial(bp.compile, debug=True),
    "budget": _lean,
}


def _reads_back(graph: Any) -> None:
    text = str(graph)
    try:
        again = parse(text)
    except ParseError as error:
        if OPAQUE in str(error):
            return
        raise
    if again != graph:
        raise Wrong("text", f"not read back as it was\n{text}")


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _same_types(want: Any, found: Any, weak: Sequence[bool]) -> None:
    """The same tree, shapes, dtypes and weak bits; of a gradient, JAX's or that of its input."""
    trees = jax.tree.structure(want), jax.tree.structure(found)
    if trees[0] != trees[1]:
        raise Wrong("tree", f"{trees[1]} in place of {trees[0]}")
    leaves = list(zip(_paths(want), jax.tree.leaves(want), jax.tree.leaves(found), strict=True))
    for at, (path, x, y) in enumerate(leaves, len(weak) - len(leaves)):
        types = [(v.shape, v.dtype, bool(getattr(v, "weak_type", False))) for v in (x, y)]
        if types[0] != types[1] and types[1] != (*types[0][:2], at >= 0 and weak[at]):
            raise Wrong("type", f"{types[1]} in place of {types[0]} at {path}")


def _scale(leaves: Sequence[np.ndarray]) -> float:
    return max([1.0, *(float(np.abs(x).max()) for x in leaves if x.dtype.kind in "fc" and x.size)])


def _close(path: str, x: np.ndarray, y: np.ndarray, scale: float, q: Question) -> None:
    """Equal but for rounding, of single precision where that occurs."""
    single = any(np.asarray(v).dtype.itemsize * (1 + np.iscomplexobj(v)) < 8 for v in (x, y))
    rough = not q.exact and (
        single
        or any(
            "32" in step.expr or "64" in step.expr or "reduce_precision" in step.expr
            for step in q.program.walk()
        )
        or any(np.asarray(v).dtype == np.float32 for v in q.program.inputs)
    )
    tolerance = 2e-3 if rough else 1e-7
    if x.dtype.kind not in "fc":
        if not rough and not np.array_equal(x, y):
            raise Wrong("value", f"{x} in place of {y} at {path}")
        return
    error = float(np.abs(x - y).max()) if x.size else 0.0
    if not error <= tolerance * scale:
        raise Wrong("number", f"{x}\nin place of\n{y}\nat {path}, off by {error:.3g}")


def _along(slope: tuple[Any, float, float], grads: Sequence[Any]) -> None:
    """The gradient along a direction against the slope."""
    directions, want, uncertain = slope
    pairs = [np.asarray(g) * d for g, d in zip(grads, directions, strict=True)]
    found = float(sum(np.sum(p).real for p in pairs))
    size = 1 + sum(float(np.sum(np.abs(p))) for p in pairs)
    if not abs(found - want) <= 1e-5 * size + 10 * uncertain:
        raise Wrong("slope", f"{found:.9g} along a direction, in place of {want:.9g}")
