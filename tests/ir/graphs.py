"""Valid random graphs for property tests, of the IR and of passes.

    @patient
    @given(graphs())
    def test_pass_keeps_values(graph):
        args = arguments(graph)

Values stay small and finite, so that graphs can be evaluated and differentiated numerically.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from backpass.ir import OPS, ArrayType, Builder, Graph, Literal, Origin, Value
from backpass.ir.graph import UNKNOWN

# For tests that draw graphs: drawing one takes a while on a busy machine.
patient = settings(suppress_health_check=[HealthCheck.too_slow])

F32, I32 = np.dtype("float32"), np.dtype("int32")
FLOATS = (F32, np.dtype("float16"), jnp.dtype("bfloat16"))
UNARY = "neg sin cos tanh logistic abs sign stop_gradient copy".split()
BINARY = "add sub mul max min".split()
SIZES = st.integers(1, 4)
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
SOURCES = st.sampled_from(["model.py:41", "model.py:42", "/a/long/path/to/train.py:7", ""])
SCOPES = st.sampled_from(["", "block", "block/mlp", "block/attention", "loss"])
HOSTILE = st.text(max_size=12) | st.sampled_from(
    ['"', "\n", "%0", "@ x", "// no", "a//b", "\\", "\\n", "}", "of %1", "\u2028", "\x00", "\ud800"]
)


class Drawing:
    """One graph that is being drawn: `draw` from hypothesis, and what can be read so far."""

    def __init__(self, draw, inputs, text, depth: int) -> None:
        self.draw, self.text, self.depth = draw, text, depth
        self.b = Builder(OPS)
        self.values: list[Value] = list(inputs)
        self.origins: list[Origin] = []

    def pick(self, test: Callable[[Value], bool]) -> Value | None:
        found = [value for value in self.values if test(value)]
        return self.draw(st.sampled_from(found)) if found else None

    def place(self) -> None:
        """Draw the phase and origin of what is emitted next."""
        b = self.b
        b.phase = self.draw(st.sampled_from([b.phase] * 3 + ["forward", "backward", "update"]))
        source, scope = self.draw(SOURCES | self.text), self.draw(SCOPES | self.text)
        fresh = Origin(source, scope)
        if b.phase == "forward":
            b.origin = self.draw(st.sampled_from([fresh, fresh, UNKNOWN]))
            self.origins.append(b.origin)
        else:
            b.origin = self.draw(st.sampled_from([*self.origins, fresh, UNKNOWN]))

    def step(self, moves) -> None:
        self.place()
        found = self.draw(st.sampled_from(moves))(self)
        self.values += found or []

    # Moves: each emits nodes and gives the values that may be read later, or None where the
    # graph has no operand that fits.

    def unary(self):
        x = self.pick(lambda v: v.dtype in FLOATS)
        return x and [self.b.one(self.draw(st.sampled_from(UNARY)), x)]

    def binary(self):
        x = self.pick(lambda v: v.dtype in FLOATS)
        if x is None:
            return None
        y = self.pick(lambda v: v.type == x.type)
        if self.draw(st.booleans()):
            y = self.draw(st.sampled_from([0.5, -1.0, 0.1, 1e-5, 2.0]))
        return [self.b._binary(self.draw(st.sampled_from(BINARY)), x, y)]

    def select(self):
        x = self.pick(lambda v: v.dtype in FLOATS)
        y = x and self.pick(lambda v: v.type == x.type)
        return x and [self.b.select(self.b.gt(x, y), x, y)]

    def integer(self):
        x = self.pick(lambda v: v.dtype == I32)
        return x and [self.b.add(x, self.draw(st.integers(-3, 3)))]

    def reduce(self):
        x = self.pick(lambda v: v.ndim > 0 and v.dtype in FLOATS)
        if x is None:
            return None
        axes = self.draw(st.sets(st.sampled_from(range(x.ndim)), min_size=1))
        op = self.draw(st.sampled_from(["reduce_sum", "reduce_max"]))
        attrs = {"axes": tuple(sorted(axes))}
        return [self.b.emit(op, (x,), attrs)[0]]

    def reshape(self):
        x = self.pick(lambda v: v.ndim > 0)
        shapes = x and [(x.type.size,), (1, *x.shape), (*x.shape, 1)]
        return x and [self.b.reshape(x, self.draw(st.sampled_from(shapes)))]

    def transpose(self):
        x = self.pick(lambda v: v.ndim > 1)
        return x and [self.b.transpose(x, self.draw(st.permutations(range(x.ndim))))]

    def broadcast(self):
        x = self.pick(lambda v: v.ndim < 3)
        return x and [self.b.expand(x, (self.draw(SIZES), *x.shape), (0,))]

    def slice(self):
        x = self.pick(lambda v: v.ndim > 0 and v.shape[0] > 1)
        return x and [self.b.slice_in_dim(x, 1, x.shape[0], 0)]

    def pad(self):
        x = self.pick(lambda v: v.ndim > 0 and v.dtype in FLOATS)
        return x and [self.b.pad(x, 0.0, [(1, 0, 0)] + [(0, 0, 0)] * (x.ndim - 1))]

    def concatenate(self):
        x = self.pick(lambda v: 0 < v.ndim and v.shape[0] < 9)
        y = x and self.pick(lambda v: v.type == x.type)
        return x and [self.b.concatenate([x, y], 0)]

    def dot(self):
        x = self.pick(lambda v: v.ndim == 2 and v.dtype == F32)
        y = x and self.pick(lambda v: v.ndim == 2 and v.dtype == F32 and v.shape[0] == x.shape[1])
        scale = y and 1 / x.shape[1]
        return y and [self.b.mul(self.b.dot_general(x, y, ((1,), (0,))), scale)]

    def convert(self):
        x = self.pick(lambda v: v.dtype in FLOATS)
        return x and [self.b.convert(x, self.draw(st.sampled_from(FLOATS)))]

    def constant(self):
        shape = self.draw(SHAPES | st.just((5, 8)))
        seed = self.draw(st.integers(0, 3))
        values = np.random.default_rng(seed).uniform(-1, 1, shape).astype(F32)
        return [self.b.constant(values)]

    def named(self):
        x = self.pick(lambda v: True)
        return x and [self.b.one("name", x, name=self.draw(SCOPES | self.text))]

    def barrier(self):
        x, y = self.pick(lambda v: True), self.pick(lambda v: True)
        return x and y and list(self.b.optimization_barrier(x, y))

    def call(self):
        x = self.pick(lambda v: True)
        if x is None:
            return None
        body = self.inner([x.type], [])
        return self.b.emit("jit", (x,), {"name": body.name}, (body,))

    def cond(self):
        x = self.pick(lambda v: True)
        if x is None:
            return None
        index = Literal(np.int32(self.draw(st.integers(0, 1))), ArrayType((), I32))
        branches = [self.inner([x.type], [x.type], only=True) for _ in range(2)]
        return self.b.emit("cond", (index, x), {}, branches)

    def scan(self):
        carry = self.pick(lambda v: v.dtype in FLOATS)
        xs = self.pick(lambda v: v.ndim > 0)
        if carry is None or xs is None:
            return None
        slice_type = ArrayType(xs.shape[1:], xs.dtype)
        body = self.inner([carry.type, slice_type], [carry.type])
        attrs = {"num_consts": 0, "num_carry": 1, "length": xs.shape[0]}
        attrs |= {"reverse": self.draw(st.booleans()), "unroll": 1}
        return self.b.emit("scan", (carry, xs), attrs, (body,))

    def loop(self):
        """Two trips of a while."""
        x = self.pick(lambda v: v.dtype in FLOATS)
        if x is None:
            return None
        test, step = Builder(OPS), Builder(OPS)
        counter = [Value(ArrayType((), I32)) for _ in range(2)]
        state = [Value(x.type) for _ in range(2)]
        more = test.lt(counter[0], 2)
        turned = step.one(self.draw(st.sampled_from(UNARY)), state[1])
        graphs = [
            test.graph("cond", (counter[0], state[0]), (more,)),
            step.graph("body", (counter[1], state[1]), (step.add(counter[1], 1), turned)),
        ]
        attrs = {"cond_nconsts": 0, "body_nconsts": 0}
        start = self.b.literal(0, I32)
        return self.b.emit("while", (start, x), attrs, graphs)[1:]

    def inner(self, inputs, outputs, only: bool = False) -> Graph:
        """A region: it returns values of the types `outputs`, then, unless `only`, others."""
        made = Drawing(self.draw, map(Value, inputs), self.text, self.depth - 1)
        start = tuple(made.values)
        for _ in range(self.draw(st.integers(0, 3))):
            made.step(FLAT)
        found = [made.pick(lambda v, t=t: v.type == t) for t in outputs]
        if not only:
            found += self.draw(st.lists(st.sampled_from(made.values), min_size=1, max_size=2))
        name = self.draw(st.sampled_from(["body", "<lambda>"]) | self.text)
        return made.b.graph(name, start, found)


FLAT = (
    *[Drawing.unary] * 3,
    *[Drawing.binary] * 3,
    *(Drawing.select, Drawing.integer, Drawing.reduce, Drawing.reshape, Drawing.transpose),
    *(Drawing.broadcast, Drawing.slice, Drawing.pad, Drawing.concatenate, Drawing.dot),
    *(Drawing.convert, Drawing.constant, Drawing.named, Drawing.barrier),
)
NESTED = (*FLAT, Drawing.call, Drawing.cond, Drawing.scan, Drawing.loop)


@st.composite
def graphs(draw, max_nodes: int = 12, regions: bool = True, hostile: bool = False) -> Graph:
    """A valid graph of some `max_nodes` steps; `hostile` draws wild names, sources and scopes."""
    text = HOSTILE if hostile else st.nothing()
    inputs = []
    for i in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([f"args[{i}]", f"params['w{i}']", None]) | text)
        dtype = draw(st.sampled_from([F32, F32, F32, I32, *FLOATS]))
        inputs.append(Value(ArrayType(draw(SHAPES), dtype), name))
    made = Drawing(draw, inputs, text, 1)
    for _ in range(draw(st.integers(0, max_nodes))):
        made.step(NESTED if regions else FLAT)
    outputs = draw(st.lists(st.sampled_from(made.values), max_size=3))
    name = draw(st.sampled_from(["step", "loss_fn"]) | text)
    return made.b.graph(name, inputs, outputs)


def arguments(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Arrays for the inputs of `graph`, between -1 and 1."""
    random = np.random.default_rng(seed)
    return [random.uniform(-1, 1, value.shape).astype(value.dtype) for value in graph.inputs]
