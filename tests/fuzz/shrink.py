"""The smallest program that still fails in the same way.

Any value may become an input, with the number that it had: that cuts off all that came before it.
Then outputs, inputs to differentiate by, and whole bodies are left out, as long as it still fails.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter

import numpy as np

from fuzz.draft import Draft, Rejected
from fuzz.programs import Program, Step
from fuzz.questions import Question

Fails = Callable[[Question], bool]


def shrunk(question: Question, fails: Fails, seconds: float = 60.0) -> Question:
    """Greedy: take the first simpler question that fails, until none does or the time is over."""
    end = perf_counter() + seconds
    found = True
    while found and perf_counter() < end:
        found = False
        for simpler in simplifications(question):
            if perf_counter() > end:
                break
            if fails(simpler):
                question, found = simpler, True
                break
    return question


def simplifications(q: Question) -> Iterator[Question]:
    """Simpler questions, the boldest first."""
    if q.order == 2:
        yield replace(q, order=1)
    if q.aux:
        kept = tuple(x for i, x in enumerate(q.program.outputs) if i not in q.aux)
        yield replace(q, aux=(), program=replace(q.program, outputs=kept).live())
    if len(q.program.outputs) > 1:
        for i in range(len(q.program.outputs)):
            if i not in q.aux:
                rest = q.program.outputs[:i] + q.program.outputs[i + 1 :]
                aux = tuple(k - (k > i) for k in q.aux)
                if len(rest) > len(aux):
                    yield replace(q, aux=aux, program=replace(q.program, outputs=rest).live())
    if len(q.wrt) > 1:
        yield from (replace(q, wrt=(i,)) for i in q.wrt)
    yield from _earlier_outputs(q)
    yield from _cuts(q)
    yield from _bodies(q)
    yield from _unused(q)


def _values(program: Program) -> list[np.ndarray] | None:
    """All values of a program, by running its steps."""
    draft = Draft(np.random.default_rng(0), program.inputs, False)
    try:
        for step in program.steps:
            draft.values += draft._run(step)
    except Rejected:
        return None
    return draft.values


def _earlier_outputs(q: Question) -> Iterator[Question]:
    """The operands of the step that makes an output, in its place."""
    p = q.program
    made = {
        at + k: step for step, at in zip(p.steps, p.starts, strict=False) for k in range(step.outs)
    }
    values = _values(p)
    for place, value in enumerate(p.outputs):
        if values is None or value not in made or place in q.aux:
            continue
        for other in made[value].args:
            if values[other].dtype.kind in "fc":
                outputs = (*p.outputs[:place], other, *p.outputs[place + 1 :])
                yield replace(q, program=replace(p, outputs=outputs).live())


def _cuts(q: Question) -> Iterator[Question]:
    """Each step in its turn, the last first, replaced by inputs with its numbers."""
    p = q.program
    values = _values(p)
    if values is None:
        return
    for at in reversed(range(len(p.steps))):
        yield _without(q, at, values)


def _without(q: Question, at: int, values: list[np.ndarray]) -> Question:
    p, count = q.program, len(q.program.inputs)
    start, outs = p.starts[at], p.steps[at].outs

    def moved(i: int) -> int:
        if i < count or i >= start + outs:
            return i
        return count + i - start if i >= start else i + outs

    steps = [replace(s, args=tuple(map(moved, s.args))) for k, s in enumerate(p.steps) if k != at]
    inputs = (*p.inputs, *values[start : start + outs])
    program = Program(inputs, tuple(steps), tuple(map(moved, p.outputs))).live()
    new = [count + k for k in range(outs) if values[start + k].dtype.kind in "fc"]
    return replace(q, program=program, wrt=(*q.wrt, *new))


def _bodies(q: Question) -> Iterator[Question]:
    """A step inside a body replaced by a constant of the type that it has in the example."""
    p = q.program
    for k, step in enumerate(p.steps):
        for j, body in enumerate(step.bodies):
            for smaller in _smaller(body):
                bodies = (*step.bodies[:j], smaller, *step.bodies[j + 1 :])
                steps = (*p.steps[:k], replace(step, bodies=bodies), *p.steps[k + 1 :])
                yield replace(q, program=replace(p, steps=steps))


def _smaller(body: Program) -> Iterator[Program]:
    values = _values(body)
    if values is None:
        return
    for k in reversed(range(len(body.steps))):
        step, start = body.steps[k], body.starts[k]
        if step.outs == 1 and not step.expr.startswith("np."):
            x = values[start]
            constant = Step(f"np.full({x.shape}, {x.ravel()[0]!s}, np.{x.dtype.name})", ())
            steps = (*body.steps[:k], constant, *body.steps[k + 1 :])
            yield replace(body, steps=steps).live()
        for j, inner in enumerate(step.bodies):
            for smaller in _smaller(inner):
                bodies = (*step.bodies[:j], smaller, *step.bodies[j + 1 :])
                steps = (*body.steps[:k], replace(step, bodies=bodies), *body.steps[k + 1 :])
                yield replace(body, steps=steps)


def _unused(q: Question) -> Iterator[Question]:
    """Inputs that nothing reads, left out."""
    p = q.program
    read = {i for step in p.steps for i in step.args} | set(p.outputs)
    for i in reversed(range(len(p.inputs))):
        if i in read or (q.wrt == (i,)):
            continue

        def moved(v: int, i: int = i) -> int:
            return v - (v > i)

        steps = tuple(replace(s, args=tuple(map(moved, s.args))) for s in p.steps)
        inputs = p.inputs[:i] + p.inputs[i + 1 :]
        program = Program(inputs, steps, tuple(map(moved, p.outputs)))
        yield replace(q, program=program, wrt=tuple(moved(w) for w in q.wrt if w != i))
