"""A tiny training step in each design: what a call costs beside PyTorch and plain JAX.

An MLP 32 x (32-64-10), cross-entropy, SGD. `dynamic` is `loss.backward()` and `optimizer.step()` of
`backpass.dynamic`, `compiled` the very same function under `bp.compile`. Beside `jax`, which is
`jax.jit` of `jax.value_and_grad`, stands `jax ops`: the same step in `jax.numpy` op by op, with the
backward pass written by hand. A sample is a block of calls; blocks of the arms take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import dynamic as dyn
from ...compiler.compile import compile
from ..measure import interleave, ratio
from ..rows import Row, Setup, agree, message

ROWS, WIDTHS, RATE = 32, (32, 64, 10), 0.1
RATIOS = ("time", "cpu")
FIGURES = ("us",)
CALLS = {"tiny": 2}  # in a block
MANY = 200
STEPS, ROUNDING = 10, 1e-4  # losses that are compared before, and how far they may be apart

Run = Callable[[], Any]


def data(seed: int) -> tuple[Any, Any, list[Any]]:
    """Rows, labels, and weights and biases in turns (`[out, in]`, as PyTorch has them)."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(ROWS, WIDTHS[0])).astype(np.float32)
    pairs = zip(WIDTHS, WIDTHS[1:], strict=False)
    arrays = [a for n, m in pairs for a in (random.normal(size=(m, n)) / n**0.5, np.zeros(m))]
    return x, np.arange(ROWS) % WIDTHS[-1], [a.astype(np.float32) for a in arrays]


def ours(seed: int, compiled: bool) -> Callable[[], Any]:
    """The dynamic mode, or the same step compiled; gives the loss."""
    x, y, arrays = data(seed)
    model = dyn.nn.Sequential(dyn.nn.Linear(*WIDTHS[:2]), dyn.nn.ReLU(), dyn.nn.Linear(*WIDTHS[1:]))
    for p, array in zip(model.parameters(), arrays, strict=True):
        p.data = dyn.tensor(array)
    optimizer = dyn.optim.SGD(model.parameters(), lr=RATE)
    inputs, labels = dyn.tensor(x), dyn.tensor(y)

    def step(inputs: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = dyn.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    run = compile(step) if compiled else step
    return lambda: run(inputs, labels)


def jax_ops(seed: int) -> Callable[[], Any]:
    """Each operation of both passes by itself."""
    x, y, arrays = data(seed)
    state = list(map(jnp.asarray, arrays))
    inputs, labels = jnp.asarray(x), jnp.asarray(y)
    wanted = jax.nn.one_hot(labels, WIDTHS[-1])

    def step() -> Any:
        w1, b1, w2, b2 = state
        before = inputs @ w1.T + b1
        hidden = jnp.maximum(before, 0)
        logs = jax.nn.log_softmax(hidden @ w2.T + b2)
        loss = -jnp.take_along_axis(logs, labels[:, None], 1).mean()
        ct = (jnp.exp(logs) - wanted) / ROWS
        back = (ct @ w2) * (before > 0)
        grads = back.T @ inputs, back.sum(0), ct.T @ hidden, ct.sum(0)
        state[:] = [p - RATE * g for p, g in zip(state, grads, strict=True)]
        return loss

    return step


def jax_jit(seed: int) -> Callable[[], Any]:
    """One program, by JAX's own derivatives."""
    x, y, arrays = data(seed)
    state = [list(map(jnp.asarray, arrays))]
    inputs, labels = jnp.asarray(x), jnp.asarray(y)

    def loss_of(params: Any) -> Any:
        w1, b1, w2, b2 = params
        logs = jax.nn.log_softmax(jnp.maximum(inputs @ w1.T + b1, 0) @ w2.T + b2)
        return -jnp.take_along_axis(logs, labels[:, None], 1).mean()

    @jax.jit
    def step(params: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        return [p - RATE * g for p, g in zip(params, grads, strict=True)], loss

    def run() -> Any:
        state[0], loss = step(state[0])
        return loss

    return run


def by_torch(seed: int, compiled: bool) -> Run:
    """PyTorch's, eager or by its compiler."""
    from ..pytorch.tiny import tiny

    return tiny(*data(seed), RATE, compiled)


PEERS: Mapping[str, Mapping[str, Callable[[int], Run]]] = {
    "jax": {"jax": jax_jit, "jax ops": jax_ops},
    "torch": {"torch": partial(by_torch, compiled=False)},
    "torch-compile": {"torch-compile": partial(by_torch, compiled=True)},
}
OURS = {"dynamic": partial(ours, compiled=False), "compiled": partial(ours, compiled=True)}


def cases(size: str) -> Mapping[str, None]:
    """Return the one case."""
    return {"mlp": None}


def measure(suite: str, case: str, what: None, setup: Setup) -> list[Row]:
    """Check that all arms go the same way, and time them in turns."""
    runs = {name: make(setup.seed) for name, make in OURS.items()}
    wanted = [runs["compiled"]().item() for _ in range(STEPS)]
    _agree([runs["dynamic"]().item() for _ in range(STEPS)], wanted)
    errors: dict[str, str] = {}
    peers = [item for peer in setup.peers for item in PEERS.get(peer, {}).items()]
    for name, make in peers:
        try:
            run = make(setup.seed)
            _agree([run().item() for _ in range(STEPS)], wanted)
        except Exception as error:  # one peer that fails must not hide the others
            errors[name] = message(error)
            setup.tell(f"{case}, {name}: {errors[name]}")
            continue
        runs[name] = run
    calls = CALLS.get(setup.size, MANY)
    interleave(runs, 2, calls)
    samples = interleave(runs, setup.repeats, calls)
    rows = []
    for mine in OURS:
        own = {"us": 1e6 * median(samples[mine].wall), "seconds": list(samples[mine].wall)}
        for name, _ in peers:
            if name in errors:
                rows.append(Row(suite, mine, name, error=errors[name]))
                continue
            a, b = samples[mine], samples[name]
            ratios = {"time": ratio(a.wall, b.wall), "cpu": ratio(a.cpu, b.cpu)}
            rows.append(Row(suite, mine, name, ratios, own | {"peer_seconds": list(b.wall)}))
    return rows


def _agree(found: list[float], wanted: list[float]) -> None:
    apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    agree(f"{STEPS} losses", apart, ROUNDING)
