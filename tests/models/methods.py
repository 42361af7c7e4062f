"""Where gradients meet other methods: solvers, inference, meta-learning, gradients inside losses.

Each row is a function of a gradient transformation, `bp.grad` or `jax.grad`, that gives a loss (the
first argument is differentiated), and the loss's arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from jax.experimental.ode import odeint
from jax.scipy.linalg import cho_solve, solve_triangular

import backpass as bp
from models.comparison import draw
from models.networks import Init, Tree, conv, cross_entropy, labels, mlp, mlp_params

Grad = Callable[..., Any]


def plain(loss: Callable[..., Any]) -> Callable[[Grad], Callable[..., Any]]:
    """A loss that has no gradient inside."""
    return lambda grad: loss


# Solvers


def runge_kutta(p: list[Tree], x: Any) -> Any:
    """Fourth order under `scan`, the whole path in the loss."""

    def field(t: Any, x: Any) -> Any:
        return mlp(p, x) * jnp.cos(t)

    def step(x: Any, t: Any) -> tuple[Any, Any]:
        a = field(t, x)
        b = field(t + 0.05, x + 0.05 * a)
        c = field(t + 0.05, x + 0.05 * b)
        x = x + 0.1 / 6 * (a + 2 * b + 2 * c + field(t + 0.1, x + 0.1 * c))
        return x, x

    return jnp.mean(lax.scan(step, x, jnp.linspace(0, 0.5, 5))[1] ** 2)


def adaptive_ode(p: list[Tree], x: Any) -> Any:
    """JAX's Dormand-Prince solver: while loops, and an adjoint equation as a custom VJP."""
    path = odeint(lambda x, t, p: mlp(p, x) * jnp.cos(t), x, jnp.array([0.0, 0.5]), p)
    return jnp.sum(path[1] ** 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fixed_point(f: Callable[[Any, Any], Any], p: Any, x: Any) -> Any:
    """z with z = f(p, z), by iteration from x; its gradient is that of the implicit function."""

    def going(state: Any) -> Any:
        before, now, count = state
        return (jnp.abs(now - before).max() > 1e-13) & (count < 200)

    def step(state: Any) -> Any:
        _, now, count = state
        return now, f(p, now), count + 1

    return lax.while_loop(going, step, (x, f(p, x), 0))[1]


def _fixed_forward(f: Any, p: Any, x: Any) -> Any:
    z = fixed_point(f, p, x)
    return z, (p, z)


def _fixed_backward(f: Any, saved: Any, ct: Any) -> Any:
    p, z = saved
    _, by_z = jax.vjp(lambda z: f(p, z), z)
    _, by_p = jax.vjp(lambda p: f(p, z), p)
    u = fixed_point(lambda ct, u: ct + by_z(u)[0], ct, ct)
    return by_p(u)[0], jnp.zeros_like(z)


fixed_point.defvjp(_fixed_forward, _fixed_backward)


def deep_equilibrium(p: Tree, x: Any) -> Any:
    def layer(held: Any, z: Any) -> Any:
        p, x = held
        return jnp.tanh(0.5 * z @ p["w"] + x @ p["u"])

    z = fixed_point(layer, (p, x), jnp.zeros((x.shape[0], p["w"].shape[0])))
    return jnp.sum(z**2)


def unrolled_optimisation(grad: Grad) -> Callable[..., Any]:
    """Hyperparameters by the gradient of what five steps of momentum end in."""

    def loss(hyper: Tree, x: Any, y: Any) -> Any:
        def inner(w: Any) -> Any:
            return jnp.mean((jnp.tanh(x @ w) - y) ** 2) + hyper["decay"] * jnp.sum(w**2)

        def step(state: Any, _: Any) -> tuple[Any, None]:
            w, m = state
            m = hyper["momentum"] * m + grad(inner)(w)
            return (w - hyper["rate"] * m, m), None

        start = jnp.zeros(x.shape[1])
        (w, _), _ = lax.scan(step, (start, start), None, length=5)
        return jnp.mean((jnp.tanh(x @ w) - y) ** 2)

    return loss


# Inference


def gaussian_process(p: Tree, x: Any, y: Any) -> Any:
    """Negative log marginal likelihood, by one Cholesky factor."""
    scale, width, noise = (nn.softplus(p[k]) for k in ("scale", "width", "noise"))
    distance = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    kernel = scale * jnp.exp(-0.5 * distance / width**2) + (noise + 1e-3) * jnp.eye(len(x))
    factor = jnp.linalg.cholesky(kernel)
    fit = 0.5 * y @ cho_solve((factor, True), y)
    return fit + jnp.sum(jnp.log(jnp.diagonal(factor)))


def kalman_filter(p: Tree, ys: Any) -> Any:
    """Log-likelihood of observations under a linear Gaussian state-space model."""
    q = p["q"] @ p["q"].T + 0.1 * jnp.eye(2)
    r = p["r"] @ p["r"].T + 0.1 * jnp.eye(2)

    def step(state: Any, y: Any) -> tuple[Any, Any]:
        mean, cov = p["a"] @ state[0], p["a"] @ state[1] @ p["a"].T + q
        factor = jnp.linalg.cholesky(p["h"] @ cov @ p["h"].T + r)
        white = solve_triangular(factor, y - p["h"] @ mean, lower=True)
        gain = cho_solve((factor, True), p["h"] @ cov).T
        logp = -0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(factor)))
        return (mean + gain @ (y - p["h"] @ mean), cov - gain @ p["h"] @ cov), logp

    return -lax.scan(step, (jnp.zeros(2), jnp.eye(2)), ys)[1].sum()


def hidden_markov(p: Tree, observed: Any) -> Any:
    """Forward algorithm in logarithms."""
    move, emit = nn.log_softmax(p["move"], -1), nn.log_softmax(p["emit"], -1)

    def step(alpha: Any, y: Any) -> tuple[Any, None]:
        return nn.logsumexp(alpha[:, None] + move, axis=0) + emit[:, y], None

    first = nn.log_softmax(p["start"]) + emit[:, observed[0]]
    return -nn.logsumexp(lax.scan(step, first, observed[1:])[0])


def conditional_random_field(p: Tree, x: Any, tags: Any, lengths: Any) -> Any:
    """Linear chain: score of the tags less the log partition, padded steps left out."""
    unary, pair = x @ p["unary"], p["pair"]
    live = jnp.arange(x.shape[1]) < lengths[:, None]

    def one(unary: Any, tags: Any, live: Any) -> Any:
        def step(alpha: Any, now: Any) -> tuple[Any, None]:
            scores, is_live = now
            new = nn.logsumexp(alpha[:, None] + pair, axis=0) + scores
            return jnp.where(is_live, new, alpha), None

        total = nn.logsumexp(lax.scan(step, unary[0], (unary[1:], live[1:]))[0])
        chosen = jnp.sum(jnp.take_along_axis(unary, tags[:, None], 1)[:, 0] * live)
        return total - chosen - jnp.sum(pair[tags[:-1], tags[1:]] * live[1:])

    return jnp.mean(jax.vmap(one)(unary, tags, live))


def temporal_classification(p: Any, x: Any, target: Any) -> Any:
    """CTC: the forward recursion over labels with blanks between, under `scan`."""
    logp = nn.log_softmax(x @ p)
    extended = jnp.zeros(2 * target.shape[0] + 1, int).at[1::2].set(target)
    skip = jnp.where((extended != 0) & (extended != jnp.roll(extended, 2)), 0.0, -1e9)
    skip = skip.at[:2].set(-1e9)

    def step(alpha: Any, logp: Any) -> tuple[Any, None]:
        moved = jnp.stack(
            [
                alpha,
                jnp.roll(alpha, 1).at[0].set(-1e9),
                jnp.roll(alpha, 2).at[:2].set(-1e9) + skip,
            ]
        )
        return nn.logsumexp(moved, axis=0) + logp[extended], None

    first = jnp.full(extended.shape, -1e9).at[:2].set(logp[0, extended[:2]])
    return -nn.logsumexp(lax.scan(step, first, logp[1:])[0][-2:])


def linear_flow(p: list[Tree], x: Any) -> Any:
    """Invertible matrices with `slogdet` between couplings, as in Glow."""
    logdet = jnp.zeros(x.shape[0])
    for layer in p:
        x = x @ layer["w"]
        logdet += jnp.linalg.slogdet(layer["w"])[1]
        a, b = jnp.split(x, 2, -1)
        s, t = jnp.split(mlp(layer["net"], a), 2, -1)
        x = jnp.concatenate([a, b * nn.sigmoid(s + 2) + t], -1)
        logdet += nn.log_sigmoid(s + 2).sum(-1)
    return -jnp.mean(jax.scipy.stats.norm.logpdf(x).sum(-1) + logdet)


def hamiltonian_monte_carlo(grad: Grad) -> Callable[..., Any]:
    """Through a leapfrog path, each step of which is a gradient."""

    def loss(p: Tree, x: Any, v: Any) -> Any:
        def energy(x: Any) -> Any:
            return 0.5 * x @ (p["w"] @ p["w"].T) @ x + jnp.sum(jnp.cos(p["b"] * x))

        def leap(state: Any, _: Any) -> tuple[Any, None]:
            x, v = state
            v = v - 0.05 * grad(energy)(x)
            x = x + 0.1 * v
            return (x, v - 0.05 * grad(energy)(x)), None

        (x, v), _ = lax.scan(leap, (x, v), None, length=3)
        return energy(x) + 0.5 * v @ v

    return loss


# Gradients inside losses


def physics_informed(grad: Grad) -> Callable[..., Any]:
    """The residual of the heat equation, by derivatives of the network in t and twice in x."""

    def loss(p: list[Tree], points: Any) -> Any:
        def u(t: Any, x: Any) -> Any:
            return mlp(p, jnp.stack([t, x]))[0]

        def residual(point: Any) -> Any:
            t, x = point
            return grad(u, 0)(t, x) - 0.3 * grad(grad(u, 1), 1)(t, x)

        return jnp.mean(jax.vmap(residual)(points) ** 2)

    return loss


def meta_learning(grad: Grad) -> Callable[..., Any]:
    """MAML: each task takes two steps of its own from the shared parameters."""

    def loss(p: list[Tree], support: Any, query: Any) -> Any:
        def error(p: list[Tree], task: Any) -> Any:
            return jnp.mean((mlp(p, task[..., :2])[..., 0] - task[..., 2]) ** 2)

        def adapted(support: Any, query: Any) -> Any:
            own = p
            for _ in range(2):
                own = jax.tree.map(lambda w, g: w - 0.1 * g, own, grad(error)(own, support))
            return error(own, query)

        return jnp.mean(jax.vmap(adapted)(support, query))

    return loss


def per_example_clipping(grad: Grad) -> Callable[..., Any]:
    """Gradients of single examples by `vmap`, clipped and averaged, as in private training."""

    def loss(p: list[Tree], x: Any, y: Any) -> Any:
        def one(p: list[Tree], x: Any, y: Any) -> Any:
            return cross_entropy(mlp(p, x), y)

        each = jax.vmap(grad(one), in_axes=(None, 0, 0))(p, x, y)
        norm = jnp.sqrt(sum(jnp.sum(g.reshape(len(x), -1) ** 2, 1) for g in jax.tree.leaves(each)))
        weight = jnp.minimum(1, 0.5 / norm)
        return sum(jnp.sum(jnp.tensordot(weight, g, 1) ** 2) for g in jax.tree.leaves(each))

    return loss


def score_matching(grad: Grad) -> Callable[..., Any]:
    """Hyvärinen's: the trace of the Hessian, by a gradient of each entry of the gradient."""

    def loss(p: list[Tree], x: Any) -> Any:
        def one(x: Any) -> Any:
            score = grad(lambda x: jnp.sum(mlp(p, x)))
            trace = sum(grad(lambda x, i=i: score(x)[i])(x)[i] for i in range(x.size))
            return trace + 0.5 * jnp.sum(score(x) ** 2)

        return jnp.mean(jax.vmap(one)(x))

    return loss


def molecular_forces(grad: Grad) -> Callable[..., Any]:
    """An energy of pairs within a cut-off, trained on energies and on forces."""

    def loss(p: list[Tree], x: Any, energy: Any, force: Any) -> Any:
        def potential(x: Any) -> Any:
            apart = x[:, None] - x[None]
            square = jnp.sum(apart**2, -1) + jnp.eye(len(x))
            r = jnp.sqrt(square)
            near = jnp.where(r < 2.5, 0.5 * (1 + jnp.cos(jnp.pi * r / 2.5)), 0)
            pairs = mlp(p, jnp.stack([r, 1 / r], -1), nn.silu)[..., 0]
            return jnp.sum(pairs * near * (1 - jnp.eye(len(x))))

        return (potential(x) - energy) ** 2 + jnp.mean((-grad(potential)(x) - force) ** 2)

    return loss


# Losses and layers


def distributional_values(p: list[Tree], x: Any, reward: Any) -> Any:
    """C51: the target's atoms are moved, and projected on the fixed ones."""
    atoms = jnp.linspace(-1.0, 1.0, 5)
    logits = mlp(p, x)
    moved = jnp.clip(reward[:, None] + 0.9 * atoms, -1.0, 1.0)
    place = (moved + 1) / 0.5
    low = jnp.floor(place).astype(int)
    part = nn.softmax(lax.stop_gradient(logits[::-1]))
    target = jax.vmap(
        lambda low, place, part: (
            jnp.zeros(6).at[low].add(part * (low + 1 - place)).at[low + 1].add(part * (place - low))
        )[:5]
    )(low, place, part)
    return -jnp.mean(jnp.sum(target * nn.log_softmax(logits), -1))


def quantile_values(p: list[Tree], x: Any, target: Any) -> Any:
    """QR-DQN: the quantile Huber loss between all pairs."""
    values = mlp(p, x)
    levels = (jnp.arange(values.shape[-1]) + 0.5) / values.shape[-1]
    apart = target[:, None, :] - values[:, :, None]
    huber = jnp.where(jnp.abs(apart) < 1, 0.5 * apart**2, jnp.abs(apart) - 0.5)
    return jnp.mean(jnp.abs(levels[:, None] - (apart < 0)) * huber)


def policy_gradient(p: list[Tree], x: Any, action: Any, reward: Any) -> Any:
    """PPO's clipped ratio with generalised advantages, by a reversed `scan`."""
    out = mlp(p, x)
    logp, value = nn.log_softmax(out[:, :-1]), out[:, -1]
    delta = reward[:-1] + 0.9 * value[1:] - value[:-1]
    advantage = lax.scan(lambda a, d: (d + 0.8 * a,) * 2, 0.0, delta, reverse=True)[1]
    advantage = lax.stop_gradient(advantage)
    chosen = jnp.take_along_axis(logp, action[:, None], 1)[:-1, 0]
    ratio = jnp.exp(chosen - lax.stop_gradient(chosen) + 0.1)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    entropy = -jnp.sum(jnp.exp(logp) * logp, -1).mean()
    fit = jnp.mean((value[:-1] - lax.stop_gradient(value[:-1] + advantage + 1)) ** 2)
    return fit - gain.mean() - 0.01 * entropy


def contrastive(p: Tree, image: Any, text: Any) -> Any:
    """CLIP: both encoders, a learned temperature, cross-entropy both ways."""
    a, b = image @ p["image"], text @ p["text"]
    a = a / jnp.linalg.norm(a, axis=-1, keepdims=True)
    b = b / jnp.linalg.norm(b, axis=-1, keepdims=True)
    logits = jnp.exp(p["temperature"]) * a @ b.T
    same = jnp.arange(len(image))
    return 0.5 * (cross_entropy(logits, same) + cross_entropy(logits.T, same))


def quantised(p: list[Tree], x: Any) -> Any:
    """Weights on eight levels, activations on four, gradients straight through."""

    def levels(x: Any, n: int) -> Any:
        scale = lax.stop_gradient(jnp.max(jnp.abs(x))) / n
        return bp.straight_through(lambda x: jnp.round(x / scale) * scale)(x)

    for layer in p:
        x = jnp.tanh(levels(x, 4) @ levels(layer["w"], 8) + layer["b"])
    return jnp.sum(x**2)


def spiking(p: Tree, x: Any) -> Any:
    """Leaky neurons under `scan`, whose step has the slope of a fast sigmoid."""
    spike = bp.surrogate(lambda v: jnp.where(v > 0, 1.0, 0.0), lambda v: v / (1 + jnp.abs(v)))

    def tick(v: Any, x: Any) -> tuple[Any, Any]:
        s = spike(v - 1)
        return p["leak"] * v * (1 - s) + x @ p["w"], s

    spikes = lax.scan(tick, jnp.zeros((x.shape[1], p["w"].shape[1])), x)[1]
    return jnp.mean((spikes.mean(0) @ p["out"]) ** 2)


def spectral_norm_by_svd(p: Tree, x: Any) -> Any:
    """The largest singular value, and a nuclear norm besides."""
    u, s, vt = jnp.linalg.svd(p["w"], full_matrices=False)
    low_rank = (u[:, :2] * s[:2]) @ vt[:2]
    return jnp.sum(jnp.tanh(x @ p["w"] / s[0]) ** 2) + 0.1 * s.sum() + jnp.sum((x @ low_rank) ** 2)


def selective_state_space(p: Tree, x: Any) -> Any:
    """Mamba: step sizes, inputs and outputs depend on the input; `associative_scan` over time."""
    h = jnp.stack([jnp.roll(x, i, 0).at[:i].set(0.0) * p["conv"][i] for i in range(3)]).sum(0)
    h = nn.silu(h)
    step = nn.softplus(h @ p["step"] + p["bias"])
    b, c = h @ p["b"], h @ p["c"]
    decay = jnp.exp(step[..., None] * -jnp.exp(p["a"]))
    drive = (step * h)[..., None] * b[:, None, :]

    def combine(s: Any, t: Any) -> Any:
        return s[0] * t[0], t[0] * s[1] + t[1]

    _, state = lax.associative_scan(combine, (decay, drive))
    return jnp.mean(((jnp.einsum("tdn,tn->td", state, c) + p["d"] * h) * nn.silu(x)) ** 2)


def checkpointed_residuals(p: list[Tree], x: Any) -> Any:
    """`bp.checkpoint` around each block, with a convolution and a setting inside."""

    def block(w: Tree, x: Any, act: Callable[[Any], Any]) -> Any:
        return x + conv(act(conv(x, w["a"])), w["b"])

    for w in p:
        x = bp.checkpoint(block)(w, x, jnp.tanh)
    return jnp.mean(x**2)


class Frame:
    """Parameters by name, as Haiku holds them: the running function asks for them."""

    stack: list[tuple[Tree, Any]] = []


def parameter(name: str, *shape: int) -> Any:
    """Make a parameter in `init`, find it in `apply`."""
    params, rng = Frame.stack[-1]
    if rng is not None:
        params[name] = jnp.asarray(0.5 * rng.normal(size=shape))
    return params[name]


def transformed(f: Callable[..., Any]) -> tuple[Callable[..., Tree], Callable[..., Any]]:
    """`(init, apply)` of a function that asks for parameters, as `hk.transform` gives them."""

    def call(params: Tree, rng: Any, *args: Any) -> Any:
        Frame.stack.append((params, rng))
        try:
            return f(*args)
        finally:
            Frame.stack.pop()

    def init(seed: int, *args: Any) -> Tree:
        params: Tree = {}
        call(params, np.random.default_rng(seed), *args)
        return params

    return init, lambda params, *args: call(params, None, *args)


def linear(name: str, x: Any, size: int) -> Any:
    return x @ parameter(f"{name}/w", x.shape[-1], size) + parameter(f"{name}/b", size)


def closures(x: Any) -> Any:
    h = nn.relu(linear("first", x, 5))
    for i in range(2):
        h = h + jnp.tanh(linear(f"block_{i}", h, 5))
    return jnp.mean(linear("last", h, 1) ** 2)


def table() -> dict[str, tuple[Callable[[Grad], Callable[..., Any]], tuple[Any, ...]]]:
    """Rows, made in float64."""
    p = Init(0)
    x, image = draw(1, 4, 3), draw(2, 1, 5, 5, 3)
    net = partial(mlp_params, p)
    init, apply = transformed(closures)
    coupling = {"w": p(4, 4) + 2 * jnp.eye(4), "net": net(2, 5, 4)}
    kalman = {"a": p(2, 2), "h": p(2, 2), "q": p(2, 2), "r": p(2, 2)}
    mamba = {
        **{"conv": p(3, 4), "step": p(4, 4), "bias": p(4), "a": p(4, 2), "d": p(4)},
        **{"b": p(4, 2), "c": p(4, 2)},
    }
    return {
        "runge-kutta": (plain(runge_kutta), (net(3, 5, 3), x)),
        "adaptive ode": (plain(adaptive_ode), (net(3, 5, 3), x)),
        "deep equilibrium": (plain(deep_equilibrium), ({"w": p(4, 4), "u": p(3, 4)}, x)),
        "unrolled optimisation": (
            unrolled_optimisation,
            ({"rate": 0.3, "momentum": 0.5, "decay": 0.1}, x, draw(3, 4)),
        ),
        "gaussian process": (
            plain(gaussian_process),
            ({"scale": p(), "width": p(), "noise": p()}, draw(4, 6, 2), draw(5, 6)),
        ),
        "kalman filter": (plain(kalman_filter), (kalman, draw(6, 5, 2))),
        "hidden markov": (
            plain(hidden_markov),
            ({"start": p(3), "move": p(3, 3), "emit": p(3, 4)}, labels(7, 4, 6)),
        ),
        "conditional random field": (
            plain(conditional_random_field),
            (
                {"unary": p(3, 4), "pair": p(4, 4)},
                draw(8, 2, 5, 3),
                labels(9, 4, 2, 5),
                jnp.array([5, 3]),
            ),
        ),
        "ctc": (plain(temporal_classification), (p(3, 4), draw(10, 6, 3), jnp.array([2, 2, 1]))),
        "linear flow": (plain(linear_flow), ([coupling, coupling], draw(11, 3, 4))),
        "hamiltonian monte carlo": (
            hamiltonian_monte_carlo,
            ({"w": p(3, 3), "b": p(3)}, draw(12, 3), draw(13, 3)),
        ),
        "physics-informed": (physics_informed, (net(2, 5, 1), draw(14, 6, 2))),
        "meta-learning": (meta_learning, (net(2, 4, 1), draw(15, 2, 5, 3), draw(16, 2, 5, 3))),
        "per-example clipping": (per_example_clipping, (net(3, 4, 2), x, labels(17, 2, 4))),
        "score matching": (score_matching, (net(3, 5, 1), x)),
        "molecular forces": (
            molecular_forces,
            (net(2, 5, 1), draw(18, 4, 3), 0.3, draw(19, 4, 3)),
        ),
        "distributional values": (
            plain(distributional_values),
            (net(3, 5), x, draw(20, 4, low=-0.3, high=0.3)),
        ),
        "quantile values": (plain(quantile_values), (net(3, 5), x, draw(21, 4, 3))),
        "policy gradient": (
            plain(policy_gradient),
            (net(3, 5, 4), draw(22, 6, 3), labels(23, 3, 6), draw(24, 6)),
        ),
        "contrastive": (
            plain(contrastive),
            (
                {"image": p(3, 4), "text": p(5, 4), "temperature": jnp.asarray(0.5)},
                x,
                draw(25, 4, 5),
            ),
        ),
        "quantised": (plain(quantised), (net(3, 5, 2), x)),
        "spiking": (
            plain(spiking),
            ({"leak": jnp.asarray(0.9), "w": 2 + p(3, 4), "out": p(4, 2)}, draw(26, 6, 2, 3)),
        ),
        "spectral norm by svd": (plain(spectral_norm_by_svd), ({"w": p(3, 4)}, x)),
        "selective state space": (plain(selective_state_space), (mamba, draw(27, 6, 4))),
        "checkpointed residuals": (
            plain(checkpointed_residuals),
            ([{"a": p(3, 3, 3, 4), "b": p(1, 1, 4, 3)} for _ in range(2)], image),
        ),
        "closures": (plain(apply), (init(0, x), x)),
    }


with jax.enable_x64(True):
    TABLE = table()
