"""A tiny training step in each design: what a call costs beside PyTorch and plain JAX.

    python benchmarks/contrast/tiny.py
    python benchmarks/contrast/tiny.py --repeats 100 --json tiny.json

An MLP 32 x (32-64-10), cross-entropy, SGD. `dynamic` is `loss.backward()` and `optimizer.step()` of
`backpass.dynamic`, `compiled` the very same function under `bp.compile`, `torch` PyTorch's eager
mode, `torch.compile` its compiler (where a C++ compiler is there), `jax ops` the same step in
`jax.numpy` op by op with the backward pass written by hand, `jax.jit` that of `jax.value_and_grad`.
`time` is relative to PyTorch's eager mode, or to `jax ops` without PyTorch; microseconds go to
stderr.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from script import finish, parser

from backpass.bench.measure import Ratio, environment, fix_allocator, interleave, note, ratio

ROWS, WIDTHS, RATE = 32, (32, 64, 10), 0.1
COLUMNS = ("arm", "time")


@dataclass(frozen=True)
class Row:
    """One arm: its time over the reference's."""

    arm: str
    time: Ratio
    seconds: tuple[float, ...]


def data() -> tuple[Any, Any, list[Any]]:
    """Rows, labels, and weights and biases in turns (`[out, in]`, as PyTorch has them)."""
    import numpy as np

    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, WIDTHS[0])).astype(np.float32)
    pairs = zip(WIDTHS, WIDTHS[1:], strict=False)
    arrays = [a for n, m in pairs for a in (random.normal(size=(m, n)) / n**0.5, np.zeros(m))]
    return x, np.arange(ROWS) % WIDTHS[-1], [a.astype(np.float32) for a in arrays]


def ours(compiled: bool) -> Callable[[], Any]:
    """The dynamic mode, or the same step compiled; gives the loss."""
    import backpass as bp
    from backpass import dynamic as dyn

    x, y, arrays = data()
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

    run = bp.compile(step) if compiled else step
    return lambda: run(inputs, labels)


def theirs(compiled: bool) -> Callable[[], Any]:
    """PyTorch."""
    import torch

    x, y, arrays = data()
    model = torch.nn.Sequential(
        torch.nn.Linear(*WIDTHS[:2]), torch.nn.ReLU(), torch.nn.Linear(*WIDTHS[1:])
    )
    for p, array in zip(model.parameters(), arrays, strict=True):
        p.data = torch.tensor(array)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    inputs, labels = torch.tensor(x), torch.tensor(y)

    def step() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    return torch.compile(step) if compiled else step


def jax_ops() -> Callable[[], Any]:
    """Each operation of both passes by itself."""
    import jax
    import jax.numpy as jnp

    x, y, arrays = data()
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


def jax_jit() -> Callable[[], Any]:
    """One program, by JAX's own derivatives."""
    import jax
    import jax.numpy as jnp

    x, y, arrays = data()
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


def arms(with_compiler: bool) -> dict[str, Callable[[], Any]]:
    """The steps by name; the first is what the others are compared with."""
    found: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("torch") is not None:
        found["torch"] = theirs(False)
        if with_compiler:
            found["torch.compile"] = theirs(True)
    found |= {"jax ops": jax_ops(), "jax.jit": jax_jit()}
    return found | {"dynamic": ours(False), "compiled": ours(True)}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Check that all arms go the same way, time them in turns; print and return the rows."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=60, help="rounds of the arms in turns")
    options.add_argument("--calls", type=int, default=200, help="calls in a block")
    options.add_argument("--no-torch-compile", action="store_true", help="leave that arm out")
    args = options.parse_args(argv)
    stamp = environment()
    steps = arms(not (args.no_torch_compile or args.tiny))
    losses = {name: [step().item() for _ in range(10)] for name, step in steps.items()}
    first = next(iter(losses.values()))
    for name, found in losses.items():
        apart = max(abs(a - b) for a, b in zip(first, found, strict=True))
        note(f"{name}: ten losses within {apart:.1e} of the first arm's")
        assert apart < 1e-4, name
    rounds, calls = (3, 2) if args.tiny else (args.repeats, args.calls)
    interleave(steps, 2, calls)
    samples = interleave(steps, rounds, calls)
    base = next(iter(samples.values())).wall
    rows = [Row(name, ratio(s.wall, base), s.wall) for name, s in samples.items()]
    for row in rows:
        note(f"{row.arm}: {statistics.median(row.seconds) * 1e6:.1f} us")
    table = (COLUMNS, [(row.arm, str(row.time)) for row in rows])
    finish(stamp, [table], [asdict(row) for row in rows], args.json)
    return rows


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
