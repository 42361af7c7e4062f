"""What a device can do, for planning: memory, arithmetic and bandwidths."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .cost import node_cost
from .errors import ArgumentError
from .fusion import is_fusible
from .graph import Literal, Node

# Element-wise ops that take longer than moving their operands does, in passes over the memory.
# Measured beside an add on f32[4096,2048] (CPU, two cores).
DEARNESS: Mapping[str, float] = MappingProxyType(
    {
        **dict.fromkeys("exp exp2 expm1 log log1p tanh logistic cbrt".split(), 2.0),
        **dict.fromkeys("erf erfc erf_inv rem".split(), 5.0),
        **dict.fromkeys("sin cos tan sinh cosh asin acos atan asinh acosh atanh".split(), 20.0),
        **dict.fromkeys("pow atan2 lgamma digamma igamma igammac polygamma".split(), 15.0),
        "transpose": 4.0,
    }
)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Limits of one device.

    `memory_bytes` of its memory; `flops`, floating-point operations a second in the type that
    models compute in; `bytes_per_s` between memory and cores; `host_bytes_per_s` to host memory.
    """

    memory_bytes: int
    flops: float
    bytes_per_s: float
    host_bytes_per_s: float = 0.0

    def seconds(self, node: Node) -> float:
        """Time of one node by the roofline: bound by arithmetic or by memory traffic.

        A fusible node is taken to be a part of a loop: it pays for its result alone.
        Source: Williams, Waterman and Patterson 2009.
        """
        work = node_cost(node)
        if is_fusible(node):
            return work.bytes_written / 2 / self.bytes_per_s * DEARNESS.get(node.op.name, 1.0)
        return max(work.flops / self.flops, work.bytes / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Clock(DeviceSpec):
    """A device that remembers the time of each node, and so that of its clones.

    It holds the first node of each kind, as kinds are told by the identity of what they share.
    """

    known: dict[Hashable, tuple[Node, float]] = field(default_factory=dict, compare=False)

    def seconds(self, node: Node) -> float:
        """Time of one node by the roofline."""
        distinct = set(node.inputs)
        reads = [0 if isinstance(v, Literal) else id(v.type) for v in node.inputs]
        again = len(distinct) < len(reads) and tuple(map(node.inputs.index, node.inputs))
        makes = [id(v.type) for v in node.outputs]
        key = (id(node.op), id(node.attrs), *map(id, node.regions), *reads, 1, *makes, again)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = node, DeviceSpec.seconds(self, node)
        return found[1]


def clock(spec: DeviceSpec) -> Clock:
    """Return a device that remembers, with the limits of `spec`."""
    if isinstance(spec, Clock):
        return spec
    return Clock(spec.memory_bytes, spec.flops, spec.bytes_per_s, spec.host_bytes_per_s)


# Vendors' data sheets: dense bf16 arithmetic, memory, link to the host. The CPU is two cores of a
# recent server; a live one is measured.
DEVICES: Mapping[str, DeviceSpec] = MappingProxyType(
    {
        "cpu": DeviceSpec(16 << 30, 2e11, 1e10),
        "a100": DeviceSpec(80 << 30, 3.12e14, 2.0e12, 3.2e10),
        "h100": DeviceSpec(80 << 30, 9.89e14, 3.35e12, 6.4e10),
        "h200": DeviceSpec(141 * 10**9, 9.89e14, 4.8e12, 6.4e10),
        "b200": DeviceSpec(180 * 10**9, 2.25e15, 8.0e12, 6.4e10),
        "tpu-v4": DeviceSpec(32 << 30, 2.75e14, 1.2e12, 1.6e10),
        "tpu-v5e": DeviceSpec(16 << 30, 1.97e14, 8.2e11, 1.6e10),
        "tpu-v5p": DeviceSpec(95 << 30, 4.59e14, 2.765e12, 3.2e10),
        "tpu-v6e": DeviceSpec(32 << 30, 9.18e14, 1.64e12, 3.2e10),
    }
)


def device_named(name: str) -> DeviceSpec:
    """Return a known device. Raises `ArgumentError` that lists the names."""
    if name not in DEVICES:
        raise ArgumentError(f"there is no device {name!r}; known are {', '.join(DEVICES)}")
    return DEVICES[name]
