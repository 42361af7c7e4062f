"""`accumulate_steps`: the batch in parts, beside the batch as a whole."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax, nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import backpass as bp
from backpass.passes import DEFAULT, Fuse
from models.networks import TABLE

B, D = 8, 6


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def array(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


W, X, Y = array(0, D, D), array(1, B, D), array(2, B, D)


def trained(loss, value_and_grad):
    def step(params, *rest):
        found, grads = value_and_grad(loss)(params, *rest)
        return found, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step


def assert_same(step, args, steps=2, peer=None):
    """The step in parts gives what it gives as a whole, by a loop over `steps` parts."""
    ours = bp.compile(step, accumulate_steps=steps, debug=True)
    loops = [n for n in ours.lower(*args).graph.nodes if n.regions and n.regions[0].name == "part"]
    assert [loop.attrs["length"] for loop in loops] == [steps]
    found, expected = ours(*args), jax.jit(peer or step)(*args)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


NETWORKS = [
    *("mlp relu", "mlp dropout", "lenet", "lstm", "rnn masked", "state space by fft"),
    *("gpt scanned", "gpt checkpointed", "llama", "decode with cache"),
    *("vae", "vq-vae", "diffusion", "gan with gradient penalty", "deep sets"),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    loss, args = TABLE[name]
    peer = trained(loss, jax.value_and_grad)
    assert_same(trained(loss, bp.value_and_grad), args, peer=peer)


@pytest.mark.parametrize("name", ["gru both ways", "gpt scanned", "vae"])
def test_networks_differentiated_by_jax(name):
    loss, args = TABLE[name]
    assert_same(trained(loss, jax.value_and_grad), args)


def masked(w, x, keep):
    """A mean over what a mask leaves."""
    return jnp.sum(jnp.where(keep, jnp.tanh(x @ w), 0)) / jnp.sum(keep)


def padded(w, tokens):
    """A mean over tokens that are not padding; the mask comes from the samples themselves."""
    keep = tokens > 0
    return jnp.sum(jnp.where(keep, jnp.sum(w[tokens] ** 2, -1), 0)) / jnp.sum(keep)


def one_hot(w, x, label):
    return -jnp.mean(jnp.sum(nn.log_softmax(x @ w) * nn.one_hot(label, D), -1))


def picked(w, x, label):
    return -jnp.mean(nn.log_softmax(x @ w)[jnp.arange(B), label])


def time_major(w, x):
    """The samples are the second dimension."""
    return jnp.mean(lax.scan(lambda h, t: (jnp.tanh(h @ w + t), h), jnp.zeros((B, D)), x)[0] ** 2)


def joined(w, x, y):
    """Both views in one batch."""
    a, b = jnp.split(jnp.concatenate([x, y]) @ w, 2)
    return jnp.mean((a - b) ** 2)


def flattened(w, x):
    return jnp.mean(jnp.tanh(x.reshape(-1, D) @ w).reshape(B, -1).sum(1) ** 2)


def mapped(w, x):
    """A loop over the samples themselves."""
    return jnp.mean(lax.map(lambda row: jnp.tanh(row @ w).sum(), x))


def added_up(w, x):
    """A loop over the samples that adds up."""
    return lax.fori_loop(0, B, lambda i, s: s + jnp.sum(x[i] @ w) ** 2, 0.0)


def summed_by_scan(w, x):
    return lax.scan(lambda s, row: (s + jnp.sum(jnp.tanh(row @ w)), None), 0.0, x)[0]


def decayed(w, x):
    """Each sample's share is in a sum that is halved from step to step."""

    def step(total, t):
        return total / 2 + jnp.tanh(t @ w).sum(0), None

    return lax.scan(step, jnp.zeros(D), x)[0].sum()


def regularised(w, x):
    return jnp.mean((x @ w) ** 2) + 1e-2 * jnp.sum(w**2)


def branched(w, x):
    return jnp.mean(lax.cond(w[0, 0] > 0, jnp.tanh, lambda h: 2 * h, x @ w))


def twice(w, x):
    return lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w), x).sum()


def convolved(w, x):
    out = lax.conv_general_dilated(x.reshape(B, 1, D, 1), w.reshape(D, 1, D, 1), (1, 1), "SAME")
    return jnp.mean(lax.reduce_window(out, -jnp.inf, lax.max, (1, 1, 2, 1), (1, 1, 2, 1), "SAME"))


def stacked(w, x):
    """Joined in a new dimension in front of the samples and behind, copied, and taken apart."""
    a, b = lax.unstack(jnp.stack([x @ w, x], axis=-1), axis=-1)
    return jnp.mean(jnp.tile(jnp.stack([a, jnp.tanh(b)]), (1, 2, 3)) ** 2)


LABEL = np.arange(B) % D
LOSSES = {
    "masked": (masked, (X, X > 0.3)),
    "padded": (padded, (np.arange(B * 3).reshape(B, 3) % D,)),
    "one-hot": (one_hot, (X, LABEL)),
    "picked": (picked, (X, LABEL)),
    "time-major": (time_major, (array(3, 3, B, D),)),
    "decayed": (decayed, (array(3, 3, B, D),)),
    "joined": (joined, (X, Y)),
    "flattened": (flattened, (array(4, B, 4, D),)),
    "mapped": (mapped, (X,)),
    "summed by scan": (summed_by_scan, (X,)),
    "regularised": (regularised, (X,)),
    "branched": (branched, (X,)),
    "twice": (twice, (X,)),
    "convolved": (convolved, (X,)),
    "stacked": (stacked, (X,)),
}


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, steps):
    loss, rest = LOSSES[name]
    peer = trained(loss, jax.value_and_grad)
    assert_same(trained(loss, bp.value_and_grad), (W, *rest), steps, peer)


def test_values_of_samples_and_of_all_come_back():
    def step(w, x):
        h = x @ w
        of_all = (h.max(), h.min(0), jnp.any(h > 3), jnp.all(h > -9), jnp.prod(h.sum(1)))
        counts = jnp.sum(h > 0, dtype=jnp.int32), jnp.sum(h > 0, axis=0)
        return h, h.T, jnp.argmax(h, 1), of_all, counts, x, h.sum(1) - h.sum(1).mean()

    assert_same(step, (W, X), 4)


def test_an_optimiser_after_clipping():
    optimiser = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2))

    def step(value_and_grad):
        def run(w, state, x):
            loss, grad = value_and_grad(regularised)(w, x)
            updates, state = optimiser.update(grad, state, w)
            return optax.apply_updates(w, updates), state, loss

        return run

    args = W, optimiser.init(W), X
    assert_same(step(bp.value_and_grad), args, 4, step(jax.value_and_grad))


def test_narrow_gradients_are_added_up_in_float32():
    w, x = jnp.bfloat16(W), jnp.bfloat16(array(5, 64, D))
    step = bp.compile(lambda w, x: bp.grad(lambda w: jnp.sum(x @ w))(w), accumulate_steps=32)
    wide = jnp.broadcast_to(x.astype(jnp.float32).sum(0)[:, None], (D, D))
    np.testing.assert_allclose(step(w, x).astype(np.float32), wide, rtol=2**-7)


def test_a_custom_rule_is_one_for_a_part():
    @jax.custom_vjp
    def pinned(w, x):
        return jnp.sin(x @ w)

    def backward(kept, ct):
        w, x = kept
        return 3 * x.T @ ct, ct @ w.T

    pinned.defvjp(lambda w, x: (pinned(w, x), (w, x)), backward)
    ours = bp.compile(lambda w, x: jnp.sum(pinned(w, x) ** 2), accumulate_steps=2)
    expected = jax.grad(lambda w, x: jnp.sum(pinned(w, x) ** 2))(W, X)
    np.testing.assert_allclose(jax.grad(ours)(W, X), expected, rtol=1e-9)
    np.testing.assert_allclose(bp.grad(ours)(W, X), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "option", [{"health": True}, {"debug": "nan"}, {"memory_budget": "1GiB"}], ids=str
)
def test_other_options(option):
    step = trained(regularised, bp.value_and_grad)
    found = bp.compile(step, accumulate_steps=4, **option)(W, X)
    found = found[0] if "health" in option else found
    expected = step(W, X)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(x, y, rtol=1e-9)


@pytest.mark.parametrize("given", [True, False])
def test_each_device_has_its_share_of_every_part(given):
    mesh = jax.make_mesh((4,), ("data",))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    args = jax.device_put(W, whole), jax.device_put(array(6, 32, D), rows)
    options = {"in_shardings": (whole, rows), "out_shardings": whole} if given else {}
    step = trained(regularised, bp.value_and_grad)
    ours = bp.compile(step, accumulate_steps=4, **options).lower(*args).compile()
    assert {each.kind for each in ours.collectives} <= {"all-reduce"}
    for x, y in zip(jax.tree.leaves(ours(*args)), jax.tree.leaves(step(*args))):
        np.testing.assert_allclose(x, y, rtol=1e-9)


@pytest.mark.parametrize("rows", [32, 8])
def test_what_is_told_of_a_batch_holds_for_its_parts(rows):
    """A constraint on the samples; two of them can't lie on four devices."""
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    whole, over = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    step = trained(
        lambda w, x: jnp.mean(lax.with_sharding_constraint(jnp.tanh(x @ w), over) ** 2),
        bp.value_and_grad,
    )
    args = jax.device_put(W, whole), jax.device_put(array(6, rows, D), over)
    ours = bp.compile(step, accumulate_steps=4)
    if rows == 8:
        with pytest.raises(bp.BatchError, match="divided among 4 devices"):
            ours(*args)
        return
    for x, y in zip(jax.tree.leaves(ours(*args)), jax.tree.leaves(step(*args))):
        np.testing.assert_allclose(x, y, rtol=1e-9)


def normalised(w, x):
    h = x @ w
    return jnp.mean(jnp.tanh((h - h.mean(0)) / (h.std(0) + 1e-3)) ** 2)


def contrasted(w, x):
    h = x @ w
    return -jnp.mean(jnp.diag(nn.log_softmax(h @ h.T)))


def rooted(w, x):
    return jnp.sqrt(jnp.mean((x @ w) ** 2))


def shifted(w, x):
    return jnp.mean((x[1:] - x[:-1] @ w) ** 2)


def chained(w, x):
    return lax.scan(lambda h, row: (jnp.tanh(h @ w + row), None), 0 * w[0], x)[0].sum()


@pytest.mark.parametrize("loss", [normalised, contrasted, rooted, shifted, chained])
def test_samples_that_depend_on_each_other_are_refused(loss):
    step = bp.compile(lambda w, x: trained(loss, bp.value_and_grad)(w, x), accumulate_steps=4)
    line = loss.__code__.co_firstlineno
    with pytest.raises(bp.BatchError, match=r"args\[1\] f64\[8,6\]") as met:
        step(W, X)
    told = re.search(r"test_accumulate.py:(\d+)", str(met.value))
    assert line < int(told[1]) <= line + 3


def deep_normalised(p, x, y):
    for w in p:
        x = x @ w
        x = nn.relu((x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5))
    return jnp.mean((x - y) ** 2)


STEPS = {
    "update": lambda loss: trained(loss, bp.value_and_grad),
    "gradients": bp.value_and_grad,
    "by jax": jax.value_and_grad,
}


@pytest.mark.parametrize("made", STEPS)
@pytest.mark.parametrize("loss", [normalised, contrasted, shifted, chained, deep_normalised])
def test_features_are_no_samples(loss, made):
    """Each of them may be done by itself, but a part of them is no part of the batch."""
    w, x = array(3, 8, 8), array(4, 16, 8)
    args = ([w, w, w], x, array(5, 16, 8)) if loss is deep_normalised else (w, x)
    for steps in (2, 4, 8):
        with pytest.raises(bp.BatchError, match=r"args\[[12]\] f64\[16,8\] in parts of .* 0"):
            bp.compile(STEPS[made](loss), accumulate_steps=steps).lower(*args)


def test_a_batch_that_has_no_such_parts():
    step = bp.compile(trained(regularised, bp.value_and_grad), accumulate_steps=7)
    with pytest.raises(bp.BatchError, match=r"7 divides.* are \[6, 8\]"):
        step(W, X)


def deep(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


def parts_of(stages):
    loops = [n for n in stages[-1].graph.nodes if n.regions and n.regions[0].name == "part"]
    return loops[0].attrs["length"] if loops else 1


def test_as_many_parts_as_the_budget_asks_for():
    params, x = [array(i, 16, 16) for i in range(4)], array(9, 512, 16)
    step = trained(deep, bp.value_and_grad)
    compiled = bp.compile(step).lower(params, x).compile()
    peak = bp.compile(step, memory_budget="1GiB").lower(params, x).compile().plan.measured_bytes
    least = sum(leaf.nbytes for leaf in [*params, *params, x])
    expected = compiled(params, x)
    for budget, parts in ((peak, {1}), (least + 40_000, {4, 8, 16, 32, 64})):
        ours = bp.compile(step, accumulate_steps="auto", memory_budget=budget)
        found = ours.lower(params, x).compile()
        assert parts_of(found.stages) == found.accumulate_steps in parts
        assert found.plan.measured_bytes <= budget
        for a, b in zip(jax.tree.leaves(found(params, x)), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_no_budget_asks_for_no_parts():
    step = trained(regularised, bp.value_and_grad)
    lowered = bp.compile(step, accumulate_steps="auto").lower(W, X)
    assert parts_of(lowered.stages) == lowered.accumulate_steps == 1


def test_the_number_of_parts_is_told():
    lowered = bp.compile(trained(regularised, bp.value_and_grad), accumulate_steps=2).lower(W, X)
    assert lowered.accumulate_steps == 2 and "in 2 parts of the batch" in str(lowered)


def test_parts_that_can_not_be_are_no_way_to_fit():
    step = trained(normalised, bp.value_and_grad)
    with pytest.raises(bp.BudgetError):
        bp.compile(step, accumulate_steps="auto", memory_budget=100)(W, X)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "many"])
def test_a_number_of_steps_that_is_none(steps):
    with pytest.raises(bp.ArgumentError, match="accumulate_steps"):
        bp.compile(regularised, accumulate_steps=steps)


@pytest.mark.parametrize("rows, chunk, size", [(24, 3, 3), (28, 4, 1), (28, 5, 7)])
def test_a_loss_by_rows_takes_rows_of_one_part_at_a_time(rows, chunk, size):
    """As many of a part's as divide it, or all of them where these would be few."""
    labels = np.arange(rows) % 40
    args = array(3, D, 40), array(4, rows, D)

    def loss(w, x):
        logs = nn.log_softmax(x @ w)
        return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()

    fuse = Fuse(chunk=chunk, least=1)
    passes = [fuse if isinstance(each, Fuse) else each for each in DEFAULT]
    ours = bp.compile(trained(loss, bp.value_and_grad), passes=passes, accumulate_steps=4)
    graph = ours.lower(*args).graph
    made = {v.shape for n in graph.walk() for v in n.outputs}
    assert {shape[0] for shape in made if shape[1:] == (40,)} == {size, D}  # the gradient has D
    found, expected = ours(*args), jax.jit(trained(loss, jax.value_and_grad))(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
