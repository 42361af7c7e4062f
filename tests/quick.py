"""XLA told to hurry: the programs of tests are small and many, and compiling them takes the time.

A test that reads what XLA makes of a program (its memory, its text) wants XLA as users have it:
no `quickly`, and `compiler_options={"xla_cpu_use_fusion_emitters": True}`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import jax

# JAX reads these at its first computation. Programs for many devices run on eight pretended ones.
FLAGS = ["--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")


def set_flags() -> None:
    """For this process and those that it starts."""
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()


@contextmanager
def quickly() -> Iterator[None]:
    """Programs compiled within are not optimised: they compile sooner, and run slower."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
