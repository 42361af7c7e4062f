"""A step on a mesh of eight devices: values, sizes, collectives and budgets of one device."""

import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import backpass as bp
from backpass.compiler.collectives import collectives_of

D, F, V, N = 32, 128, 64, 256  # width, hidden, vocabulary, batch
DRAW = np.random.default_rng(0)
PARAMS = {
    "embed": DRAW.normal(size=(V, D)).astype(np.float32),
    "qkv": 0.1 * DRAW.normal(size=(D, 3, 4, 8)).astype(np.float32),
    "out": 0.1 * DRAW.normal(size=(4, 8, D)).astype(np.float32),
    "up": 0.1 * DRAW.normal(size=(3, D, F)).astype(np.float32),
    "down": 0.1 * DRAW.normal(size=(3, F, D)).astype(np.float32),
}
TOKENS = DRAW.integers(0, V, (N, 8)).astype(np.int32)
SPECS = {
    "data": dict.fromkeys(PARAMS, P()),
    "tensor": {
        "embed": P(),
        "qkv": P(None, None, "model"),
        "out": P("model"),
        "up": P(None, None, "model"),
        "down": P(None, "model"),
    },
    "fsdp": {
        "embed": P(None, "data"),
        "qkv": P("data"),
        "out": P(None, "data"),
        "up": P(None, "data"),
        "down": P(None, "data"),
    },
}
STRATEGIES = tuple(SPECS)


def mesh(strategy, kind=AxisType.Auto):
    shape = (2, 4) if strategy == "tensor" else (8, 1)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)


def loss(params, tokens, lie=lambda x: x):
    """Embedding, attention, a scan of MLPs, a tied head; `lie` says where activations lie."""
    x = lie(params["embed"][tokens])
    q, k, v = jnp.einsum("btd,dshk->sbthk", x, params["qkv"])
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    x += jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", weights, v), params["out"])

    def mlp(x, w):
        return lie(x + jax.nn.gelu(x @ w[0]) @ w[1]), None

    x, _ = lax.scan(mlp, x, (params["up"], params["down"]))
    logits = jax.nn.log_softmax(x @ params["embed"].T)
    return -jnp.take_along_axis(logits, tokens[..., None], -1).mean()


def stepped(value_and_grad, strategy=None):
    def lie(x):
        return lax.with_sharding_constraint(x, places(strategy)[1]) if strategy else x

    def step(params, tokens):
        found, grads = value_and_grad(loss)(params, tokens, lie)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), found

    return step


STEP = stepped(bp.value_and_grad)
STEPS = {name: stepped(bp.value_and_grad, name) for name in STRATEGIES}


def places(strategy):
    on = mesh(strategy)
    return {k: NamedSharding(on, s) for k, s in SPECS[strategy].items()}, NamedSharding(
        on, P("data")
    )


def options(strategy):
    of_params, of_tokens = places(strategy)
    return {"in_shardings": (of_params, of_tokens), "out_shardings": (of_params, None)}


@cache
def expected():
    return jax.jit(stepped(jax.value_and_grad))(PARAMS, TOKENS)


def close(found, tolerance=2e-6):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@cache
def plain(strategy):
    return bp.compile(STEPS[strategy], **options(strategy)).lower(PARAMS, TOKENS).compile()


def peak(compiled):
    stats = compiled.memory_analysis()
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes
    return total + stats.temp_size_in_bytes - stats.alias_size_in_bytes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_and_parameters_are_those_of_one_device(strategy):
    of_params, of_tokens = places(strategy)
    found = plain(strategy)(jax.device_put(PARAMS, of_params), jax.device_put(TOKENS, of_tokens))
    close(found)
    assert found[0]["up"].sharding.is_equivalent_to(of_params["up"], 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_collectives_move_no_more_than_those_of_jit(strategy):
    by_jax = (
        jax.jit(stepped(jax.value_and_grad, strategy), **options(strategy))
        .lower(PARAMS, TOKENS)
        .compile()
    )
    ours = plain(strategy).collectives
    theirs = collectives_of(by_jax.as_text(), by_jax, plain(strategy).stages[0].graph)
    assert 0 < ours.bytes <= 1.02 * theirs.bytes
    assert {axis for each in ours for axis in each.axes} <= {"data", "model"}


def test_collectives_tell_where_they_belong():
    found = plain("tensor").collectives
    grads = [each for each in found if each.axes == ("data",) and each.phase == "backward"]
    sizes = sum(x.nbytes // (1 if SPECS["tensor"][k] == P() else 4) for k, x in PARAMS.items())
    assert sum(each.total_bytes for each in grads) >= sizes
    lines = {each.source.rpartition(":")[0].rpartition("/")[2] for each in found}
    assert lines == {"test_devices.py"}
    in_loops = [each for each in found if each.count == 3]
    assert {each.axes for each in in_loops} >= {("model",)}
    text = str(found)
    assert "all-reduce" in text and "backward" in text and "model" in text
    assert found.by("kind")["all-reduce"] <= found.bytes == sum(found.by("phase").values())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plans_count_the_bytes_of_one_device(strategy):
    of_params, of_tokens = places(strategy)
    structs = {
        k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of_params[k]) for k, x in PARAMS.items()
    }
    tokens = jax.ShapeDtypeStruct(TOKENS.shape, TOKENS.dtype, sharding=of_tokens)
    spread = bp.plan(STEPS[strategy], structs, tokens, device="h100")
    alone = bp.plan(STEP, PARAMS, TOKENS, device="h100")
    assert spread.plain_bytes < 0.5 * alone.plain_bytes
    assert spread.plain_bytes == pytest.approx(peak(plain(strategy)), rel=0.2)  # 8, were it all's
    assert spread.plain_seconds < alone.plain_seconds


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_budgets_hold_on_each_device(strategy):
    most = peak(plain(strategy))
    with pytest.raises(bp.BudgetError) as error:
        bp.compile(STEPS[strategy], memory_budget=1000, **options(strategy)).lower(
            PARAMS, TOKENS
        ).compile()
    least = error.value.minimum_bytes
    assert least < most
    budget = (least + most) // 2
    step = bp.compile(STEPS[strategy], memory_budget=budget, **options(strategy))
    compiled = step.lower(PARAMS, TOKENS).compile()
    assert compiled.plan.measured_bytes == peak(compiled) <= budget
    assert compiled.plan.predicted_bytes == pytest.approx(peak(compiled), rel=0.15)
    close(step(PARAMS, TOKENS))


def test_a_plan_holds_for_one_way_that_arguments_lie():
    """No shardings are given: the same shapes, whole and divided, are planned each by itself."""
    of_params, of_tokens = places("data")
    budget = peak(plain("data")) + (1 << 14)
    step = bp.compile(STEP, memory_budget=budget)
    divided = jax.device_put(PARAMS, of_params), jax.device_put(TOKENS, of_tokens)
    close(step(*divided))
    there, whole = step.lower(*divided).plan, step.lower(PARAMS, TOKENS).plan
    assert there.measured_bytes <= budget
    assert whole.baseline_bytes > 2 * there.baseline_bytes
    with pytest.raises(bp.BudgetError):
        step(PARAMS, TOKENS)
    close(step(*divided))


def test_committed_arguments_alone():
    of_params, of_tokens = places("fsdp")
    step = bp.compile(STEP)
    params, tokens = jax.device_put(PARAMS, of_params), jax.device_put(TOKENS, of_tokens)
    close(step(params, tokens))
    assert "f32[64,32/data:8] args[0]['embed']" in str(step.lower(params, tokens).graph)


@pytest.mark.parametrize(
    "more", [{"health": True}, {"debug": "nan"}, {"debug": True}, {"donate_argnums": 0}], ids=str
)
def test_other_options_on_a_mesh(more):
    of_params, of_tokens = places("tensor")
    step = bp.compile(STEP, **options("tensor"), **more)
    found = step(jax.device_put(PARAMS, of_params), jax.device_put(TOKENS, of_tokens))
    close(found[0] if "health" in more else found)


def test_precision_on_a_mesh():
    found = bp.compile(STEP, precision="bfloat16", **options("fsdp"))(PARAMS, TOKENS)
    close(found, 3e-2)


def test_loss_scale_on_a_mesh():
    of_params, of_tokens = places("data")

    def step(params, scale, tokens):
        found, grads = bp.value_and_grad(lambda p: scale.scale(loss(p, tokens)))(params)
        grads, finite = scale.unscale(grads)
        new = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return scale.keep(finite, new, params), found / scale.value

    run = bp.compile(step, precision="float16", in_shardings=(of_params, None, of_tokens))
    close(run(PARAMS, bp.LossScale(), TOKENS), 3e-2)


# Explicit axes


def explicit(params, tokens, spec=P("data")):
    x = params["embed"].at[tokens].get(out_sharding=spec)
    h = jnp.tanh(x @ params["up"][0])
    y = jnp.einsum("btf,fd->btd", h, params["down"][0], out_sharding=spec)
    return jnp.mean((x + y.reshape(N * 8, D).reshape(x.shape)) ** 2)


@pytest.mark.parametrize("more", [{}, {"memory_budget": "1GiB"}, {"health": True}], ids=str)
def test_explicit_axes(more):
    on = mesh("tensor", AxisType.Explicit)
    with jax.set_mesh(on):
        specs = SPECS["tensor"] | {"qkv": P(), "out": P()}
        params = {k: jax.device_put(x, NamedSharding(on, specs[k])) for k, x in PARAMS.items()}
        tokens = jax.device_put(TOKENS, NamedSharding(on, P("data")))
        found = bp.compile(bp.grad(explicit), **more)(params, tokens)
        found = found[0] if "health" in more else found
        wanted = jax.jit(jax.grad(explicit))(params, tokens)
    for key, value in wanted.items():
        assert found[key].sharding.is_equivalent_to(value.sharding, value.ndim), key
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-7)


# What does not divide


def uneven(how):
    on = mesh("tensor")
    x = np.ones((10, 6), np.float32)
    place = NamedSharding(on, P("model"))
    double = bp.compile(lambda d: {"y": d["x"] * 2}, in_shardings=place)
    if how == "in_shardings":
        return double({"x": x})
    if how == "lower":
        return double.lower({"x": x})
    if how == "struct":
        return bp.plan(
            lambda d: d["x"], {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)}
        )
    if how == "out_shardings":
        return bp.compile(lambda d: {"y": d["x"]}, out_shardings=place)({"x": x})
    if how == "constraint":
        return bp.compile(bp.grad(lambda x: lax.with_sharding_constraint(x, place).sum()))(x)
    return bp.compile(jax.shard_map(jnp.sin, mesh=on, in_specs=P("model"), out_specs=P("model")))(x)


@pytest.mark.parametrize(
    "how, path",
    {
        "in_shardings": "args[0]['x']",
        "lower": "args[0]['x']",
        "struct": "args[0]['x']",
        "out_shardings": "result['y']",
        "constraint": "with_sharding_constraint",
        "shard_map": "args[0]",
    }.items(),
)
def test_what_does_not_divide(how, path):
    with pytest.raises(bp.ShardingError) as error:
        uneven(how)
    told = str(error.value)
    assert path in told and "dimension 0" in told and "test_devices.py:" in told
    assert "mesh axis 'model' of size 4" in told and "8 or 12" in told
    assert isinstance(error.value, ValueError) and isinstance(error.value, bp.ShapeError)


def test_the_code_of_the_docs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "devices.md", "exec"), names)
    told = capsys.readouterr().out
    assert "all-reduce" in told and "memory plan" in told and "no budget" in told
