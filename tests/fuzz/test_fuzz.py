"""The fuzzer itself: some programs, the same ones each time; what it draws, and that it shrinks."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from backpass.ir.ops import OPS
from fuzz.generate import question
from fuzz.oracle import Discarded, Expected, Wrong, check
from fuzz.programs import Program, Step
from fuzz.questions import Question
from fuzz.run import failure, smallest, way

BATCHES, SIZE = 8, 15


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("batch", range(BATCHES))
def test_programs(batch: int) -> None:
    right = 0
    for seed in range(batch * SIZE, (batch + 1) * SIZE):
        try:
            wrong = failure(question(seed), way(seed))
        except Discarded:
            continue
        assert wrong is None, f"seed {seed}: {wrong}"
        right += 1
    assert right > SIZE // 2


def test_a_seed_is_a_program() -> None:
    assert question(5).snippet() == question(5).snippet()
    assert question(5).snippet() != question(6).snippet()


def answered(q: Question) -> bool:
    try:
        return bool(Expected(q).leaves)
    except Discarded:
        return False


def test_a_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    q = next(q for q in map(question, range(9)) if q.order == 1 and not q.aux and answered(q))
    try:
        exec(q.snippet(), {"__name__": "snippet"})
    finally:
        jax.config.update("jax_enable_x64", False)  # the snippet sets it for good
    theirs, ours = capsys.readouterr().out.split("bp ")
    assert theirs.startswith("jax ") and ours.strip()


def lying(depth: int) -> Question:
    """A chain of sines in which one step has an op of ours that we then break."""
    steps = tuple(
        Step("lax.sin($0)" if i != depth // 2 else "lax.atan($0)", (i,)) for i in range(depth)
    )
    return Question(0, Program((np.linspace(0.1, 1.0, 3),), steps, (depth,)), (0,))


def test_a_wrong_rule_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    op = OPS["atan"]
    right = op.vjp
    assert right is not None and failure(lying(7), "bare") is None

    def doubled(b, node, cts, needs):
        return [g if g is None else b.mul(g, 2) for g in right(b, node, cts, needs)]

    object.__setattr__(op, "vjp", doubled)
    try:
        wrong = failure(lying(7), "bare")
        assert wrong is not None and wrong.kind == "number"
        small = smallest(lying(7), "bare", wrong.kind, 30)
    finally:
        object.__setattr__(op, "vjp", right)
    assert [step.expr for step in small.program.steps] == ["lax.atan($0)"]


def test_the_slope_alone_finds_it_too() -> None:
    """With JAX's answer taken for ours, and ours for JAX's: only finite differences can tell."""
    q = lying(3)
    expected = Expected(q)
    value, grad = expected.leaves
    expected.__dict__["leaves"] = [value, 2 * grad]
    with pytest.raises(Discarded, match="JAX is wrong"):
        check(expected, "bare")


def test_what_xla_does_to_jax_too_is_not_ours() -> None:
    q = lying(3)
    narrow = replace(q.program, inputs=(q.program.inputs[0].astype(np.float32),))
    expected = Expected(replace(q, program=narrow, exact=False))
    value, grad = expected.leaves
    expected.__dict__["leaves"] = [value, 2 * grad]
    with pytest.raises(Discarded, match="XLA"):
        check(expected, "compiled")
    with pytest.raises(Wrong):
        check(expected, "bare")
