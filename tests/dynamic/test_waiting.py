"""Gradients that wait until somebody asks: nobody can tell them from others."""

import copy
import pickle
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import whole

RNG = np.random.default_rng(0)
X = dyn.tensor(RNG.normal(size=(5, 3)))


def leaves():
    return [dyn.nn.Parameter(RNG.normal(size=s).astype(np.float32)) for s in ((3, 4), (4,))]


def loss(params):
    w, b = params
    return ((X @ w + b).tanh() ** 2).sum()


def walked(params):
    """Leaves after a backward pass of a structure that was walked before."""
    for _ in range(3):
        for p in params:
            p.grad = None
        loss(params).backward()
    return params


def waits(p):
    walk = getattr(p._grad._storage, "walk", None)
    return walk is not None and walk.found is None


def arrays(params):
    return [np.asarray(p.grad.value) for p in params]


def expected(params):
    def of_arrays(w, b):
        return (jnp.tanh(X.value @ w + b) ** 2).sum()

    return jax.grad(of_arrays, (0, 1))(*(p.value for p in params))


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_whoever_asks_gets_them():
    params = walked(leaves())
    assert all(map(waits, params))
    close(arrays(params), expected(params))
    assert not any(map(waits, params))


OPTIMISERS = {
    "sgd": lambda params: dyn.optim.SGD(params, lr=0.1),
    "momentum": lambda params: dyn.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: dyn.optim.AdamW(params, lr=0.1),
    "turned": lambda params: dyn.optim.Adam(params[::-1], lr=0.1),
    "groups": lambda params: dyn.optim.SGD([{"params": [p], "lr": 0.1} for p in params]),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_step_takes_them_along(kind):
    """Six steps; in those of the second run somebody looks at a gradient before the step."""
    start = leaves()
    runs = []
    for looks in (False, True):
        params = copy.deepcopy(start)
        optimizer = OPTIMISERS[kind](params)
        for _ in range(6):
            optimizer.zero_grad()
            loss(params).backward()
            before = expected(params)
            if looks:
                params[0].grad.numpy()
            optimizer.step()
            close(arrays(params), before)
        runs.append([p.value for p in params])
    close(*runs)


def test_a_part_of_them_moves_alone():
    params = walked(leaves())
    wanted = expected(params)
    dyn.optim.SGD(params[:1], lr=0.5).step()
    close(arrays(params), wanted)


def test_backward_adds_to_them():
    params = walked(leaves())
    wanted = expected(params)
    loss(params).backward()
    close(arrays(params), [2 * g for g in wanted])


def test_a_change_in_place_of_one_that_waits():
    params = walked(leaves())
    wanted = expected(params)
    with dyn.no_grad():
        params[0].grad.mul_(2)
        params[1].grad.zero_()
    close(arrays(params), [2 * wanted[0], 0 * wanted[1]])


def test_a_parameter_that_has_moved_since():
    """The gradient is that at the point where backward was called."""
    params = walked(leaves())
    wanted = expected(params)
    with dyn.no_grad():
        params[0].mul_(0)
    close(arrays(params), wanted)


def test_a_tracer_does_not_stay_behind():
    params = walked(leaves())
    wanted = expected(params)
    found = jax.jit(lambda: params[0].grad.value * 1)()
    close([found, *arrays(params)], [wanted[0], *wanted])


def test_a_compiled_step_reads_them():
    params = walked(leaves())
    wanted = expected(params)

    @bp.compile
    def total(scale):
        return params[0].grad * scale

    close([total(3.0).value, *arrays(params)], [3 * wanted[0], *wanted])


def test_a_compiled_step_gives_away_what_they_read():
    p = leaves()[0]
    for _ in range(3):
        p.grad = None
        (p**3).sum().backward()
    before = p.value
    wanted = 3 * before**2

    @bp.compile
    def shrink():
        with dyn.no_grad():
            p.mul_(0.5)

    shrink()
    assert before.is_deleted()
    close(arrays([p]), [wanted])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copied):
    params = walked(leaves())
    wanted = expected(params)
    close(arrays(list(map(copied, params))), wanted)
    params = walked(params)
    close([copied(p.grad).value for p in params], wanted)


def test_those_that_nobody_wants_are_dropped():
    """With what they would have read, and without the garbage collector."""
    params = walked(leaves())
    walk = weakref.ref(params[0]._grad._storage.walk)
    params[0].grad = None
    assert walk() is not None
    params[1].grad = None
    assert walk() is None


def test_a_large_walk_does_not_wait(monkeypatch):
    """It would keep from being freed what backward frees."""
    monkeypatch.setattr(whole, "LIGHT", 100)
    monkeypatch.setattr(whole, "_seen", {})
    params = walked(leaves())
    assert not any(map(waits, params))
    close(arrays(params), expected(params))


def test_what_looks_for_nan_does_not_wait():
    params = walked(leaves())
    with jax.debug_nans(True):
        assert not any(map(waits, walked(params)))


def test_two_threads_ask_at_once():
    params = walked(leaves())
    wanted = expected(params)
    found = [None, None]

    def ask(i):
        found[i] = np.asarray(params[i].grad.value)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(found, wanted)
