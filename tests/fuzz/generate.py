"""A question from a seed."""

from typing import Any

import numpy as np

from fuzz import (
    forms_control,
    forms_elementwise,
    forms_indexing,
    forms_linalg,
    forms_shapes,
)
from fuzz.draft import Draft
from fuzz.questions import Question

FORMS = (
    *forms_elementwise.FORMS,
    *forms_shapes.FORMS,
    *forms_indexing.FORMS,
    *forms_linalg.FORMS,
    *forms_control.FORMS,
)
WEIGHTS = np.cumsum([weight for weight, _ in FORMS]) / sum(weight for weight, _ in FORMS)
SHAPES = ((), (2,), (3,), (4,), (2, 3), (3, 2), (3, 3), (2, 2), (1, 3), (2, 1), (2, 2, 3))
SMOOTH = 0.7  # of the programs: float64, away from kinks, and so fit for finite differences


def grow(d: Draft, steps: int) -> None:
    """Apply drawn forms until that many fitted."""
    fitted = 0
    for _ in range(20 * steps):
        _, form = FORMS[int(np.searchsorted(WEIGHTS, d.rng.random()))]
        fitted += d.attempt(form)
        if fitted == steps:
            return


def question(seed: int) -> Question:
    """The question of a seed; the same on every machine."""
    rng = np.random.default_rng([seed, 20])
    exact = bool(rng.random() < SMOOTH)
    inputs = [_input(rng, exact) for _ in range(int(rng.integers(2, 5)))]
    inputs[0] = _floats(rng, exact, np.float64, SHAPES[rng.integers(1, len(SHAPES))])
    if rng.random() < 0.5:
        inputs.append(rng.integers(0, 4, SHAPES[rng.integers(4)]).astype(np.int32))
    draft = Draft(rng, inputs, exact)
    grow(draft, int(rng.integers(3, 16, 2).min()))  # most are small: time goes by the step
    return _asked(seed, draft)


def _asked(seed: int, draft: Draft) -> Question:
    """Outputs that nothing reads, the last ones first; some only beside the loss."""
    loose = [i for i, x in enumerate(draft.values) if not draft.used[i] and x.dtype.kind in "fc"]
    made = [i for i in loose if i >= len(draft.inputs)] or [len(draft.values) - 1]
    outputs = made[-4:]
    aux: tuple[int, ...] = ()
    if draft.chance(0.2):
        outputs.append(draft.integer(0, len(draft.values) - 1))
        aux = (len(outputs) - 1,)
    wrt = tuple(i for i, x in enumerate(draft.inputs) if np.asarray(x).dtype.kind in "fc")
    if len(wrt) > 1 and draft.chance(0.3):
        wrt = tuple(int(i) for i in draft.rng.permutation(wrt)[: draft.integer(1, len(wrt))])
    order = 2 if draft.chance(0.12) else 1
    program = draft.program(outputs)
    return Question(seed, program, wrt, aux, order, draft.exact)


def _input(rng: np.random.Generator, exact: bool) -> Any:
    shape = SHAPES[rng.integers(len(SHAPES))]
    draw = rng.random()
    if draw < 0.08:
        return round(float(rng.uniform(-2, 2)), 3)  # a Python number: weakly typed
    if draw < 0.2:
        parts = [_floats(rng, exact, np.float64, shape) for _ in range(2)]
        return parts[0] + 1j * parts[1]
    if draw < 0.4 and not exact:
        return _floats(rng, exact, np.float32, shape)
    return _floats(rng, exact, np.float64, shape)


def _floats(rng: np.random.Generator, exact: bool, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Three digits, so that they print; on a coarse grid, with ties and zeros, when not exact."""
    grid = 1000 if exact or rng.random() < 0.5 else 2
    return (np.round(rng.uniform(-2, 2, shape) * grid) / grid).astype(dtype)
