"""Ten optimiser steps of an MLP, a CNN and a GPT: dynamic, compiled, and PyTorch's.

All begin at PyTorch's parameters. What rounding in float32 may do is measured: PyTorch takes the same
steps in float64, and ours may be as far from those as `SLACK` times its own float32 steps are,
and `FLOOR`.
"""

import numpy as np
import pytest

import backpass as bp
from dynamic.sides import HAS_TORCH, Ours, Theirs

pytestmark = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed (extra 'bench')")

SLACK = 4.0
FLOOR = {  # a share of the largest value among those compared
    "mlp": 2e-5,  # Optax's Adam takes 1 - beta^t in float32, for 0.999 that is 1.3e-5 of itself off
    "cnn": 2e-7,
    "gpt": 2e-7,
}
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(16, 8))
IMAGES = RNG.normal(size=(8, 1, 8, 8))
TOKENS = RNG.integers(0, 11, (4, 9))


def mlp(nn):
    hidden = nn.Linear(8, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.Tanh()
    return nn.Sequential(*hidden, nn.Linear(32, 5))


def cnn(nn):
    first = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))


def gpt(nn):
    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x, future):
            b, t, c = x.shape
            parts = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, c // self.heads)
            q, k, v = (parts[:, :, i].permute(0, 2, 1, 3) for i in range(3))
            scores = q @ k.swapaxes(-1, -2) / (c // self.heads) ** 0.5
            mixed = scores.masked_fill(future, -1e9).softmax(-1) @ v
            x = x + self.out(mixed.permute(0, 2, 1, 3).reshape(b, t, c))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.places = nn.Embedding(11, 16), nn.Embedding(8, 16)
            self.first, self.second = Block(16, 2), Block(16, 2)
            self.head = nn.Linear(16, 11, bias=False)

        def forward(self, given):
            ids, places, future = given
            x = self.embed(ids) + self.places(places)
            return self.head(self.second(self.first(x, future), future)).permute(0, 2, 1)

    return Gpt()


TEXT = TOKENS[:, :-1], np.arange(8), np.triu(np.ones((8, 8), bool), 1)
PROGRAMS = {
    "mlp": (mlp, ROWS, np.arange(16) % 5, lambda o, p: o.AdamW(p, lr=1e-2)),
    "cnn": (cnn, IMAGES, np.arange(8) % 5, lambda o, p: o.SGD(p, lr=0.05, weight_decay=1e-3)),
    "gpt": (gpt, TEXT, TOKENS[:, 1:], lambda o, p: o.SGD(p, lr=0.2, momentum=0.9)),
}


def trained(name, side, start, wrap, dtype):
    """Losses of ten steps, and the parameters, buffers and gradients after them; all float64."""
    make, inputs, labels, optimiser = PROGRAMS[name]

    def tensor(x):
        return side.tensor(x, dtype=dtype if np.asarray(x).dtype == np.float64 else None)

    model = make(side.nn)
    if isinstance(side, Theirs):
        model.to(dtype)
    model.load_state_dict({k: tensor(v) if v.ndim else side.tensor(v) for k, v in start.items()})
    opt = optimiser(side.optim, model.parameters())

    def step(inputs, labels):
        opt.zero_grad()
        loss = side.F.cross_entropy(model(inputs), labels)
        loss.backward()
        side.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        return loss

    run = wrap(step)
    given = tuple(map(tensor, inputs)) if isinstance(inputs, tuple) else tensor(inputs)
    losses = [run(given, side.tensor(labels)).item() for _ in range(10)]
    grads = {f"{k}.grad": p.grad for k, p in model.named_parameters()}
    both = {**model.state_dict(), **grads}
    arrays = {k: np.asarray(v.detach().numpy(), np.float64) for k, v in both.items()}
    return {"losses": np.array(losses), **arrays}


def far(found, truth):
    """The largest difference, in shares of the largest value among those that belong together."""
    names = {
        "losses": ["losses"],
        "gradients": [k for k in truth if k.endswith(".grad")],
        "state": [k for k in truth if k != "losses" and not k.endswith(".grad")],
    }
    return {
        kind: max(abs(found[k] - truth[k]).max() for k in keys)
        / max(abs(truth[k]).max() for k in keys)
        for kind, keys in names.items()
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_ten_steps_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = PROGRAMS[name][0](torch.nn)
    start = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    start = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in start.items()}

    truth = trained(name, Theirs(), start, lambda f: f, torch.float64)
    theirs = far(trained(name, Theirs(), start, lambda f: f, torch.float32), truth)
    assert truth["losses"][-1] < 0.9 * truth["losses"][0]
    for wrap in (lambda f: f, bp.compile):
        ours = far(trained(name, Ours(), start, wrap, np.float32), truth)
        for kind in theirs:
            assert ours[kind] <= SLACK * theirs[kind] + FLOOR[name], (kind, ours, theirs)
