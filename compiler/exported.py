"""`bp.Exported`: a compiled step in a file, to be run where the model's code is not.

The program is `jax.export`'s. Around it stand what that leaves out: the names of its arguments and
results, the tree of the results, the memory plan, and XLA's options, without which a plan is not
obeyed. A file is

    a line: backpass.export 1
    a line: SHA-256 of the rest, in hexadecimal
    the length of the header in 8 bytes, the header in JSON, the program as `jax.export` writes it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ..ir.errors import ArgumentError, BudgetError, ExportError
from ..ir.records import parsed, read
from ..ir.tables import bytes_text
from ..ir.types import type_of
from ..runtime.xla import chosen
from .arguments import path_text
from .budget import peak_bytes
from .dump import installed, write_bytes
from .memory_plan import MemoryPlan
from .program import Program
from .trees import built, leaves_of, needs_nodes, nodes_of, written

MAGIC = b"backpass.export "
VERSION = 1
_SHOWN = 8
_PACKAGES = ("backpass", "jax", "jaxlib")


@dataclass(frozen=True)
class Header:
    """What a file tells of a program besides the program.

    `inputs` and `outputs` are `(path, type)` of each leaf in order; `positions` those of the
    arguments that are no static ones; `result` the tree of the result (`trees.py`); `donated` are
    positions of inputs; `planned` tells that XLA must not undo a plan; `mesh` is `(name, size,
    type)` of each axis, for a program of several devices.
    """

    name: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    positions: tuple[int, ...]
    result: Any
    donated: tuple[int, ...]
    planned: bool
    compiler_options: dict[str, str | int | float | bool]
    plan: MemoryPlan | None
    versions: dict[str, str]
    mesh: tuple[tuple[str, int, str], ...] = ()

    def as_json(self) -> str:
        """As `read_header` reads it."""
        flat = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps({**flat, "plan": None if self.plan is None else self.plan.as_json()})


def read_header(text: bytes) -> Header:
    """Read a header. Raises `ValueError` for what is none."""
    found: dict[str, Any] = read(dict[str, Any], parsed(text))
    plan = found.get("plan")
    header: Header = read(Header, {**found, "plan": None})
    leaves = leaves_of(header.result)
    if leaves != len(header.outputs):
        raise ValueError(f"its result has {leaves} leaves, {len(header.outputs)} are listed")
    if any(not 0 <= i < len(header.inputs) for i in header.donated):
        raise ValueError(f"it has {len(header.inputs)} inputs, donated are {header.donated}")
    known = AxisType.__members__
    if any(size < 1 or kind not in known for _, size, kind in header.mesh):
        raise ValueError("its mesh is none")
    return header if plan is None else replace(header, plan=MemoryPlan.from_json(plan))


@dataclass
class Exported:
    """A step that `Compiled.export` or `Lowered.export` made, or that `load` read.

    Called as the step was, static arguments left out, on pytrees whose leaves have the same paths:
    a NamedTuple or a class that is unknown here may be replaced by one with the same fields. What
    the result holds of such classes are the caller's own where an argument shows them, or
    stand-ins with the same paths. Donated arguments are given away, as they were in the step.
    """

    _header: Header
    _program: Any
    _executable: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of the step."""
        return self._header.name

    @property
    def plan(self) -> MemoryPlan | None:
        """The memory plan; `measured_bytes` is the peak here once it is compiled."""
        return self._header.plan

    @property
    def platforms(self) -> tuple[str, ...]:
        """Where it runs: `cpu`, `cuda`, `rocm`, `tpu`."""
        return tuple(self._program.platforms)

    @property
    def inputs(self) -> Mapping[str, str]:
        """The type of each argument's leaf, by its path: `f32[8,16]`."""
        return dict(self._header.inputs)

    @property
    def outputs(self) -> Mapping[str, str]:
        """The type of each leaf of the result, by its path."""
        return dict(self._header.outputs)

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the packages that exported it."""
        return self._header.versions

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step. Raises `ArgumentError` for leaves of other paths, shapes or dtypes."""
        if len(args) != len(self._header.positions):
            raise ArgumentError(
                f"{self.name} takes {len(self._header.positions)} positional arguments, got "
                f"{len(args)}\n  {self._wanted()}"
            )
        tree = (dict(zip(self._header.positions, args, strict=True)), kwargs)
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        outs = self._run({path_text(path): leaf for path, leaf in leaves})
        known = nodes_of((args, kwargs)) if needs_nodes(self._header.result) else {}
        return built(self._header.result, iter(outs), known)

    def call_by_path(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Run the step on leaves by their paths (`inputs`); returns those of the result."""
        outs = self._run(leaves)
        return dict(zip(self.outputs, outs, strict=True))

    def compile(self) -> Exported:
        """Compile it for the devices at hand, if it is not yet; returns itself.

        Raises:
            BudgetError: the peak that XLA reports here is above the budget of the plan.
            ExportError: it is not for this platform, or for more devices than there are.
        """
        if self._executable is None:
            self._executable = self._compiled()
        return self

    def memory_analysis(self) -> Any:
        """Return XLA's report of the program here: argument, output, temporary, aliased bytes."""
        return self.compile()._executable.memory_analysis()

    def as_text(self) -> str:
        """Return the program as StableHLO."""
        return str(self._program.mlir_module())

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises `DumpError`."""
        header = self._header.as_json().encode()
        body = len(header).to_bytes(8, "big") + header + _serialized(self._program)
        digest = sha256(body).hexdigest().encode()
        write_bytes(Path(path), b"%s%d\n%s\n" % (MAGIC, VERSION, digest) + body)

    @classmethod
    def load(cls, path: str | Path) -> Exported:
        """Read what `save` wrote; like any program, it should come from someone you trust.

        Raises:
            ExportError: the file is damaged, or something else; or JAX can't read it.
            OSError: there is no such file.
        """
        header, program = _read(Path(path))
        found = _deserialized(Path(path), header, program)
        listed = len(header.inputs), len(header.outputs)
        has = len(found.in_avals), len(found.out_avals)
        sizes = prod(size for _, size, _ in header.mesh)
        if (
            has != listed
            or not found.platforms
            or (found.nr_devices > 1 and found.nr_devices != sizes)
        ):
            raise ExportError(f"{path} holds no exported step: another program than it tells of")
        return cls(header, found)

    def __str__(self) -> str:
        """Name, platforms, and the leaves of arguments and result."""
        given = "\n".join(f"  {path}: {type}" for path, type in self._header.inputs)
        got = "\n".join(f"  {path}: {type}" for path, type in self._header.outputs)
        return f"{self.name} for {', '.join(self.platforms)}\n{given}\nreturns\n{got}"

    def _run(self, leaves: Mapping[str, Any]) -> Sequence[Any]:
        wanted = self._header.inputs
        lines = [
            f"{path}: expected {type}, got {_type(leaves.get(path))}"
            for path, type in wanted
            if path not in leaves or _type(leaves[path]) != type
        ]
        lines += [f"{path}: unexpected" for path in leaves if path not in self.inputs]
        if lines:
            more = [f"{len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            raise ArgumentError(
                f"{self.name} was exported for other arguments\n  "
                + "\n  ".join([*lines[:_SHOWN], *more])
            )
        executable = self.compile()._executable
        return executable(*(leaves[path] for path, _ in wanted))  # type: ignore[no-any-return]

    def _wanted(self) -> str:
        return "it takes " + ", ".join(path for path, _ in self._header.inputs[:_SHOWN])

    def _compiled(self) -> Any:
        program, header = self._program, self._header
        platform = jax.devices()[0].platform
        names = {"gpu": ("cuda", "rocm")}.get(platform, (platform,))
        if not set(names) & set(program.platforms):
            raise ExportError(
                f"{self.name} was exported for {', '.join(program.platforms)}, and this is "
                f"{platform}\n  export it with platforms=[...]"
            )
        jitted = jax.jit(
            program.call,
            donate_argnums=header.donated,
            compiler_options=chosen(header.compiler_options or None, planned=header.planned),
            **self._placed(),
        )
        structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.in_avals]
        executable = jitted.lower(*structs).compile()
        if header.plan is not None:
            peak = peak_bytes(executable.memory_analysis())
            self._header = replace(header, plan=replace(header.plan, measured_bytes=peak))
            self._check(header.plan.budget_bytes, peak)
        return executable

    def _placed(self) -> dict[str, Any]:
        """Where arguments and results are, for a program of several devices."""
        count = self._program.nr_devices
        if count == 1:
            return {}
        if count > len(jax.devices()):
            raise ExportError(
                f"{self.name} was exported for {count} devices, here are {len(jax.devices())}"
            )
        names, sizes, types = zip(*self._header.mesh, strict=True)
        devices = np.array(jax.devices()[:count]).reshape(sizes)
        kinds = tuple(AxisType[each] for each in types)
        mesh = Mesh(devices, names, axis_types=kinds)
        return {"in_shardings": self._program.in_shardings_jax(mesh)}

    def _check(self, budget: int | None, peak: int) -> None:
        if budget is not None and peak > budget:
            raise BudgetError(
                f"{self.name} was planned for {bytes_text(budget)}, and its peak here is "
                f"{bytes_text(peak)}\n  export it with a lower budget, or from where it runs",
                peak,
            )


def exported_of(
    jitted: Any,
    program: Program,
    call: tuple[Sequence[Any], Mapping[str, Any]],
    dynamic: tuple[Mapping[int, Any], Mapping[str, Any]],
    donated: Sequence[int],
    plan: MemoryPlan | None,
    compiler_options: Mapping[str, Any] | None,
    platforms: Sequence[str] | None,
    shardings: Any,
) -> Exported:
    """Export what `jitted`, a function of `jax.jit`'s, is for a call. Raises `ExportError`.

    `dynamic` are the arguments of the call that are not static; `shardings` a tree of those that
    were asked for.
    """
    args, kwargs = call
    outs = jax.tree_util.tree_leaves_with_path(program.out_shapes)
    try:
        made = jax.export.export(jitted, platforms=platforms)(*args, **kwargs)
    except (ValueError, NotImplementedError) as error:
        raise ExportError(f"JAX can't export {program.name}: {error}") from error
    flat = jax.tree.structure((tuple(made.in_avals), {}))
    header = Header(
        program.name,
        tuple(
            (path, str(type.strong()))
            for path, type in zip(program.signature.paths, program.signature.types, strict=True)
        ),
        tuple(("result" + jax.tree_util.keystr(path), _type(leaf)) for path, leaf in outs),
        tuple(sorted(dynamic[0])),
        written(program.out_shapes),
        tuple(donated),
        plan is not None,
        dict(compiler_options or {}),
        plan,
        {package: installed(package) for package in _PACKAGES},
        _mesh((shardings, dynamic)) if made.nr_devices > 1 else (),
    )
    out_tree = jax.tree.structure(list(made.out_avals))
    return Exported(header, replace(made, in_tree=flat, out_tree=out_tree))


def _mesh(tree: Any) -> tuple[tuple[str, int, str], ...]:
    """The mesh of the shardings, and of arrays, in a tree. Raises `ExportError` without one."""
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(getattr(leaf, "sharding", leaf), "mesh", None)
        if mesh is not None and not mesh.empty:
            types = (kind.name for kind in mesh.axis_types)
            return tuple(zip(mesh.axis_names, mesh.axis_sizes, types, strict=True))
    raise ExportError(
        "a program of several devices wants arguments with a jax.sharding.NamedSharding, or "
        "in_shardings\n  place the arguments on a mesh"
    )


def _type(leaf: Any) -> str:
    """The type of an array, a struct or a number; of anything else, its Python type."""
    if leaf is None:
        return "nothing"
    try:
        return str(type_of(jax.typeof(leaf) if not hasattr(leaf, "aval") else leaf).strong())
    except TypeError:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return str(type_of(leaf).strong())
        return type(leaf).__name__


def _read(path: Path) -> tuple[Header, bytes]:
    """Header and program of a file that is what it was. Raises `ExportError`."""
    first, _, rest = path.read_bytes().partition(b"\n")
    if not first.startswith(MAGIC):
        raise ExportError(f"{path} holds no exported step")
    if first != b"%s%d" % (MAGIC, VERSION):
        raise ExportError(
            f"{path} is of the form {first.decode(errors='replace')[:40]!r}, expected "
            f"'{MAGIC.decode()}{VERSION}'\n  export it again, by this version"
        )
    digest, _, body = rest.partition(b"\n")
    if sha256(body).hexdigest().encode() != digest:
        raise ExportError(f"{path} is damaged: its checksum differs\n  copy or export it again")
    size = int.from_bytes(body[:8], "big")
    try:
        return read_header(body[8 : 8 + size]), body[8 + size :]
    except ValueError as error:
        raise ExportError(f"{path} holds no exported step: {error}") from None


def _serialized(program: Any) -> bytes:
    try:
        return bytes(program.serialize())
    except ImportError as error:
        raise _lacking() from error


def _deserialized(path: Path, header: Header, program: bytes) -> Any:
    try:
        return jax.export.deserialize(bytearray(program))
    except ImportError as error:
        raise _lacking() from error
    except Exception as error:  # of many kinds
        raise ExportError(
            f"JAX {jax.__version__} can't read the program in {path}, which JAX "
            f"{header.versions.get('jax')} wrote: {error}"
        ) from error


def _lacking() -> ArgumentError:
    return ArgumentError(
        "programs are written by flatbuffers, which is not installed: pip install "
        "'backpass[export]'"
    )
