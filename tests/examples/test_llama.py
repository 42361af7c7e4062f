"""The Llama-like step is planned by its shapes, and its small form computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("layers", [[], ["--unrolled"]])
def test_main_plans_and_draws(load_example, tmp_path, capsys, layers):
    path = tmp_path / "llama.png"
    plans = load_example("llama").main(["--tiny", *layers, "--png", str(path)])
    told = capsys.readouterr().out
    assert plans.fits and len(plans) >= 8
    assert plans.minimum_bytes < 0.95 * plans.plain_bytes
    assert "2,623,744 parameters" in told and "no budget" in told
    assert path.read_bytes()[:8] == PNG


def test_what_does_not_fit_is_told(load_example, capsys):
    options = ["--tiny", "--device", "tpu-v5e", "--budget", "1MiB"]
    plans = load_example("llama").main(options)
    assert not len(plans) and plans.minimum_bytes > 3 * 2 * 2_623_744
    assert "infeasible, the minimum is" in capsys.readouterr().out


@pytest.mark.parametrize("name, billions", [("7B", 6.74), ("70B", 68.98)])
def test_sizes_are_those_of_llama_2(load_example, name, billions):
    llama = load_example("llama")
    _, (params, _, tokens) = llama.made(llama.MODELS[name], "adamw", 1, 4096)
    leaves = jax.tree.leaves(params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) / 1e9 == pytest.approx(billions, abs=0.01)
    assert tokens.shape == (1, 4097)


def test_attention_in_blocks_is_attention(load_example, monkeypatch):
    """Against all queries at once; no token sees a later one."""
    llama = load_example("llama")
    config = llama.MODELS["tiny"]
    keys = iter(jax.random.split(jax.random.key(0), 64))

    def drawn(shape):
        return 0.1 * jax.random.normal(next(keys), shape.shape, jnp.float32)

    block = jax.tree.map(lambda leaf: drawn(leaf)[0], jax.eval_shape(lambda: llama.init(config)))
    block = block["blocks"]
    x = jax.random.normal(next(keys), (1, 64, config.width))
    whole = llama.attention(config, block, x)
    monkeypatch.setattr(llama, "QUERIES", 16)
    np.testing.assert_allclose(llama.attention(config, block, x), whole, rtol=1e-4, atol=1e-5)
    changed = llama.attention(config, block, x.at[:, 40:].set(0.0))
    np.testing.assert_allclose(changed[:, :40], whole[:, :40], rtol=1e-4, atol=1e-5)
    assert abs(changed[:, 40:] - whole[:, 40:]).max() > 1e-2
