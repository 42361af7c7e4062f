"""Compiled functions called, traced and planned by several threads at once, against serial calls.

    PYTHONPATH=tests python -m stress.threads --rounds 300 --threads 8
    PYTHONPATH=tests python -m stress.threads --rounds 20 --cases budget_same budget_different

Each round makes fresh compiled functions, so that each begins with a race for the first trace.
"""

from __future__ import annotations

import argparse
import gc
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp
from backpass import dynamic as dyn
from backpass.compiler.settled import forget

Case = Callable[[int, int], None]
LAYERS = 6


@contextmanager
def eager_switching() -> Iterator[None]:
    """Let Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(*thunks: Callable[[], Any]) -> list[Any]:
    """Call all at once, each in a thread of its own; what they give, or the first exception."""
    barrier = threading.Barrier(len(thunks))
    found: list[Any] = [None] * len(thunks)
    failed: list[BaseException] = []

    def run(i: int, thunk: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            found[i] = thunk()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(thunks)]
    with eager_switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    if any(thread.is_alive() for thread in threads):
        raise AssertionError("threads wait for each other")
    if failed:
        raise failed[0]
    return found


def parameters(width: int = 8) -> list[Any]:
    rng = np.random.default_rng(0)
    shape = LAYERS, width, width
    return list(rng.standard_normal(shape).astype(np.float32) / width**0.5)


def rows(count: int, width: int = 8) -> Any:
    return np.linspace(-1, 1, count * width, dtype=np.float32).reshape(count, width)


@jax.custom_vjp
def bent(x):
    return jnp.sin(x)


bent.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x),))


def loss(w, x):
    for each in w:
        x = bent(jax.nn.gelu(x @ each))
    return (x * x).mean()


def step(w, x):
    value, grads = bp.value_and_grad(loss)(w, x)
    return [p - 0.1 * g for p, g in zip(w, grads, strict=True)], value


def same(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def close(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-6)


SERIAL: dict[int, Any] = {}


def serial(count: int) -> Any:
    """What one thread gets for so many rows."""
    if count not in SERIAL:
        SERIAL[count] = jax.tree.map(np.asarray, bp.compile(step)(parameters(), rows(count)))
    return SERIAL[count]


def one_signature(threads: int, number: int) -> None:
    f, w, x = bp.compile(step), parameters(), rows(4)
    for out in together(*[lambda: f(w, x)] * threads):
        same(out, serial(4))
    assert len(f.explain().traces) == 1, f.explain()


def many_signatures(threads: int, number: int) -> None:
    f, w = bp.compile(step), parameters()
    counts = [2 + i // 2 for i in range(threads)]
    outs = together(*[lambda n=n: [f(w, rows(n)) for _ in range(3)] for n in counts])
    for n, found in zip(counts, outs, strict=True):
        for out in found:
            same(out, serial(n))
    assert len(f.explain().traces) == len(set(counts)), f.explain()


def _budget(count: int) -> int:
    lowered = bp.compile(step, memory_budget=1 << 40).lower(parameters(64), rows(count, 64))
    low, high = lowered.plan.lower_bound_bytes, lowered.plan.baseline_bytes
    return int(low + 0.7 * (high - low))


BUDGETS: dict[int, int] = {}


def _budgeted(threads: int, counts: Sequence[int]) -> None:
    forget()
    for n in set(counts):
        if n not in BUDGETS:
            BUDGETS[n] = _budget(n)
    budget, w = max(BUDGETS[n] for n in counts), parameters(64)
    f = bp.compile(step, memory_budget=budget)
    expected = {n: bp.compile(step)(w, rows(n, 64)) for n in set(counts)}

    def calls(n: int) -> Any:
        return [f(w, rows(n, 64)) for _ in range(3)]

    for n, found in zip(counts, together(*[lambda n=n: calls(n) for n in counts]), strict=True):
        for out in found:
            close(out, expected[n])
    for n in set(counts):
        plan = f.lower(w, rows(n, 64)).plan
        assert plan.measured_bytes is not None and plan.measured_bytes <= budget, plan
    assert len(f.explain().traces) == len(set(counts)), f.explain()


def budget_same(threads: int, number: int) -> None:
    _budgeted(threads, [256] * threads)


def budget_different(threads: int, number: int) -> None:
    _budgeted(threads, [192 + 64 * (i % 2) for i in range(threads)])


def ahead_of_time(threads: int, number: int) -> None:
    f, w = bp.compile(step, memory_budget=1 << 30), parameters()

    def run(n: int) -> Any:
        return f.lower(w, rows(n)).compile()(w, rows(n))

    counts = [2 + i % 2 for i in range(threads)]
    for n, out in zip(counts, together(*[lambda n=n: run(n) for n in counts]), strict=True):
        close(out, serial(n))
    assert len(f.explain().traces) == 2, f.explain()


def first_nan(threads: int, number: int) -> None:
    def faulty(w, x):
        return jnp.log(x).sum() + w.sum()

    f, w = bp.compile(faulty, debug="nan"), np.ones(3, np.float32)
    good, bad = np.ones(4, np.float32), -np.ones(4, np.float32)

    def run(x: Any) -> str:
        try:
            return str(float(f(w, x)))
        except bp.NonFiniteError as error:
            return error.op

    outs = together(*[lambda i=i: run(bad if i % 2 else good) for i in range(threads)])
    assert outs == ["log" if i % 2 else "3.0" for i in range(threads)], outs


def health(threads: int, number: int) -> None:
    f, w, x = bp.compile(step, health=True), parameters(), rows(4)
    for out, told in together(*[lambda: f(w, x)] * threads):
        close(out, serial(4))
        assert len(told.rows) == LAYERS


def explained(threads: int, number: int) -> None:
    f, w = bp.compile(step), parameters()

    def look() -> None:
        for _ in range(50):
            str(f.explain())

    calls = [lambda n=n: f(w, rows(n)) for n in range(2, 2 + threads // 2)]
    together(*calls, *[look] * (threads - len(calls)))
    assert len(f.explain().traces) == len(calls)


def nested(threads: int, number: int) -> None:
    inner = bp.compile(lambda w, x: loss(w, x))
    planned = bp.compile(lambda w, x: loss(w, x), memory_budget=1 << 30)

    def outer(w, x):
        value, grads = bp.value_and_grad(lambda w: inner(w, x) + planned(w, x))(w)
        return value, grads

    f, g, w, x = bp.compile(outer), jax.jit(outer), parameters(), rows(4)
    outs = together(
        *[lambda i=i: (f, g, lambda *a: inner(*a))[i % 3](w, x) for i in range(threads)]
    )
    want = serial(4)[1]
    for i, out in enumerate(outs):
        close(out if i % 3 == 2 else out[0], want if i % 3 == 2 else 2 * want)


def two_functions(threads: int, number: int) -> None:
    a, b, w, x = bp.compile(step), bp.compile(step), parameters(), rows(4)
    fresh = [lambda f=f: f(w, x) for f in (a, b)] * (threads // 2)
    for out in together(*fresh):
        same(out, serial(4))


def eager(threads: int, number: int) -> None:
    jax.clear_caches()
    w, x = parameters(), rows(3 + number % 5)
    outs = together(*[lambda: bp.value_and_grad(loss)(w, x)] * threads)
    for out in outs[1:]:
        same(out, outs[0])


def stateful(threads: int, number: int) -> None:
    def run(times: int, workers: int) -> Any:
        w = dyn.tensor(np.ones((4, 4), np.float32) / 8, requires_grad=True)
        opt = dyn.optim.Adam([w], lr=0.01)

        @bp.compile
        def descend(x):
            opt.zero_grad()
            value = ((x @ w) ** 2).sum()
            value.backward()
            opt.step()
            return value

        x = np.ones((2, 4), np.float32)

        def repeat() -> None:
            for _ in range(times // workers):
                descend(x)

        together(*[repeat] * workers)
        return w.detach().numpy()

    same(run(2 * threads, threads), run(2 * threads, 1))


def graph_walks(threads: int, number: int) -> None:
    lowered = bp.compile(step).lower(parameters(), rows(4))
    texts = together(*[lambda: (str(lowered.graph), str(lowered.summary()))] * threads)
    assert len(set(texts)) == 1


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        one_signature,
        many_signatures,
        budget_same,
        budget_different,
        ahead_of_time,
        first_nan,
        health,
        explained,
        nested,
        two_functions,
        eager,
        stateful,
        graph_walks,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds of the cases; tells how many failed, and the first failure of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore", bp.RetraceWarning)
    bad = 0
    for name in options.cases:
        start, failures = perf_counter(), []
        for number in range(options.rounds):
            try:
                CASES[name](options.threads, number)
            except Exception:
                failures.append(traceback.format_exc())
            if not gc.isenabled():
                failures.append("Python's garbage collection stayed off")
                gc.enable()
        bad += len(failures)
        took = perf_counter() - start
        print(f"{name}: {options.rounds} rounds, {len(failures)} failed, {took:.0f} s", flush=True)
        if failures:
            print(failures[0], flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    raise SystemExit(main())
