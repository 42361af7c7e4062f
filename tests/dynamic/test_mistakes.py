"""Warnings of mistakes in a training loop: that each comes once, at the user's line, and that
sound loops have none (warnings are errors here)."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import nn

X = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32)


def line(mark):
    lines = Path(__file__).read_text().split("\n")
    return next(i for i, text in enumerate(lines, 1) if f"# {mark}" in text and "line(" not in text)


class Loop:
    """A small model and its optimiser."""

    def __init__(self, kind=dyn.optim.SGD, **options):
        dyn.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.opt = kind(self.model.parameters(), lr=1e-2, **options)

    def loss(self):
        return (self.model(dyn.tensor(X)) ** 2).mean()


def told(fun, times=1):
    """The warnings of some calls."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(times):
            fun()
    assert all(each.category is bp.TrainingWarning for each in found)
    return found


def ways():
    return pytest.mark.parametrize("wrap", [lambda f: f, bp.compile], ids=["dynamic", "compiled"])


@ways()
def test_a_step_without_a_gradient(wrap):
    loop = Loop()

    def step():
        loop.loss().backward()
        loop.opt.zero_grad()
        loop.opt.step()  # nothing to step by

    (only,) = told(wrap(step), 3)
    assert "SGD: step() found no gradient" in str(only.message)
    assert (Path(only.filename).name, only.lineno) == (Path(__file__).name, line("nothing to step"))


def test_a_step_taken_again():
    loop = Loop()
    loop.loss().backward()
    (only,) = told(loop.opt.step, 3)
    assert "gradients of the last step again" in str(only.message)


@ways()
def test_gradients_of_earlier_steps(wrap):
    loop = Loop(dyn.optim.AdamW)

    def step():
        loop.loss().backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        loop.opt.step()  # stale

    (only,) = told(wrap(step), 3)
    assert "AdamW: step() takes gradients that an earlier step has used" in str(only.message)
    assert "in 4 of 4" in str(only.message)
    assert only.lineno == line("stale")


def test_the_marks_pass_between_the_designs():
    """A compiled step that uses gradients, then a recorded one that adds to them; and back."""
    for first, second in ((bp.compile, lambda f: f), (lambda f: f, bp.compile)):
        loop = Loop()

        def step(loop=loop):
            loop.loss().backward()
            loop.opt.step()

        wrap, unwrap = first(step), second(step)
        wrap()
        (only,) = told(unwrap)
        assert "an earlier step has used" in str(only.message)


@ways()
def test_a_parameter_that_nothing_reaches(wrap):
    loop = Loop()
    idle, frozen = nn.Parameter(np.ones((2, 5), np.float32)), nn.Parameter(X, requires_grad=False)
    names = [("idle", idle), ("frozen", frozen), *loop.model.named_parameters()]
    loop.opt = dyn.optim.SGD(names, lr=1e-2)

    def step():
        loop.opt.zero_grad()
        loop.loss().backward()
        loop.opt.step()

    (only,) = told(wrap(step), 8)
    assert "1 of 6 parameters had no gradient" in str(only.message)
    assert "idle of shape [2, 5]" in str(only.message)
    assert "frozen of" not in str(only.message)
    np.testing.assert_array_equal(idle.value, np.ones((2, 5)))


def test_parameters_without_names_go_by_their_places():
    loop = Loop()
    last = [nn.Parameter(np.ones(i + 1, np.float32)) for i in range(6)]
    groups = [{"params": loop.model.parameters()}, {"params": last, "lr": 0.1}]
    loop.opt = dyn.optim.SGD(groups, lr=1e-2)

    def step():
        loop.opt.zero_grad()
        loop.loss().backward()
        loop.opt.step()

    assert not told(step, 4)
    (only,) = told(step)
    assert "parameter 4 of shape [1], parameter 5 of shape [2]" in str(only.message)
    assert "and 2 more" in str(only.message)


def test_a_gradient_that_came_in_time_is_enough():
    """A part that is used in one of the first steps."""
    loop = Loop()
    gate = nn.Parameter(np.ones(1, np.float32))
    loop.opt = dyn.optim.SGD([gate, *loop.model.parameters()], lr=1e-2)
    for i in range(8):
        loop.opt.zero_grad()
        (loop.loss() * gate.sum() if i == 2 else loop.loss()).backward()
        loop.opt.step()
    assert gate.item() != 1.0


@ways()
@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_are_no_mistake(wrap, set_to_none):
    loop = Loop()

    def step():
        for _ in range(3):
            loop.loss().backward()
        loop.opt.step()
        loop.opt.zero_grad(set_to_none)

    run = wrap(step)
    before = loop.loss().item()
    for _ in range(3):
        run()
    assert loop.loss().item() < before


@ways()
def test_micro_batches_over_calls_are_no_mistake(wrap):
    loop = Loop()
    add = wrap(lambda: loop.loss().backward())
    move = wrap(lambda: loop.opt.step())
    before = loop.loss().item()
    for _ in range(2):
        for _ in range(3):
            add()
        move()
        loop.opt.zero_grad()
    assert loop.loss().item() < before


@pytest.mark.parametrize("wipe", [lambda g: g.zero_(), lambda g: g.mul_(0)], ids=["zero_", "mul_"])
def test_gradients_wiped_by_hand_are_no_mistake(wipe):
    loop = Loop()
    before = loop.loss().item()
    for _ in range(3):
        loop.loss().backward()
        loop.opt.step()
        for p in loop.model.parameters():
            wipe(p.grad)
    assert loop.loss().item() < before


@ways()
def test_two_players_are_no_mistake(wrap):
    """One optimiser's loss leaves gradients with the other's, which drops them before its step."""
    maker, judge = Loop(), Loop()

    def step():
        judge.opt.zero_grad()
        made = maker.model(dyn.tensor(X)) * dyn.tensor(np.ones(3, np.float32))
        judge.model(made.detach()).mean().backward()
        judge.opt.step()
        maker.opt.zero_grad()
        judge.model(made).mean().backward()
        maker.opt.step()
        return made.mean()

    run = wrap(step)
    assert len({run().item() for _ in range(3)}) == 3


def test_a_skipped_step_is_no_mistake():
    """GradScaler leaves a step out when a gradient overflows."""
    loop = Loop()
    scaler = dyn.amp.GradScaler(init_scale=2.0**127)
    for _ in range(3):
        loop.opt.zero_grad()
        scaler.scale(loop.loss() * 1e3).backward()
        scaler.step(loop.opt)
        scaler.update()
    assert scaler.get_scale() < 2.0**127


def test_an_error_moves_nothing():
    """Where warnings are errors, as in these tests, a mistake leaves the parameters alone."""
    loop = Loop()
    loop.loss().backward()
    loop.opt.step()
    before = [np.asarray(p.value) for p in loop.model.parameters()]
    loop.loss().backward()
    with pytest.raises(bp.TrainingWarning):
        loop.opt.step()
    for p, value in zip(loop.model.parameters(), before):
        np.testing.assert_array_equal(p.value, value)
