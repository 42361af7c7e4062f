"""Every optimiser and loss of Optax in a compiled step: the same parameters and state as JAX's."""

import jax
import jax.numpy as jnp
import optax
import pytest

import backpass as bp
from models.comparison import assert_close, batches, draw
from models.networks import Init, labels, mlp, mlp_params

OPTIMISERS = {
    **{
        name: getattr(optax, name)(1e-2)
        for name in (
            "sgd adam adamw adamax adamaxw amsgrad adabelief adafactor adagrad adadelta lamb lars "
            "lion nadam nadamw novograd optimistic_gradient_descent radam rmsprop rprop sign_sgd "
            "sm3 yogi fromage"
        ).split()
    },
    "noisy sgd": optax.noisy_sgd(1e-2, key=0),
    "momentum": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)),
    "adaptive clip": optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(1e-2)),
    "schedule": optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-1, 2, 10)),
    "piecewise schedule": optax.sgd(optax.piecewise_constant_schedule(0.1, {2: 0.5})),
    "decay mask": optax.adamw(1e-2, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
    "multi transform": optax.multi_transform(
        {"w": optax.adam(1e-2), "b": optax.sgd(1e-1)},
        lambda tree: [dict.fromkeys(layer) | {k: k for k in layer} for layer in tree],
    ),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2),
    "lookahead inside": optax.chain(optax.trace(0.9), optax.scale(-1e-2), optax.ema(0.5)),
    "skip not finite": optax.apply_if_finite(optax.adam(1e-2), 3),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "schedule free": optax.contrib.schedule_free_adamw(1e-2),
    "muon": optax.contrib.muon(1e-2),
    "prodigy": optax.contrib.prodigy(1e-1),
    "dadapt": optax.contrib.dadapt_adamw(1e-1),
    "sophia-like sign": optax.chain(optax.scale_by_sign(), optax.scale(-1e-2)),
}


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(mlp(params, x), y).mean()


def steps(names, value_and_grad):
    """One step of each optimiser, each on parameters of its own."""

    def run(carry, x, y):
        found = {}
        for name in names:
            params, state = carry[name]
            _, grads = value_and_grad(loss)(params, x, y)
            updates, state = OPTIMISERS[name].update(grads, state, params)
            found[name] = optax.apply_updates(params, updates), state
        return found

    return run


@pytest.mark.parametrize("names", batches(OPTIMISERS, 8).values(), ids=batches(OPTIMISERS, 8))
def test_optimisers(names):
    params, x, y = mlp_params(Init(0), 3, 4, 2), draw(1, 5, 3), labels(2, 2, 5)
    ours = bp.compile(steps(names, bp.value_and_grad), debug=True)
    theirs = jax.jit(steps(names, jax.value_and_grad))
    found = expected = start = {name: (params, OPTIMISERS[name].init(params)) for name in names}
    for _ in range(3):
        found, expected = ours(found, x, y), theirs(expected, x, y)
    assert_close(found, expected, 1e-8)
    assert len(ours.explain().traces) == theirs._cache_size()
    for name in names:
        moved = jax.tree.map(lambda new, old: jnp.any(new != old), found[name][0], start[name][0])
        assert any(jax.tree.leaves(moved)), f"{name} tests nothing"


def test_lbfgs_with_its_line_search():
    """The line search is a while loop around the user's function, with JAX's own gradient."""
    tx, target = optax.lbfgs(), draw(1, 4)

    def loss(x):
        return jnp.sum((x - target) ** 4 + x**2)

    def step(transform):
        def run(x, state):
            value, grads = transform(loss)(x)
            updates, state = tx.update(grads, state, x, value=value, grad=grads, value_fn=loss)
            return optax.apply_updates(x, updates), state

        return run

    ours = bp.compile(step(bp.value_and_grad))
    theirs = jax.jit(step(jax.value_and_grad))
    found = expected = (jnp.zeros(4), tx.init(jnp.zeros(4)))
    for _ in range(4):
        found, expected = ours(*found), theirs(*expected)
    assert_close(found[0], expected[0], 1e-8)


def test_lookahead():
    tx = optax.lookahead(optax.sgd(1e-1), 2, 0.5)
    params = optax.LookaheadParams.init_synced(draw(1, 4))

    def step(transform):
        def run(params, state):
            grads = transform(lambda x: jnp.sum(x**4))(params.fast)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return run

    ours, theirs = bp.compile(step(bp.grad)), jax.jit(step(jax.grad))
    found = expected = (params, tx.init(params))
    for _ in range(3):
        found, expected = ours(*found), theirs(*expected)
    assert_close(found, expected)


LOSSES = {
    "cross entropy": lambda x, y: optax.softmax_cross_entropy(x, jax.nn.softmax(y)),
    "integer labels": lambda x, y: optax.softmax_cross_entropy_with_integer_labels(
        x, labels(1, 4, 3)
    ),
    "sigmoid": lambda x, y: optax.sigmoid_binary_cross_entropy(x, y > 0),
    "focal": lambda x, y: optax.sigmoid_focal_loss(x, (y > 0).astype(float)),
    "smoothed": lambda x, y: optax.softmax_cross_entropy(
        x, optax.smooth_labels(jax.nn.one_hot(labels(1, 4, 3), 4), 0.1)
    ),
    "poly": lambda x, y: optax.losses.poly_loss_cross_entropy(x, jax.nn.softmax(y)),
    "huber": optax.huber_loss,
    "log cosh": optax.log_cosh,
    "squared": optax.squared_error,
    "l2": optax.l2_loss,
    "hinge": lambda x, y: optax.hinge_loss(x, jnp.sign(y)),
    "multiclass hinge": lambda x, y: optax.losses.multiclass_hinge_loss(x, labels(1, 4, 3)),
    "perceptron": lambda x, y: optax.losses.multiclass_perceptron_loss(x, labels(1, 4, 3)),
    "cosine": lambda x, y: optax.cosine_distance(x, y, epsilon=1e-8),
    "kl": lambda x, y: optax.kl_divergence(jax.nn.log_softmax(x), jax.nn.softmax(y)),
    "kl of logs": lambda x, y: optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(x), jax.nn.log_softmax(y)
    ),
    "generalized kl": lambda x, y: optax.losses.generalized_kl_divergence(
        jax.nn.log_softmax(x), jax.nn.softmax(y)
    ),
    "ctc": lambda x, y: optax.ctc_loss(
        jnp.stack([x, y, x, x]), jnp.zeros((4, 3)), jnp.array([[1, 2]] * 4), jnp.zeros((4, 2))
    ),
    "ranking": lambda x, y: optax.losses.ranking_softmax_loss(x, jax.nn.softmax(y)),
    "ntxent": lambda x, y: optax.losses.ntxent(x, jnp.array([0, 0, 1])),
    "triplet": lambda x, y: optax.losses.triplet_margin_loss(x, y, -y),
    "dice": lambda x, y: optax.losses.dice_loss(x, (y > 0).astype(float)),
    "sparsemax": lambda x, y: optax.losses.sparsemax_loss(x, y > 0),
    "fenchel-young": lambda x, y: optax.losses.make_fenchel_young_loss(jax.nn.logsumexp)(
        x[0], y[0]
    ),
    "simplex": lambda x, y: optax.projections.projection_simplex(x[0]) * y[0],
}


@pytest.mark.parametrize("names", batches(LOSSES).values(), ids=batches(LOSSES))
def test_losses(names):
    def slopes(value_and_grad):
        return lambda x, y: {
            name: value_and_grad(lambda x: jnp.sum(LOSSES[name](x, y)))(x)  # noqa: B023
            for name in names
        }

    x, y = draw(1, 3, 4), draw(2, 3, 4)
    expected = jax.jit(slopes(jax.value_and_grad))(x, y)
    found = bp.compile(slopes(bp.value_and_grad), debug=True)(x, y)
    assert_close(found, expected)
    for name, (_, grad) in expected.items():
        assert jnp.any(grad != 0), f"{name} tests nothing"
