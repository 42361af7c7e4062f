"""`bp.compile` on imperative steps: as the dynamic mode does it, in one program."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import nn
from backpass.dynamic.nn import functional as F

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8)).astype(np.float32)
IMAGES = RNG.normal(size=(8, 1, 8, 8)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (4, 9))


def mlp():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 5))


def cnn():
    parts = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*parts, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 5))


class Block(nn.Module):
    def __init__(self, width, heads):
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        parts = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, c // self.heads)
        q, k, v = (parts[:, :, i].permute(0, 2, 1, 3) for i in range(3))
        scores = q @ k.swapaxes(-1, -2) / (c // self.heads) ** 0.5
        scores = scores.masked_fill(dyn.numpy.tril(np.ones((t, t))) == 0, -1e9)
        mixed = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(b, t, c)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self):
        self.embed, self.head = nn.Embedding(11, 16), nn.Linear(16, 11, bias=False)
        self.blocks = nn.Sequential(Block(16, 2), Block(16, 2))

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids))).permute(0, 2, 1)


PROGRAMS = {
    "mlp": (mlp, X, np.arange(16) % 5, lambda p: dyn.optim.AdamW(p, lr=1e-2)),
    "cnn": (cnn, IMAGES, np.arange(8) % 5, lambda p: dyn.optim.SGD(p, lr=0.1)),
    "gpt": (Gpt, TOKENS[:, :-1], TOKENS[:, 1:], lambda p: dyn.optim.SGD(p, lr=0.5, momentum=0.5)),
}


def trained(name, wrap, steps=10):
    """Losses of some steps, and what they leave behind."""
    make, x, y, optimiser = PROGRAMS[name]
    dyn.manual_seed(0)
    model = make()
    opt = optimiser(model.parameters())
    inputs, labels = dyn.tensor(x), dyn.tensor(y)

    def step(inputs, labels):
        opt.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        return loss

    run = wrap(step)
    losses = [run(inputs, labels).item() for _ in range(steps)]
    grads = [np.asarray(p.grad.value) for p in model.parameters()]
    state = {k: np.asarray(v.value) for k, v in model.state_dict().items()}
    return losses, grads, state, run


@pytest.mark.parametrize("name", PROGRAMS)
def test_ten_steps_are_the_same(name):
    losses, grads, state, _ = trained(name, lambda step: step)
    losses2, grads2, state2, _ = trained(name, bp.compile)
    np.testing.assert_allclose(losses, losses2, rtol=1e-4)
    for a, b in zip(grads, grads2):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    for key in state:
        np.testing.assert_allclose(state[key], state2[key], rtol=1e-3, atol=2e-5)
    assert losses[-1] < losses[0]


def test_the_gradient_is_derived_as_a_graph():
    """No tape is walked in the program: `autodiff` expands a `gradients` node."""
    make, x, y, optimiser = PROGRAMS["mlp"]
    model = make()
    opt = optimiser(model.parameters())

    @bp.compile
    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    lowered = step.lower(dyn.tensor(x), dyn.tensor(y))
    assert "gradients" in [node.op.name for node in lowered.stages[0].graph.nodes]
    dots = [node for node in lowered.graph.walk() if node.op.name == "dot_general"]
    assert len(dots) == 2 + 3  # two layers; the gradient by the batch is not wanted
    assert {node.phase for node in dots} == {"forward", "backward"}


def test_a_budget():
    _, x, y, _ = PROGRAMS["mlp"]
    rows, labels = dyn.tensor(np.repeat(x, 64, 0)), dyn.tensor(np.repeat(y, 64))

    def build(**options):
        dyn.manual_seed(0)
        parts = [part for _ in range(6) for part in (nn.Linear(64, 64), nn.Tanh())]
        model = nn.Sequential(nn.Linear(8, 64), *parts, nn.Linear(64, 5))
        opt = dyn.optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            return loss

        return bp.compile(step, **options)

    plain = build()
    peak = bp_peak(plain.lower(rows, labels).compile())
    budget = int(0.7 * peak)
    small = build(memory_budget=budget)
    assert bp_peak(small.lower(rows, labels).compile()) <= budget
    for _ in range(3):
        assert plain(rows, labels).item() == pytest.approx(small(rows, labels).item(), rel=1e-5)


def bp_peak(compiled):
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return total - m.alias_size_in_bytes


def test_settings_are_followed():
    """A learning rate is read at each call; the training mode makes another program."""
    w = dyn.tensor([1.0, 2.0], requires_grad=True)
    opt = dyn.optim.SGD([w], lr=1.0)
    drop = nn.Dropout(1.0)

    @bp.compile
    def step():
        opt.zero_grad()
        drop(w * 2).sum().backward()
        opt.step()

    step()
    np.testing.assert_array_equal(w.value, [1, 2])
    drop.eval()
    step()
    np.testing.assert_array_equal(w.value, [-1, 0])
    opt.param_groups[0]["lr"] = 0.5
    step()
    np.testing.assert_array_equal(w.value, [-2, -1])


def test_gradients_accumulate_over_calls():
    w = dyn.tensor([1.0, 2.0], requires_grad=True)

    @bp.compile
    def add(x):
        (w * x).sum().backward()

    for i in range(3):
        add(dyn.tensor([1.0, 10.0]))
        np.testing.assert_array_equal(w.grad.value, np.array([1.0, 10.0]) * (i + 1))


@pytest.mark.parametrize("first", [True, False])
def test_gradients_that_are_dropped_unread_choose_no_program(first):
    """Before the first step there are none, later there are: one program is for both."""
    w = dyn.tensor([1.0, 2.0], requires_grad=True)
    traced = []

    @bp.compile
    def step():
        traced.append(None)
        if first:
            w.grad = None
        (w * w).sum().backward()
        if not first:
            w.grad = None

    for _ in range(3):
        step()
    assert len(traced) == 3  # to see that there is state, to find it, and to make the program
    w.grad = dyn.tensor([5.0, 5.0])
    step()
    if first:
        assert len(traced) == 3
        np.testing.assert_array_equal(w.grad.value, 2 * w.value)
    else:
        assert len(traced) == 5  # backward adds to what is there
        assert w.grad is None


@pytest.mark.parametrize("kind", ["AdamW", "Optax"])
def test_a_scaler_skips_steps_that_overflow(kind):
    """As the dynamic mode: neither parameters nor moments move, and the scale follows."""

    def trained(wrap):
        dyn.manual_seed(0)
        model = mlp()
        if kind == "Optax":
            opt = dyn.optim.Optax(model.parameters(), optax.adam(1e-2))
        else:
            opt = dyn.optim.AdamW(model.parameters(), lr=1e-2)
        scaler = dyn.amp.GradScaler(init_scale=64.0, growth_interval=2)

        def step(x, y, factor):
            opt.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y) * factor).backward()
            scaler.unscale_(opt)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
            return norm

        run, seen = wrap(step), []
        x, y = dyn.tensor(X), dyn.tensor(np.arange(16) % 5)
        for factor in (1, 1, np.inf, 1, np.inf, 1, 1, 1):
            run(x, y, dyn.tensor(np.float32(factor)))
            seen.append((scaler.get_scale(), scaler.state_dict()["good"]))
        moments = jax.tree.leaves(opt.state_dict()["state" if kind == "AdamW" else "held"])
        return seen, [np.asarray(p.value) for p in model.parameters()], moments

    seen, params, moments = trained(lambda f: f)
    assert seen == [(64, 1), (128, 0), (64, 0), (64, 1), (32, 0), (32, 1), (64, 0), (64, 1)]
    seen2, params2, moments2 = trained(bp.compile)
    assert seen2 == seen
    for a, b in zip([*params, *moments], [*params2, *moments2], strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_scaler_goes_as_a_whole_into_a_compiled_step():
    w = dyn.tensor([1.0], requires_grad=True)
    opt, scaler = dyn.optim.SGD([w], lr=0.1), dyn.amp.GradScaler()

    @bp.compile
    def move():
        scaler.step(opt)

    scaler.scale(w * 2).sum().backward()
    move()
    with pytest.raises(bp.AutogradError, match="in the same compiled step"):
        scaler.update()
    scaler.unscale_(opt)
    with pytest.raises(bp.AutogradError, match="outside of the compiled step"):
        bp.compile(lambda: scaler.step(opt))()


def test_random_numbers_move_on():
    @bp.compile
    def draw():
        return dyn.rand(3)

    dyn.manual_seed(5)
    ours = [draw().numpy(), draw().numpy()]
    dyn.manual_seed(5)
    theirs = [dyn.rand(3).numpy(), dyn.rand(3).numpy()]
    np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(ours[0], ours[1])


def test_a_compiled_step_may_be_the_first_of_all(monkeypatch):
    """What is made once, and kept, is made of values and not of what a trace has in their place."""
    monkeypatch.setattr(dyn.autograd, "_ones", {})
    monkeypatch.setattr(dyn.random, "_state", [])
    w = dyn.tensor([1.0, 2.0], requires_grad=True)

    @bp.compile
    def step():
        w.grad = None
        (w * dyn.rand(2)).sum().backward()

    step()
    first = np.asarray(w.grad.value)
    step()
    assert not np.array_equal(first, w.grad.value)
    (w * 2).sum().backward()
    dyn.manual_seed(0)
    np.testing.assert_array_equal(first, dyn.rand(2).value)


def test_tensors_given_as_arguments():
    @bp.compile
    def double(x, y):
        x.mul_(2)
        y.sum().backward()
        return x + 1, {"y": y}

    x, y = dyn.tensor([1.0]), dyn.tensor([3.0], requires_grad=True)
    out, rest = double(x, y)
    assert (x.item(), out.item(), rest["y"].item(), y.grad.item()) == (2, 3, 3, 1)


def test_hooks_and_functions_go_with_it():
    w = dyn.tensor([1.0, -2.0], requires_grad=True)
    w.register_hook(lambda g: g * 10)

    class Double(dyn.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, ct):
            return ct * 7

    @bp.compile
    def step():
        w.grad = None
        (Double.apply(w) * w).sum().backward()

    step()
    np.testing.assert_array_equal(w.grad.value, 10 * (2 * w.value + 7 * w.value))


def test_a_decision_on_values_is_an_error_that_names_the_line():
    w = dyn.tensor([1.0], requires_grad=True)

    def step(x):
        loss = (w * x).sum()
        if loss > 1:  # here
            loss = loss * 2
        loss.backward()
        return loss

    line = next(
        i for i, text in enumerate(Path(__file__).read_text().split("\n"), 1) if "# here" in text
    )
    with pytest.raises(bp.ConcretizationError, match=rf"test_compiled.py:{line}(?s:.)*jnp.where"):
        bp.compile(step)(dyn.tensor([3.0]))
    assert w.grad is None and w.item() == 1.0  # nothing is lost
    assert step(dyn.tensor([3.0])).item() == 6.0


def test_an_error_within_leaves_the_state():
    w = dyn.tensor([1.0, 2.0], requires_grad=True)

    @bp.compile
    def step():
        with dyn.no_grad():
            w.mul_(2)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        step()
    np.testing.assert_array_equal(w.value, [1, 2])


def test_donating_is_ours():
    w = dyn.tensor([1.0], requires_grad=True)
    with pytest.raises(bp.ArgumentError, match="donate_argnums"):
        bp.compile(lambda x: w * x, donate_argnums=0)(np.ones(1, np.float32))


def test_the_page_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "dynamic.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile("\n".join(blocks), "dynamic.md", "exec"), {})
    told = capsys.readouterr().out
    assert "epoch  training  validation" in told and "0.weight" in told
