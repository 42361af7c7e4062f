"""The recorded graph: how it is walked, freed and shared, and that it is what the rules say."""

import gc
import subprocess
import sys
import threading
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import numpy as dnp
from backpass.dynamic import whole
from backpass.dynamic.nn import functional as F

POINT = np.array([[0.3, -0.7, 1.2], [0.9, 0.1, -0.4]], np.float32)


def gradients(fun, *arrays):
    """Of the sum of `fun`'s results, by the tape, by our static compiler and by JAX."""
    leaves = [dyn.tensor(x, requires_grad=True) for x in arrays]
    fun(dnp, *leaves).sum().backward()
    tape = [np.asarray(x.grad.value) for x in leaves]
    places = tuple(range(len(arrays)))

    def total(*xs):
        return fun(jnp, *xs).sum()

    return tape, bp.grad(total, places)(*arrays), jax.grad(total, places)(*arrays)


SQUARE = POINT @ POINT.T + 2 * np.eye(2, dtype=np.float32)
FUNCTIONS = {
    "svd": (lambda np, x: np.linalg.svd(x, full_matrices=False)[1], POINT),
    "cholesky": (lambda np, x: np.linalg.cholesky(x + x.T), SQUARE),
    "solve": (lambda np, x, y: np.linalg.solve(x, y), SQUARE, POINT),
    "logsumexp": (lambda np, x: np.logaddexp(x, 2 * x), POINT),
    "sort": (lambda np, x: np.sort(x, axis=1) * np.arange(3.0), POINT),
    "interp": (lambda np, x: np.interp(x, np.arange(3.0) - 1, np.array([1.0, 3.0, 2.0])), POINT),
    "fft": (lambda np, x: np.abs(np.fft.fft(x)) ** 2, POINT),
    "quantile": (lambda np, x: np.quantile(x, 0.3, axis=1), POINT),
    "tensordot": (lambda np, x, y: np.tensordot(x, y, axes=([1], [1])), POINT, POINT + 1),
    "pad": (lambda np, x: np.pad(x, ((1, 1), (0, 2))) ** 2, POINT),
    "split": (lambda np, x: np.split(x, [1], axis=1)[1] ** 3, POINT),
    "keywords": (lambda np, x: np.var(x, axis=1, ddof=1, keepdims=True), POINT),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_jax_numpy(name):
    tape, static, jax_ = gradients(*FUNCTIONS[name])
    for a, b, c in zip(tape, static, jax_):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-5)


def test_functions_that_ask_for_values():
    x = dyn.tensor(POINT, requires_grad=True)
    (dnp.extract(x > 0, x) ** 2).sum().backward()
    np.testing.assert_allclose(x.grad.value, np.where(POINT > 0, 2 * POINT, 0), rtol=1e-6)
    assert [int(i) for i in dnp.nonzero(x > 1)[0]] == [0]


def test_the_package_has_it_when_asked():
    """Who does not use the dynamic mode does not import it."""
    program = (
        "import sys, backpass as bp; before = 'backpass.dynamic' in sys.modules; "
        "print(before, bp.dynamic.tensor(2.0).item(), hasattr(bp, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "2.0", "False"], done.stderr


def network(width=8, layers=3):
    dyn.manual_seed(0)
    parts = []
    for _ in range(layers):
        parts += [dyn.nn.Linear(width, width), dyn.nn.Tanh()]
    return dyn.nn.Sequential(*parts)


def test_one_program_walks_as_the_nodes_do():
    """The first walk of a structure goes node by node, the next ones are one program."""
    model, x = network(), dyn.tensor(np.ones((4, 8), np.float32))
    found = []
    for _ in range(3):
        model.zero_grad()
        (model(x) ** 2).mean().backward()
        found.append([np.asarray(p.grad.value) for p in model.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_one_program_sums_into_what_is_there():
    model, x = network(), dyn.tensor(np.ones((4, 8), np.float32))
    for _ in range(4):
        (model(x) ** 2).mean().backward()
    summed = [np.asarray(p.grad.value) for p in model.parameters()]
    model.zero_grad()
    (model(x) ** 2).mean().backward()
    for a, p in zip(summed, model.parameters()):
        np.testing.assert_allclose(a, 4 * np.asarray(p.grad.value), rtol=1e-5)


def test_structures_are_told_apart():
    """The same operations on other operands are another walk."""
    for swap in (False, True, False, True):
        a, b = (dyn.tensor(v, requires_grad=True) for v in (2.0, 5.0))
        first, second = (b, a) if swap else (a, b)
        (first * first * second).backward()
        assert first.grad.item() == 2 * first.item() * second.item()
        assert second.grad.item() == first.item() ** 2


def test_what_is_dropped_is_freed():
    x = dyn.tensor(POINT, requires_grad=True)
    y = x.exp()
    node = weakref.ref(y.grad_fn)
    loss = (y * y).sum()
    gc.disable()  # by counting references alone: there are no cycles
    try:
        del y, loss
        assert node() is None
    finally:
        gc.enable()


def test_backward_frees_what_was_saved():
    x = dyn.tensor(POINT, requires_grad=True)
    y = x.exp()
    array = weakref.ref(y.value)
    loss = (y * y).sum()
    del y
    assert array() is not None
    loss.backward()
    assert array() is None


@pytest.fixture
def small_heap():
    """Collections within look at what the test makes, and not at what other tests have left."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_ten_thousand_steps_leak_nothing(small_heap):
    w = dyn.tensor(np.ones(4, np.float32), requires_grad=True)
    opt = dyn.optim.SGD([w], lr=1e-3)

    def step():
        opt.zero_grad()
        (w * w).sum().backward()
        opt.step()

    for _ in range(100):
        step()
    gc.collect()
    before = len(gc.get_objects()), len(whole._seen)
    for _ in range(10_000):
        step()
    gc.collect()
    assert len(gc.get_objects()) - before[0] < 100
    assert len(whole._seen) == before[1]


def test_a_deep_chain(small_heap):
    x = dyn.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 0.0
    y.backward()
    assert x.grad.item() == 1.0
    del y


def test_threads_do_not_mix():
    found = {}

    def run(k):
        with dyn.no_grad() if k % 2 else dyn.enable_grad():
            w = dyn.tensor(float(k + 1), requires_grad=True)
            for _ in range(50):
                y = w * w * w
                if k % 2:
                    assert not y.requires_grad
                else:
                    w.grad = None
                    y.backward()
            found[k] = w.grad

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dyn.is_grad_enabled()
    assert found[1] is None and found[3] is None
    assert found[0].item() == 3.0 and found[2].item() == 27.0


def test_a_leaf_keeps_no_graph():
    """`create_graph` ties `.grad` to the graph, as in PyTorch; without it nothing does."""
    w = dyn.tensor(POINT, requires_grad=True)
    (w**3).sum().backward()
    assert w.grad.grad_fn is None
    assert not w.grad.requires_grad


def test_the_grad_of_a_computed_tensor_warns():
    y = dyn.tensor(POINT, requires_grad=True) * 2
    with pytest.warns(UserWarning, match="retain_grad"):
        assert y.grad is None
    y.retain_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert y.grad is None


def test_errors_tell_what_to_do():
    w = dyn.tensor(POINT, requires_grad=True)
    loss = (w * w).sum()
    loss.backward()
    with pytest.raises(bp.AutogradError, match=r"multiply a second time.*\n.*retain_graph=True"):
        loss.backward()
    with pytest.raises(
        bp.AutogradError, match=r"float32\[2, 3\] is at version 1, expected version 0"
    ):
        y = w * 1
        z = y * y
        y.add_(1)
        z.sum().backward()
    with pytest.raises(bp.AutogradError, match=r"one element, got \[2, 3\]"):
        (w * 2).backward()
    with pytest.raises(bp.AutogradError, match="does not require grad"):
        dyn.tensor(POINT).sum().backward()
    with pytest.raises(bp.AutogradError, match="got int32"):
        dyn.tensor([1], requires_grad=True)


def test_anomaly_mode_shows_where():
    w = dyn.tensor(0.0, requires_grad=True)
    with dyn.autograd.detect_anomaly():
        y = w.sqrt() * 0
        with pytest.raises(bp.AutogradError, match="test_graph.py"):
            y.backward()


def test_autocast_runs_products_in_the_narrow_type():
    w = dyn.tensor(POINT, requires_grad=True)
    with dyn.amp.autocast(dtype=jnp.bfloat16):
        y = w @ w.T
        z = y.softmax(-1)
    assert (y.dtype, z.dtype) == (jnp.bfloat16, np.float32)
    z.sum().backward()
    assert w.grad.dtype == np.float32
    with dyn.amp.autocast(enabled=False):
        assert (w @ w.T).dtype == np.float32


@pytest.mark.parametrize("kind", ["SGD", "Momentum", "Adam", "AdamW", "RMSprop", "Lion"])
def test_optimisers_train_and_go_back(kind):
    model, x = network(), dyn.tensor(np.ones((4, 8), np.float32))
    opt = getattr(dyn.optim, kind)(model.parameters(), lr=1e-3)

    def step():
        opt.zero_grad()
        loss = ((model(x) - 0.3) ** 2).mean()
        loss.backward()
        opt.step()
        return loss.item()

    losses = [step() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    model_state = {k: np.asarray(v.value) for k, v in model.state_dict().items()}
    opt_state = opt.state_dict()
    following = step()
    model.load_state_dict(model_state)
    opt.load_state_dict(opt_state)
    assert step() == following


def test_any_transformation_of_optax():
    optax = pytest.importorskip("optax")
    model, x = network(), dyn.tensor(np.ones((4, 8), np.float32))
    parts = optax.clip_by_global_norm(1.0), optax.adam(1e-2)
    opt = dyn.optim.Optax(model.parameters(), optax.chain(*parts))
    values = [p.value for p in model.parameters()]
    state = optax.chain(*parts).init(values)
    for _ in range(3):
        opt.zero_grad()
        ((model(x) - 0.3) ** 2).mean().backward()
        grads = [p.grad.value for p in model.parameters()]
        updates, state = optax.chain(*parts).update(grads, state, values)
        values = optax.apply_updates(values, updates)
        opt.step()
        for p, value in zip(model.parameters(), values):
            np.testing.assert_allclose(p.value, value, rtol=1e-6, atol=1e-7)


def test_a_wrong_state_changes_nothing():
    model = network()
    before = [np.asarray(p.value) for p in model.parameters()]
    state = model.state_dict()
    state["0.bias"] = dyn.tensor([1.0])
    with pytest.raises(bp.ArgumentError, match=r"0.bias has shape \[8\], the state \[1\]"):
        model.load_state_dict(state)
    with pytest.raises(bp.ArgumentError, match="missing"):
        model.load_state_dict({})
    for p, value in zip(model.parameters(), before):
        np.testing.assert_array_equal(p.value, value)


def test_dropout_of_a_seed():
    x = dyn.tensor(np.ones(1000, np.float32))
    dyn.manual_seed(3)
    first = F.dropout(x, 0.25)
    dyn.manual_seed(3)
    np.testing.assert_array_equal(first.value, F.dropout(x, 0.25).value)
    assert set(np.unique(first.value)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float(first.mean()) - 1) < 0.1
    assert F.dropout(x, 0.5, training=False) is x
