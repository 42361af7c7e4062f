"""`bp.compile(health=True)`: states that were planted, every way to call it, and what it refuses."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import nn
from backpass.dynamic.nn import functional as F
from compiler.parallel import mesh

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 6)).astype(np.float32)
Y = RNG.normal(size=(8, 3)).astype(np.float32)


def params(dtype=np.float32):
    rng = np.random.default_rng(1)
    made = {"w": rng.normal(size=(6, 5)), "b": rng.normal(size=5), "v": rng.normal(size=(5, 3))}
    return {k: jnp.asarray(v, dtype) for k, v in made.items()}


def loss(p, x=X, y=Y):
    return jnp.mean(jnp.abs(jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2)


def sgd(p, g, rate=0.1):
    return jax.tree.map(lambda p, g: p - rate * g, p, g)


def step(p, x=X, y=Y):
    value, g = bp.value_and_grad(loss)(p, x, y)
    return sgd(p, g), value


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.complex128).ravel()))


def agrees(health, p=None, rtol=1e-5, name="args[0]['{}']"):
    """The norms are those of the gradients of `loss`."""
    p = p or params()
    for key, g in jax.grad(loss)(p).items():
        reading = health[name.format(key)]
        np.testing.assert_allclose(reading.gradient_norm, norm(g), rtol=rtol)
        np.testing.assert_allclose(reading.parameter_norm, norm(p[key]), rtol=rtol)
        np.testing.assert_allclose(
            reading.update_ratio, 0.1 * norm(g) / norm(p[key]), rtol=10 * rtol
        )


# What the numbers say


def planted(p, x):
    """Eight sigmoid layers of small weights, a term of a large factor, and one that is cut off."""
    for w in p["layers"]:
        x = jax.nn.sigmoid(x @ w)
    return jnp.mean((x @ p["out"] - 1) ** 2) + 40 * jnp.sum(p["steep"]) + 0 * jnp.sum(p["unused"])


def test_what_was_planted_is_found_and_ranked():
    p = {
        "layers": [jnp.asarray(0.3 * RNG.normal(size=(6, 6)), jnp.float32) for _ in range(8)],
        "out": jnp.ones((6, 1)),
        "steep": jnp.ones(4),
        "unused": jnp.ones(4),
    }
    _, health = bp.compile(lambda p, x: sgd(p, bp.grad(planted)(p, x)), health=True)(p, X)
    assert health.names("exploding") == ("args[0]['steep']",)
    assert health.names("dead") == ("args[0]['unused']",)
    faint = health.names("vanishing")
    assert faint[:3] == tuple(f"args[0]['layers'][{i}]" for i in range(3))
    assert health["args[0]['out']"].state == "fine" and health["args[0]['unused']"].zeros == 1.0
    order = [r.state for r in health.ranked()]
    assert order == sorted(order, key="exploding dead vanishing fine".split().index)
    assert str(health).splitlines()[2].startswith("args[0]['steep']")


def test_not_finite_elements_are_counted():
    def bad(w, x):
        return jnp.sum(w * x)

    x = jnp.asarray([1.0, np.nan, np.inf, -np.inf, 0.0, 0.0])
    _, health = bp.compile(lambda w, x: w - bp.grad(bad)(w, x), health=True)(jnp.ones(6), x)
    reading = health["args[0]"]
    assert (reading.nans, reading.infinities, reading.state) == (1, 2, "non-finite")
    assert reading.zeros == pytest.approx(2 / 6) and math.isnan(reading.gradient_norm)
    assert " 3 " in str(health)


def test_updates_that_are_rounded_away_stall():
    p = jnp.full(4, 256.0, jnp.bfloat16)
    g = jnp.full(4, 0.5, jnp.bfloat16)
    _, health = bp.compile(
        lambda p, x: p - jnp.bfloat16(0.1) * bp.grad(lambda p: jnp.sum(p * x))(p), health=True
    )(p, g)
    assert health["args[0]"].update_ratio == 0 and health.names("stalled") == ("args[0]",)
    np.testing.assert_allclose(health["args[0]"].gradient_norm, 1.0)


def test_a_bias_of_zeros_may_grow():
    p = {**params(), "b": jnp.zeros(5)}
    (_, _), health = bp.compile(step, health=True)(p)
    assert health["args[0]['b']"].update_ratio == math.inf
    assert set(health.names("fine")) == {r.name for r in health.readings}


def test_squares_do_not_overflow_in_half_precision():
    def steep(w, x):
        return jnp.sum(w * x)

    x = jnp.full(4, 6e4, jnp.float16)
    _, health = bp.compile(lambda w: bp.grad(steep)(w, x), health=True)(jnp.ones(4, jnp.float16))
    np.testing.assert_allclose(health["args[0]"].gradient_norm, norm(x), rtol=1e-5)
    assert health.norms.dtype == np.float32


# Ways to call it


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"donate_argnums": 0},
        {"debug": True},
        {"passes": "autodiff"},
        {"memory_budget": "1GiB"},
        {"passes": "canonicalise,roll{roll=true},autodiff,cse,dce"},
    ],
    ids=lambda options: " ".join(map(str, options.items())) or "plain",
)
def test_options(options):
    fun = bp.compile(step, health=True, **options)
    (new, value), health = fun(params())
    agrees(health)
    expected, before = bp.compile(step)(params())
    np.testing.assert_allclose(value, before, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, expected)


def test_stages_tell_both():
    fun = bp.compile(step, health=True)
    out = fun.trace(params()).out_info
    lowered = fun.lower(params())
    assert jax.tree.structure(lowered.out_info) == jax.tree.structure(out)
    result, health = out
    assert isinstance(health, bp.Health) and health.norms.shape == (3, 3)
    assert "3 parameters" in str(health)  # no numbers yet
    (new, _), found = lowered.compile()(params())
    assert jax.tree.structure(result[0]) == jax.tree.structure(new)
    agrees(found)
    assert any(node.scope == "health" for node in lowered.graph.nodes)


def test_debug_nan_looks_at_the_result_and_leaves_the_health():
    def kept(w, x):
        g = bp.grad(lambda w: jnp.sum(w * x))(w)
        return jnp.where(jnp.isfinite(g), w - g, w)

    fun = bp.compile(kept, health=True, debug="nan")
    new, health = fun(jnp.ones(2), jnp.asarray([1.0, np.nan]))
    assert new.tolist() == [0, 1] and health.names("non-finite") == ("args[0]",)
    fun = bp.compile(
        lambda w, x: w - bp.grad(lambda w: jnp.sum(w * x / x))(w), health=True, debug="nan"
    )
    with pytest.raises(bp.NonFiniteError, match="div"):
        fun(jnp.ones(2), jnp.asarray([1.0, 0.0]))


def test_plan_of_a_step():
    fun = bp.compile(step, health=True, donate_argnums=0)
    plain = bp.compile(step, donate_argnums=0)
    ours, theirs = (bp.plan(f, params(), device="h100").minimum_bytes for f in (fun, plain))
    assert theirs <= ours < theirs + 1024


def test_static_arguments_and_names():
    def scaled(p, power, *, inputs):
        return sgd(p, bp.grad(lambda p: loss(p, inputs) ** power)(p))

    fun = bp.compile(scaled, health=True, static_argnums=1)
    _, health = fun(params(), 1, inputs=X)
    agrees(health)
    fun(params(), 2, inputs=X)
    assert len(fun.explain().traces) == 2


def test_inside_of_jit_and_of_a_scan_over_steps():
    fun = bp.compile(step, health=True)
    (_, _), health = jax.jit(fun)(params())
    agrees(health)

    def body(p, _):
        (p, _), health = fun(p)
        return p, health

    _, many = jax.lax.scan(body, params(), None, length=3)
    assert many.norms.shape == (3, 3, 3) and len(many.steps) == 3
    agrees(many.steps[0])
    assert many["args[0]['w']"] == many.steps[-1]["args[0]['w']"]
    assert "the last of 3 steps" in str(many)
    jax.block_until_ready(many)


@pytest.mark.parametrize("grad", [jax.grad, bp.grad])
def test_a_step_that_is_differentiated(grad):
    def total(step):
        return lambda w: jnp.sum(step(w))

    def turn(w):
        return w - 0.1 * bp.grad(lambda w: jnp.sum(jnp.sin(w)))(w)

    fun = bp.compile(turn, health=True)
    found = grad(total(lambda w: fun(w)[0]))(jnp.ones((4, 3)))
    np.testing.assert_allclose(found, jax.grad(total(turn))(jnp.ones((4, 3))), rtol=1e-6)


def test_shardings_are_those_of_the_result():
    rows = NamedSharding(mesh(), PartitionSpec(("d", "m")))
    x = jax.device_put(np.ones((8, 4), np.float32), rows)

    def turn(w):
        return w - 0.5 * bp.grad(lambda w: jnp.sum(w**2))(w)

    new, health = bp.compile(turn, health=True, out_shardings=rows)(x)
    assert new.sharding == rows
    np.testing.assert_allclose(
        np.asarray(health.norms), [[2 * norm(x), norm(x), norm(x)]], rtol=1e-6
    )


def test_wide_numbers():
    with jax.enable_x64(True):
        p = params(np.float64)
        (_, _), health = bp.compile(step, health=True)(
            p, X.astype(np.float64), Y.astype(np.float64)
        )
        assert health.norms.dtype == np.float64
        agrees(health, p, rtol=1e-6)


def test_mixed_precision_has_the_master_weights_and_a_gradient_of_them():
    def half(p, x, y):
        return loss(jax.tree.map(lambda a: a.astype(jnp.bfloat16), p), x, y).astype(jnp.float32)

    def cast_first(p, x, y):
        small = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
        g = bp.grad(lambda p: loss(p, x, y).astype(jnp.float32))(small)
        return jax.tree.map(lambda p, g: p - 0.1 * g.astype(p.dtype), p, g)

    outside = bp.compile(lambda p: sgd(p, bp.grad(half)(p, X, Y)), health=True)(params())[1]
    inside = bp.compile(lambda p: cast_first(p, X, Y), health=True)(params())[1]
    for health in (outside, inside):
        agrees(health, rtol=3e-2)
        np.testing.assert_allclose(
            health["args[0]['w']"].parameter_norm, norm(params()["w"]), rtol=1e-5
        )


def test_complex_parameters():
    w = jnp.asarray(RNG.normal(size=(6, 3)) + 1j * RNG.normal(size=(6, 3)), jnp.complex64)

    def fit(w):
        return jnp.sum(jnp.abs(X @ w - Y) ** 2)

    _, health = bp.compile(lambda w: w - 0.1 * bp.grad(fit)(w), health=True)(w)
    g = jax.grad(fit)(w)
    found = health["args[0]"]
    expected = norm(g), norm(w), 0.1 * norm(g) / norm(w)
    np.testing.assert_allclose(
        (found.gradient_norm, found.parameter_norm, found.update_ratio), expected, rtol=1e-5
    )


def test_integers_have_no_row():
    def fit(p):
        return jnp.sum(p["w"] * p["n"])

    def turn(p):
        return bp.grad(fit, allow_int=True)(p)["w"]

    _, health = bp.compile(turn, health=True)({"w": jnp.ones(3), "n": jnp.arange(3)})
    (reading,) = health.readings
    assert (reading.name, reading.update_ratio) == ("args[0]['w']", None)
    assert reading.zeros == pytest.approx(1 / 3) and "unknown" in str(health)


def test_two_losses_and_one_parameter_twice():
    def gan(maker, judge, x):
        def fooled(maker, judge):
            return jnp.mean((x @ maker) @ judge)

        g = bp.grad(fooled)(maker, judge)
        d, again = bp.grad(lambda j, m: -fooled(m, j), argnums=(0, 1))(judge, maker)
        return maker - 0.1 * g - 0.1 * again, judge - 0.1 * d

    a, b = jnp.asarray(RNG.normal(size=(6, 5))), jnp.asarray(RNG.normal(size=(5, 1)))
    _, health = bp.compile(gan, health=True)(a, b, X)
    assert [r.name for r in health.readings] == ["args[0]", "args[1]", "args[0] (2)"]
    first, second = health["args[0]"], health["args[0] (2)"]
    assert first.gradient_norm == pytest.approx(second.gradient_norm)
    assert first.parameter_norm == second.parameter_norm == pytest.approx(norm(a))
    assert first.source != second.source


def test_aux_and_momentum():
    def turn(state, x):
        p, m = state["params"], state["momentum"]
        g, aux = bp.grad(lambda p: (loss(p, x), p["w"].sum()), has_aux=True)(p)
        m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
        return {"params": sgd(p, m), "momentum": m}, aux

    state = {"params": params(), "momentum": jax.tree.map(jnp.zeros_like, params())}
    _, health = bp.compile(turn, health=True)(state, X)
    agrees(health, name="args[0]['params']['{}']")


def test_gradients_by_jax_are_unknown_and_parameters_known():
    def turn(p, m):
        g = jax.grad(loss)(p)
        return sgd(p, g), jax.tree.map(lambda m, g: 0.9 * m + g, m, g)

    _, health = bp.compile(turn, health=True)(params(), jax.tree.map(jnp.ones_like, params()))
    assert {r.name for r in health.readings} == {f"args[0]['{k}']" for k in "wbv"}
    g = jax.grad(loss)(params())
    for r in health.readings:
        key = r.name[-3]
        assert (r.gradient_norm, r.zeros, r.state) == (None, None, "unknown")
        np.testing.assert_allclose(r.update_norm, 0.1 * norm(g[key]), rtol=1e-5)
    assert "unknown" in str(health)


def test_nothing_is_differentiated():
    result, health = bp.compile(lambda x: x + 1, health=True)(jnp.ones(3))
    assert result.tolist() == [2, 2, 2] and health.readings == () and health.ranked() == ()
    assert "no gradients" in str(health)


def test_gradients_of_each_example_are_ordinary_ops():
    each = jax.vmap(bp.grad(lambda w, x: jnp.sum(jnp.sin(w * x))), (None, 0))
    fun = bp.compile(lambda w, x: w - jnp.mean(each(w, x), 0), health=True)
    new, health = fun(jnp.ones(6), X)
    np.testing.assert_allclose(new, 1 - np.mean(X * np.cos(X), 0), rtol=1e-5)
    assert health.readings == ()


def test_a_method_keeps_its_health():
    class Trainer:
        @bp.compile(health=True)
        def step(self, p):
            return step(p)[0]

    with pytest.raises(bp.ArgumentError):
        Trainer().step(params())  # self is no array: as without health


# Imperative steps


def test_an_imperative_step_has_its_modules_names():
    dyn.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    scale = dyn.tensor(np.float32(2.0), requires_grad=True)
    opt = dyn.optim.SGD([*model.parameters(), scale], lr=0.1)

    def imperative(x, y):
        opt.zero_grad()
        value = F.mse_loss(scale * model(x), y)
        value.backward()
        opt.step()
        return value

    before = {k: v.detach().numpy().copy() for k, v in model.named_parameters()}
    value, health = bp.compile(imperative, health=True)(X, Y)
    assert isinstance(value, dyn.Tensor)
    names = {f"model.{k}" for k in before} | {"scale"}
    assert {r.name for r in health.readings} == names
    for name, p in model.named_parameters():
        r = health[f"model.{name}"]
        np.testing.assert_allclose(r.gradient_norm, norm(p.grad.numpy()), rtol=1e-5)
        np.testing.assert_allclose(r.parameter_norm, norm(before[name]), rtol=1e-5)
        np.testing.assert_allclose(
            r.update_ratio, norm(p.detach().numpy() - before[name]) / r.parameter_norm, rtol=1e-4
        )


def test_tensors_that_are_arguments_have_their_paths():
    held = [dyn.tensor(np.ones(3, np.float32), requires_grad=True)]

    @bp.compile(health=True)
    def imperative(batch, *, weight):
        (held[0] * batch["x"] * weight).sum().backward()
        return batch["x"]

    weight = dyn.tensor(np.full(3, 2.0, np.float32), requires_grad=True)
    _, health = imperative({"x": np.ones(3, np.float32)}, weight=weight)
    assert {r.name for r in health.readings} == {"tensor 1", "weight"}
    assert health["weight"].gradient_norm == pytest.approx(math.sqrt(3))


# What people see


def test_the_table():
    (_, _), health = bp.compile(step, health=True)(params())
    lines = str(health).splitlines()
    assert lines[0].split("  ")[0] == "parameter" and "update / parameter" in lines[0]
    assert len(lines) == 1 + 1 + 3 + 1 + 1 and lines[-1].startswith("all")
    whole = math.sqrt(sum(norm(g) ** 2 for g in jax.grad(loss)(params()).values()))
    assert f"{whole:.2e}" in lines[-1]
    assert "<pre>" in health._repr_html_() and "args[0][&#x27;w&#x27;]" in health._repr_html_()
    assert repr(health) == "<Health of 3 parameters>"


def test_wrong_names_are_refused():
    (_, _), health = bp.compile(step, health=True)(params())
    with pytest.raises(bp.ArgumentError, match=r"args\[0\]\['w'\]"):
        health["w"]
    with pytest.raises(bp.ArgumentError, match="the states are"):
        health.names("sick")
    with pytest.raises(bp.ArgumentError, match="health wants True or False"):
        bp.compile(step, health="yes")


def test_the_plot(tmp_path, monkeypatch):
    fun = bp.compile(step, health=True)
    p, histories = params(), []
    for _ in range(4):
        (p, _), health = fun(p)
        histories.append(health)
    bp.Health.plot(histories, tmp_path / "health.png")
    assert (tmp_path / "health.png").read_bytes()[:4] == b"\x89PNG"
    bp.Health.plot(histories[0], tmp_path / "health.svg")
    assert "gradient norm" in (tmp_path / "health.svg").read_text()
    other = bp.compile(lambda x: x, health=True)(X)[1]
    for wrong in ([], [health, other]):
        with pytest.raises(bp.ArgumentError, match="plot wants"):
            bp.Health.plot(wrong, tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(bp.ArgumentError, match="pip install matplotlib"):
        bp.Health.plot(histories, tmp_path / "none.png")
