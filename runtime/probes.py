"""How fast a device is: a few small kernels, each timed at its quickest.

Sizes are those of models rather than of records. Buffers are donated from one run to the next, so
that no time goes into fresh pages; every kernel runs once a round, so that a busy moment spoils at
most one run of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, prod
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..ir.device import DeviceSpec
from .xla import faster

ROUNDS = 7  # the first of which warms up
_LONGEST = 2.0  # seconds of all rounds, on a machine that is busy or slow; two there are always
_ENOUGH, _LEAST = 0.04, 4  # seconds and runs of one kernel
CHAIN = 16  # products of one run, so that it is little that JAX takes to call it
_CPU_MEMORY = 16 << 30  # where the system does not tell


@dataclass(frozen=True)
class Probe:
    """A kernel `function(buffer, *others)` whose result takes the place of its first argument.

    `flops` and `bytes` are what the roofline counts; `shapes` are of the arguments.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    flops: int = 0


def probes(scale: int = 16) -> dict[str, Probe]:
    """The kernels by the names of `DeviceSpec.costs`; `scale` is a factor of every size.

    `stream` is a loop over arrays larger than caches. `dot_general` are the three products of a
    layer, forward and both gradients; `launch` are `CHAIN` products of few rows.
    """
    rows, width = 128 * scale, 16 * scale
    flat, small = (64 * scale, 64 * scale), (32 * scale, 32 * scale)
    size, little = 4 * prod(flat), 4 * prod(small)
    image, filters = (scale, 32, 32, 32), (3, 3, 32, 32)
    pixels = 4 * prod(image)
    heads, head = (2 * scale, 128, 64), (2 * scale, 64, 128)
    found = {
        "stream": Probe(lambda out, x: x * 2, ((4 * size,),) * 2, 32 * size),
        "dot_general": Probe(
            _layer,
            ((rows, 4 * width), (rows, width), (width, 4 * width)),
            0,
            3 * 2 * rows * width * 4 * width,
        ),
        "launch": Probe(
            _chain, ((scale, 8 * scale), (8 * scale, 8 * scale)), 0, CHAIN * 128 * scale**3
        ),
        "dot_general, batched": Probe(
            lambda out, a, b: a @ b,
            ((2 * scale, 128, 128), heads, head),
            0,
            2 * prod(heads) * 128,
        ),
        "conv_general_dilated": Probe(
            lambda out, x, w: _conv(x, w, ("NHWC", "HWIO", "NHWC")),
            (image, image, filters),
            2 * pixels,
            2 * prod(image) * 9 * 32,
        ),
        "conv_general_dilated, filters": Probe(
            lambda out, x, g: _conv(x, g, ("CHWN", "IHWO", "HWNC"), 1),
            (filters, image, image),
            2 * pixels,
            2 * prod(image) * 9 * 32,
        ),
        "conv_general_dilated, grouped": Probe(
            lambda out, x, w: _conv(x, w, ("NHWC", "HWIO", "NHWC"), groups=32),
            (image, image, (3, 3, 1, 32)),
            2 * pixels,
            2 * prod(image) * 9,
        ),
        "transpose": Probe(lambda out, x: x.T, (small, small), 2 * little),
        "reduce_sum": Probe(lambda out, x: x.sum(-1), (flat[:1], flat), size),
        "reduce_max": Probe(lambda out, x: x.max(-1), (flat[:1], flat), size),
        "gather": Probe(lambda out, x: x[_places(out)], (flat, flat), 2 * size),
        "scatter-add": Probe(lambda out, x: out.at[_places(x)].add(x), (flat, flat), 3 * size),
        "cumsum": Probe(lambda out, x: jnp.cumsum(x, -1), (small, small), 2 * little),
        "sort": Probe(lambda x: lax.sort(-x, dimension=-1), (small,), 2 * little),
        "top_k": Probe(lambda out, x: lax.top_k(x, 2)[0], ((small[0], 2), small), little),
        "random_bits": Probe(_bits, (small,), little),
    }
    one: dict[str, Callable[..., Any]] = {
        "exp": jnp.exp,
        "tanh": jnp.tanh,
        "log": jnp.log,
        "sin": jnp.sin,
        "erf": lax.erf,
    }
    one |= {"pow": lambda x: x**0.37, "rem": lambda x: lax.rem(x, jnp.full_like(x, 0.3))}
    for name, function in one.items():
        found[name] = Probe(lambda out, x, f=function: f(x), (flat, flat), 2 * size)
    return found


def _layer(y: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w`, and the gradients by both of `y` as their cotangent."""
    return x @ w + 1e-9 * ((y @ w.T).sum() + (x.T @ y).sum())


def _chain(x: jax.Array, w: jax.Array) -> jax.Array:
    for _ in range(CHAIN):
        x = x @ w
    return x


def _conv(x: Any, w: Any, layout: Any, padding: int = 1, groups: int = 1) -> jax.Array:
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(
        x, w, (1, 1), pads, dimension_numbers=layout, feature_group_count=groups
    )


def _places(x: jax.Array) -> jax.Array:
    """`int32[rows]`: rows in an order that jumps."""
    return jnp.arange(len(x)) * 7919 % len(x)


def _bits(x: jax.Array) -> jax.Array:
    """Random bits as small floats, of a key that depends on `x`."""
    key = jax.random.wrap_key_data(x[0, :2].astype(np.uint32))
    return jax.random.bits(key, x.shape).astype(x.dtype) * 1e-9


def measure(device: jax.Device, scale: int | None = None) -> DeviceSpec:
    """Time the kernels on a device, in a second or two, and return what it can do."""
    kernels, dtype, part = _suited(device, scale)
    seconds = quickest(kernels, dtype, device)
    flops, bandwidth = _rates(kernels, seconds, part)
    costs = {}
    for name, probe in kernels.items():
        roofline = max(probe.flops / flops, probe.bytes * part / bandwidth)
        if name not in ("stream", "dot_general", "launch"):
            costs[name] = _rounded(max(1.0, seconds[name] / roofline))
    launch = max(0.0, seconds["launch"] - kernels["launch"].flops / flops) / CHAIN
    return DeviceSpec(
        memory_bytes(device),
        _rounded(flops),
        _rounded(bandwidth),
        _host_bytes_per_s(device),
        costs,
        launch_s=_rounded(launch),
    )


def rates(device: jax.Device) -> tuple[float, float]:
    """FLOP/s and bytes/s as `measure` finds them, by two kernels alone: in half a second."""
    kernels, dtype, part = _suited(device, None)
    kernels = {name: kernels[name] for name in ("dot_general", "stream")}
    return _rates(kernels, quickest(kernels, dtype, device), part)


def _rates(
    kernels: Mapping[str, Probe], seconds: Mapping[str, float], part: float
) -> tuple[float, float]:
    """FLOP/s of products, and bytes/s of a stream."""
    products, stream = kernels["dot_general"], kernels["stream"]
    return products.flops / seconds["dot_general"], stream.bytes * part / seconds["stream"]


def _suited(device: jax.Device, scale: int | None) -> tuple[dict[str, Probe], Any, float]:
    """Kernels for a device, their dtype, and the part of their `bytes` that it takes.

    `bytes` are told for four of an element.
    """
    cpu = device.platform == "cpu"
    dtype = np.float32 if cpu else jnp.bfloat16
    return probes(scale or (16 if cpu else 64)), dtype, np.dtype(dtype).itemsize / 4


def quickest(kernels: Mapping[str, Probe], dtype: Any, device: jax.Device) -> dict[str, float]:
    """Seconds of the quickest run of each kernel; those that take long run less often."""
    place = jax.sharding.SingleDeviceSharding(device)
    with ThreadPoolExecutor() as pool:  # XLA compiles them side by side
        runs = dict(
            zip(kernels, pool.map(lambda p: _Run(p, dtype, place), kernels.values()), strict=True)
        )
    end = perf_counter() + _LONGEST
    for i in range(ROUNDS):
        if i > 1 and perf_counter() > end:
            break
        for run in runs.values():
            if len(run.seconds) < _LEAST or sum(run.seconds) < _ENOUGH:
                run.again()
    return {name: min(run.seconds) for name, run in runs.items()}


class _Run:
    """A compiled kernel, its buffers, and the seconds of its runs."""

    def __init__(self, probe: Probe, dtype: Any, place: jax.sharding.Sharding) -> None:
        options = faster(None)
        step = jax.jit(probe.function, donate_argnums=0, keep_unused=True, compiler_options=options)
        structs = [jax.ShapeDtypeStruct(s, dtype, sharding=place) for s in probe.shapes]
        self.step = step.lower(*structs).compile()
        self.buffer, *self.others = (
            jax.device_put(np.full(shape, 0.5, dtype), place) for shape in probe.shapes
        )
        self.seconds: list[float] = []

    def again(self) -> None:
        start = perf_counter()
        self.buffer = self.step(self.buffer, *self.others).block_until_ready()
        self.seconds.append(perf_counter() - start)


def has_link(device: jax.Device) -> bool:
    """True for a device that can copy to pinned host memory, and has another of its own."""
    kinds = {memory.kind for memory in device.addressable_memories()}
    return device.platform != "cpu" and "pinned_host" in kinds


def _host_bytes_per_s(device: jax.Device) -> float:
    """Speed of the link to pinned host memory; 0 where the device's own memory is the host's."""
    if not has_link(device):
        return 0.0
    host = jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
    x = jax.device_put(jnp.zeros(1 << 24, np.float32), device)
    best = inf
    for _ in range(ROUNDS):
        x.block_until_ready()
        start = perf_counter()
        jax.device_put(x, host).block_until_ready()
        best = min(best, perf_counter() - start)
    return _rounded(x.nbytes / best)


def memory_bytes(device: jax.Device) -> int:
    """Bytes of memory that a device has; for a CPU that of the system."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return _CPU_MEMORY
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _rounded(x: float) -> float:
    """Two digits: no more is known."""
    return float(f"{x:.2g}")
