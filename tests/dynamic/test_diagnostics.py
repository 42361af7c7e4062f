"""Losses by epoch with the note on overfitting; gradients and updates, and what is found in them."""

import numpy as np
import pytest

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import nn
from backpass.dynamic.diagnostics import History, Monitor

X = np.linspace(-1, 1, 24).reshape(8, 3).astype(np.float32)


def history(training, validation):
    found = History()
    for pair in zip(training, validation, strict=True):
        found.add(*pair)
    return found


FALLING = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3]


def test_overfitting_is_noted_with_its_epoch():
    found = history(FALLING, [1.0, 0.8, 0.7, 0.75, 0.8, 0.9])
    assert found.best == 3
    assert "since epoch 3 of 6" in found.note
    assert "from 0.7 to 0.9" in found.note and "from 0.6 to 0.3" in found.note
    assert found.note in str(found)


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        (FALLING, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),  # both fall
        (FALLING, [1.0, 0.9, 0.8, 0.81, 0.80, 0.82]),  # it is flat
        (FALLING, [1.0, 0.9, 0.8, 0.7, 0.9, 0.9]),  # too early to say
        (FALLING[:3], [1.0, 1.5, 2.0]),
        (
            [1.0, 0.8, 0.6, 0.8, 0.9, 1.0],
            [1.0, 0.8, 0.7, 0.9, 1.0, 1.1],
        ),  # both rise: no overfitting
    ],
)
def test_no_overfitting_no_note(training, validation):
    found = history(training, validation)
    assert found.note == ""
    assert "overfitting" not in str(found)


def test_scores_stand_beside_the_losses():
    found = History()
    found.add(0.5, 0.6, recall=0.25)
    found.add(0.4, 0.5, recall=0.75, precision=1)
    head, first, second = str(found).split("\n")
    assert head.split() == ["epoch", "training", "validation", "recall", "precision"]
    assert first.split() == ["1", "0.5000", "0.6000", "0.250", "nan"]
    assert second.split() == ["2", "0.4000", "0.5000", "0.750", "1.000", "lowest"]


def train(model, steps=12, lr=0.05, wrap=lambda f: f, scale=None):
    """Some steps of SGD under a monitor."""
    opt = dyn.optim.SGD(model.parameters(), lr=lr)
    monitor = Monitor(model)

    def step(factor):
        opt.zero_grad()
        loss = (model(dyn.tensor(X)) ** 2).mean() * factor
        loss.backward()
        opt.step()
        return loss

    run = wrap(step)
    for i in range(steps):
        run(dyn.tensor(np.float32((scale or {}).get(i, 1.0))))
        monitor.observe()
    return monitor


def mlp(depth=2, width=8, part=nn.Tanh):
    dyn.manual_seed(0)
    sizes = [3, *[width] * (depth - 1), 1]
    layers = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:])]
    return nn.Sequential(*(x for layer in layers for x in (layer, part())))


@pytest.mark.parametrize("wrap", [lambda f: f, bp.compile], ids=["dynamic", "compiled"])
def test_numbers_are_those_of_numpy(wrap):
    model = mlp()
    before = [np.asarray(p.value, np.float64) for p in model.parameters()]
    monitor = train(model, steps=1, wrap=wrap)
    grads = [np.asarray(p.grad.value, np.float64) for p in model.parameters()]
    moves = [-0.05 * g for g in grads]

    def rms(x):
        return np.sqrt(np.mean(x**2))

    np.testing.assert_allclose(monitor.gradients[0], [rms(g) for g in grads], rtol=1e-4)
    sizes = [rms(x) or 1.0 for x in before]
    expected = [rms(m) / size for m, size in zip(moves, sizes)]
    np.testing.assert_allclose(monitor.updates[0], expected, rtol=1e-3)
    whole = np.sqrt(sum((g**2).sum() for g in grads))
    np.testing.assert_allclose(monitor.norms, [whole], rtol=1e-4)
    np.testing.assert_allclose(monitor.update_norms, [0.05 * whole], rtol=1e-3)
    assert monitor.names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_the_cosine_between_steps():
    """On x^2 / 2 a rate of 0.1 goes on, one of 1.9 comes back."""
    for lr, expected in ((0.1, 1.0), (1.9, -1.0)):
        w = dyn.tensor([1.0, 2.0], requires_grad=True)
        opt, monitor = dyn.optim.SGD([w], lr=lr), Monitor([w])
        for _ in range(8):
            opt.zero_grad()
            (w * w / 2).sum().backward()
            opt.step()
            monitor.observe()
        np.testing.assert_allclose(monitor.cosines, [0] + [expected] * 7, atol=1e-5)
        assert [f.kind for f in monitor.findings] == (["zigzag"] if lr > 1 else [])


def test_sound_training_has_no_findings():
    monitor = train(mlp(), steps=20)
    assert monitor.findings == ()
    assert "0.weight" in str(monitor)


def test_vanishing_gradients_are_found_where_they_are():
    """Ten sigmoids: each halves the gradient twice at least, Glorot and Bengio's example."""
    kinds = {(f.kind, f.where) for f in train(mlp(10, part=nn.Sigmoid)).findings}
    assert ("vanishing", "0.weight") in kinds
    assert all(kind == "vanishing" for kind, _ in kinds)
    assert ("vanishing", "18.weight") not in kinds  # the last layer's is the largest


def test_a_dead_part_is_found():
    class Dead(nn.Module):
        def __init__(self):
            self.used, self.dead = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.used(x) + F.relu(self.dead(x) - 1e3)

    F = nn.functional
    kinds = {(f.kind, f.where) for f in train(Dead()).findings}
    assert {("vanishing", "dead.weight"), ("vanishing", "dead.bias")} == kinds


def test_exploding_gradients_and_jumps_are_found_at_their_step():
    found = train(mlp(), scale={8: 1e4}).findings
    assert [(f.kind, f.where) for f in found] == [("exploding", "step 9"), ("jump", "step 9")]
    assert "clip_grad_norm_" in str(found[0])


def test_a_gradient_that_is_not_finite_is_found():
    first = train(mlp(), scale={2: np.inf}, steps=4).findings[0]
    assert (first.kind, first.where) == ("exploding", "step 3")


def test_observing_within_a_compiled_step_is_an_error():
    model = mlp()
    monitor = Monitor(model)

    @bp.compile
    def step():
        (model(dyn.tensor(X)) ** 2).mean().backward()
        monitor.observe()

    with pytest.raises(bp.ArgumentError, match="after the compiled step"):
        step()
