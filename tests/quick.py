"""XLA told to hurry: the programs of tests are small and many, and compiling them takes the time.

Machine code is not optimised, and is made in one piece: pieces are for idle cores, and here a
worker has one. Programs run slower. What XLA makes of them before, its fusions, buffers and report
of memory, is the same. A test that reads that text wants
`compiler_options={"xla_cpu_use_fusion_emitters": True}`, as users have it.
"""

import os
from importlib.metadata import version

import jax

# XLA reads these at its first computation. Programs for many devices run on eight pretended ones.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")


def set_flags() -> None:
    """For this process, before its first computation, and those that it starts."""
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for those, as they import JAX
    jax.config.update("jax_disable_most_optimizations", True)
