"""XLA's options that we set: what they do, whose word counts, and where JAX has none of them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass.runtime import xla

IMAGES, FILTERS = (8, 32, 32, 32), (3, 3, 32, 32)


def convolved(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def hlo(step):
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (IMAGES, FILTERS)]
    return step.lower(*shapes).compile().as_text()


@pytest.mark.parametrize("options", [{}, {"memory_budget": "1GiB"}])
def test_convolutions_are_not_the_librarys_and_products_are(options):
    def step(x, w):
        return convolved(x, w), (x.reshape(-1, 32) @ w[0, 0]).sum(0)

    text = hlo(bp.compile(step, **options))
    fused = [part for part in text.split("\n\n") if part.lstrip().startswith("%fused")]
    assert "__ynn_fusion" in text
    assert not any("convolution(" in part for part in fused)
    assert "convolution(" in text


def test_the_users_word_counts():
    asked = {xla.LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}
    assert "__ynn_fusion" in hlo(bp.compile(convolved, compiler_options=asked))
    assert "__ynn_fusion" not in hlo(bp.compile(convolved))


def test_a_jaxlib_that_is_not_known_is_asked_for_nothing(monkeypatch):
    monkeypatch.setattr(xla, "_JAXLIB", "0.13.0")
    assert xla.faster(None) is None
    assert xla.faster({"a": 1}) == {"a": 1}


def test_passes_of_the_user_are_left_out_besides():
    name = "xla_disable_hlo_passes"
    assert xla.obeyed({name: "dce"})[name].split(",")[0] == "dce"


def test_derivatives_outside_of_programs_have_them_too(monkeypatch):
    """Where they are one program: of many nodes."""
    asked, faster = [], xla.faster
    monkeypatch.setattr(xla, "faster", lambda options: asked.append(options) or faster(options))

    def loss(x, w):
        for _ in range(8):
            x = jnp.tanh(convolved(x, w))
        return x.sum()

    bp.grad(loss)(jnp.ones((1, 2, 2, 3)), jnp.ones((3, 3, 3, 3)))
    assert asked == [None]


CALLS = {
    "jit": lambda f, x: jax.jit(lambda x: f(x) + 1)(x),
    "grad": lambda f, x: jax.grad(lambda x: f(x).sum())(x),
    "vmap": lambda f, x: jax.vmap(f)(x),
    "scan": lambda f, x: lax.scan(lambda c, _: (f(c), None), x, None, 2)[0],
    "compile": lambda f, x: bp.compile(lambda x: f(x) + 1)(x),
    "our grad": lambda f, x: bp.grad(lambda x: f(x).sum())(x),
    "constant": lambda f, x: jax.jit(lambda y: y + f(np.ones(3, np.float32)))(x),
}


@pytest.mark.parametrize("options", [{}, {"memory_budget": "1MiB"}, {"debug": "nan"}])
@pytest.mark.parametrize("name", CALLS)
def test_a_part_of_another_program_has_none(name, options):
    """Before, between and after calls of the function by itself."""
    call, x = CALLS[name], jnp.arange(3.0)
    step = bp.compile(lambda x: jnp.sin(x) * 2, **options)
    want = call(lambda x: jnp.sin(x) * 2, x)
    for _ in range(2):
        np.testing.assert_allclose(call(step, x), want, rtol=1e-6)
        np.testing.assert_allclose(step(x), jnp.sin(x) * 2, rtol=1e-6)


def test_a_function_is_a_program_or_a_part_of_one():
    jitted = xla.Jitted(lambda x: 2 * x)
    for _ in range(2):
        assert float(jitted(3.0)) == 6.0
        assert float(jax.jit(lambda x: jitted(x) + 1)(3.0)) == 7.0


LATE = """
import jax
import backpass as bp
steps = [bp.compile(lambda x: x + 1), bp.compile(lambda x: x + 1, memory_budget="1MiB")]
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices()) == 3
assert [float(step(1.0)) for step in steps] == [2.0, 2.0]
"""


def test_decorating_starts_no_backend():
    """So that a program may still say what devices it wants, or join others."""
    found = subprocess.run(
        [sys.executable, "-P", "-c", LATE],
        env={"PATH": "", "JAX_PLATFORMS": "cpu", "BACKPASS_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
