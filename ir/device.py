"""What a device can do, for planning: memory, arithmetic and bandwidths."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import fsum
from types import MappingProxyType

from .cost import node_cost
from .errors import ArgumentError
from .fusion import is_fusible
from .graph import Literal, Node, Value
from .links import traffic

# Ops that take as long as one that is measured: `costs` knows them by the first of each line.
_LIKE: Mapping[str, str] = MappingProxyType(
    {
        name: first
        for first, *names in map(
            str.split,
            (
                "exp exp2",
                "tanh logistic expm1 cbrt",
                "log log1p log2",
                "erf erfc erf_inv",
                "sin cos tan sinh cosh asin acos atan asinh acosh atanh",
                "pow atan2 lgamma digamma igamma igammac polygamma",
                "cumsum cumprod cummax cummin cumlogsumexp",
                "reduce_max reduce_min argmax argmin",
                "scatter-add scatter scatter-mul scatter-min scatter-max",
            ),
        )
        for name in names
    }
)
_LAUNCHED = frozenset(("dot_general", "conv_general_dilated"))
_CALLS = frozenset("jit closed_call custom_jvp_call custom_vjp_call remat2 shard_map".split())


SLICED = 2  # times that the bytes of a slice move on their way into a stack, or out of it
LINK = frozenset(("offload", "fetch"))  # what copies to the host's memory, and from it


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Limits of one device.

    `memory_bytes` of its memory; `flops`, floating-point operations a second in the type that
    models compute in; `bytes_per_s` between memory and cores; `host_bytes_per_s` to host memory;
    `link_bytes_per_s` to other devices, 0 where that is not known: then a tenth of the memory's.
    `costs` tells by `kind` how many times longer than by the roofline some ops take, and
    `launch_s` the seconds that a product or convolution takes to begin, on all cores.
    """

    memory_bytes: int
    flops: float
    bytes_per_s: float
    host_bytes_per_s: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict, hash=False)
    link_bytes_per_s: float = 0.0
    launch_s: float = 0.0

    def seconds(self, node: Node) -> float:
        """Time of one node by the roofline: bound by arithmetic or by memory traffic.

        A fusible node is taken to be a part of a loop: it pays for its result alone. A scan takes
        its length times its body, and copies the slices of its xs and ys; a cond takes its dearest
        branch, a while one trip. What devices send each other comes on top.
        Source: Williams, Waterman and Patterson 2009.
        """
        name = node.op.name
        if name == "scan":
            start, end = node.attrs["num_consts"] + node.attrs["num_carry"], node.attrs["num_carry"]
            stacks = (*node.inputs[start:], *node.outputs[end:])
            size = sum(v.type.on_host(False).nbytes for v in stacks)
            copies = SLICED * size / self.bytes_per_s
            return copies + int(node.attrs["length"]) * self.total(node.regions[0].nodes)
        if name == "cond":
            return max(self.total(region.nodes) for region in node.regions)
        if name in _CALLS:
            return self.total(node.regions[0].nodes)
        if name in LINK:
            size = sum(value.type.nbytes for value in (*node.inputs, *node.outputs))
            return size / self.host_bytes_per_s if self.host_bytes_per_s else 0.0
        work = node_cost(node)
        cost = self.costs.get(kind(node), 1.0) if self.costs else 1.0
        if is_fusible(node):
            return cost * work.bytes_written / 2 / self.bytes_per_s
        link = traffic(node).on_link / (self.link_bytes_per_s or self.bytes_per_s / 10)
        launch = self.launch_s if name in _LAUNCHED else 0.0
        return link + launch + cost * max(work.flops / self.flops, work.bytes / self.bytes_per_s)

    def total(self, nodes: Sequence[Node]) -> float:
        """Time of nodes in their order.

        Copies to the host and from it run beside the others, each way in a queue: an `offload` is
        over when its operand is sent, what reads the result of a `fetch` waits for it.
        """
        if not any(node.op.name in LINK for node in nodes):
            return fsum(map(self.seconds, nodes))  # the same in whatever order they run
        now = sent = got = 0.0
        read: dict[Value, float] = {}
        there: dict[Value, float] = {}
        for node in nodes:
            seconds = self.seconds(node)
            if node.op.name == "offload":
                now = sent = max(now, max(sent, read.get(node.inputs[0], 0.0)) + seconds)
            elif node.op.name == "fetch":
                there[node.output] = got = max(got, now) + seconds
            else:
                now = max([now, *(there[v] for v in node.inputs if v in there)]) + seconds
                read.update(dict.fromkeys((*node.inputs, *node.outputs), now))
        return now


def kind(node: Node) -> str:
    """Return the name under which `DeviceSpec.costs` knows ops that take as long as this one.

    Products are told apart by a batch, convolutions by groups and by a sum over the batch, which
    is the gradient by the filters. What leaves the last dimension in place is a copy.
    """
    name = node.op.name
    if name == "dot_general":
        _, (batch, _) = node.attrs["dimension_numbers"]
        return "dot_general, batched" if batch else name
    if name == "conv_general_dilated":
        if node.attrs["feature_group_count"] > 1:
            return f"{name}, grouped"
        return f"{name}, filters" if node.attrs["dimension_numbers"].lhs_spec[0] else name
    if name == "transpose" and node.attrs["permutation"][-1] == node.output.ndim - 1:
        return "copy"
    return _LIKE.get(name, name)


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
    return Clock(*(getattr(spec, each.name) for each in fields(DeviceSpec)))


# Of f32 arrays on two cores of a recent server.
_CPU_COSTS: Mapping[str, float] = MappingProxyType(
    {
        **dict.fromkeys(("exp", "tanh", "log"), 2.0),
        **dict.fromkeys(("erf", "transpose"), 4.0),
        **dict.fromkeys(("sin", "pow", "rem"), 20.0),
        **dict.fromkeys(("cumsum", "top_k"), 10.0),
        **dict.fromkeys(("reduce_max", "dot_general, batched"), 1.5),
        "random_bits": 30.0,
        "sort": 150.0,
        "conv_general_dilated": 1.5,
        "conv_general_dilated, filters": 4.0,
        "conv_general_dilated, grouped": 100.0,
    }
)

# Vendors' data sheets: dense bf16 arithmetic, memory, links to the host and to other devices. The
# CPU is two cores of a recent server; a live one is measured.
DEVICES: Mapping[str, DeviceSpec] = MappingProxyType(
    {
        "cpu": DeviceSpec(16 << 30, 2e11, 1e10, 0.0, _CPU_COSTS, launch_s=1.5e-5),
        "a100": DeviceSpec(80 << 30, 3.12e14, 2.0e12, 3.2e10, {}, 3e11),
        "h100": DeviceSpec(80 << 30, 9.89e14, 3.35e12, 6.4e10, {}, 4.5e11),
        "h200": DeviceSpec(141 * 10**9, 9.89e14, 4.8e12, 6.4e10, {}, 4.5e11),
        "b200": DeviceSpec(180 * 10**9, 2.25e15, 8.0e12, 6.4e10, {}, 9e11),
        "tpu-v4": DeviceSpec(32 << 30, 2.75e14, 1.2e12, 1.6e10, {}, 3e11),
        "tpu-v5e": DeviceSpec(16 << 30, 1.97e14, 8.2e11, 1.6e10, {}, 2e11),
        "tpu-v5p": DeviceSpec(95 << 30, 4.59e14, 2.765e12, 3.2e10, {}, 6e11),
        "tpu-v6e": DeviceSpec(32 << 30, 9.18e14, 1.64e12, 3.2e10, {}, 4.5e11),
    }
)


def device_named(name: str) -> DeviceSpec:
    """Return a known device. Raises `ArgumentError` that lists the names."""
    if name not in DEVICES:
        raise ArgumentError(f"there is no device {name!r}; known are {', '.join(DEVICES)}")
    return DEVICES[name]
