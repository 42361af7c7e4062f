"""Graphs as files: the formats, a folder of every stage with its manifest, `BACKPASS_DUMP`.

    NNN_stage.txt    each stage in order, as `bp.ir.parse` reads it
    graph.dot        the last stage for Graphviz
    graph.json       the last stage for Model Explorer
    trace.json       seconds of the passes, and memory over program order, for Perfetto
    program.mlir     StableHLO
    program.hlo      XLA's optimised HLO, on request: it takes a compilation
    manifest.json    what was dumped, with which versions; written last

A file is whole or not there: it is written under another name first.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import ArgumentError, DumpError, ParseError
from ..ir.graph import Graph
from ..ir.parser import parse
from ..ir.records import parsed, read
from ..passes import Stage
from .page import page
from .program import Program
from .timeline import chrome_trace

if TYPE_CHECKING:
    from .stages import Lowered

SCHEMA = "backpass.dump 1"
MANIFEST = "manifest.json"
_PACKAGES = ("backpass", "jax", "jaxlib", "numpy")


@dataclass(frozen=True)
class Format:
    """How a graph is written, or with `whole` how a `Lowered` is: the program, not one stage."""

    suffix: str
    render: Callable[[Any], str]
    whole: bool = False


FORMATS: Mapping[str, Format] = {
    "text": Format(".txt", str),
    "dot": Format(".dot", Graph.to_dot),
    "json": Format(".json", Graph.to_json),
    "html": Format(".html", page, whole=True),
    "stablehlo": Format(".mlir", lambda lowered: lowered.as_text("stablehlo"), whole=True),
    "hlo": Format(".hlo", lambda lowered: lowered.compile().as_text(), whole=True),
    "trace": Format(".json", chrome_trace, whole=True),
}
# What a dump's folder has besides the stages, and the format of each.
_FILES: Mapping[str, str] = {
    "graph.dot": "dot",
    "graph.json": "json",
    "trace.json": "trace",
    "program.mlir": "stablehlo",
}


def write_dump(lowered: Lowered, directory: Path, hlo: bool) -> list[Path]:
    """Write a program's dump; returns the paths, the manifest last. Raises `DumpError`."""
    files = {**_FILES, "program.hlo": "hlo"} if hlo else _FILES
    chosen = {name: FORMATS[format] for name, format in files.items()}
    more = {
        name: partial(each.render, lowered if each.whole else lowered.graph)
        for name, each in chosen.items()
    }
    return _write(lowered._program, lowered.stages, directory, more)


def _write(
    program: Program,
    stages: Sequence[Stage],
    directory: Path,
    more: Mapping[str, Callable[[], str]],
) -> list[Path]:
    """Write stages, then `more`; what an earlier dump left there goes first."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clear(directory)
    except OSError as error:
        raise _unwritable(directory, error) from error
    names = [stage_file(i, stage.name) for i, stage in enumerate(stages)]
    graph, text = None, ""
    for name, stage in zip(names, stages, strict=True):
        if stage.graph is not graph:  # most passes leave most programs as they are
            graph, text = stage.graph, str(stage.graph)
        write_text(directory / name, text)
    for name, render in more.items():
        write_text(directory / name, render())
    manifest = _manifest(program, stages, names, [*more])
    write_text(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return [directory / name for name in (*names, *more, MANIFEST)]


def stage_file(position: int, name: str, suffix: str = ".txt") -> str:
    """`003_cse.txt`: what the file of a stage is called."""
    return f"{position:03d}_{_plain(name)}{suffix}"


def _plain(name: str) -> str:
    """A name that is one part of a path."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises `DumpError`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all. Raises `DumpError`."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            hidden.write_bytes(data)
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> DumpError:
    return DumpError(f"cannot write {path}: {error.strerror or error}\n  give a place to write to")


def _clear(directory: Path) -> None:
    """Remove the files that the manifest of an earlier dump lists; others are not ours."""
    manifest = directory / MANIFEST
    if not manifest.exists():
        return
    try:
        old = read_manifest(directory)["files"]
    except ArgumentError:
        return
    manifest.unlink()
    for name in old:
        if name == Path(name).name and (directory / name).is_file():
            (directory / name).unlink(missing_ok=True)


def _manifest(
    program: Program, stages: Sequence[Stage], names: Sequence[str], more: Sequence[str]
) -> dict[str, Any]:
    signature = program.signature
    arguments = zip(signature.paths, signature.types, strict=True)
    return {
        "schema": SCHEMA,
        "name": program.name,
        "versions": {
            "python": platform.python_version(),
            **{package: installed(package) for package in _PACKAGES},
        },
        "arguments": [{"path": path, "type": str(type)} for path, type in arguments],
        "static": [{"path": path, "value": repr(value)[:200]} for path, value in signature.static],
        "results": [str(value.type) for value in stages[-1].graph.outputs],
        "stages": [
            {
                "name": stage.name,
                "file": name,
                "seconds": stage.seconds,
                "nodes": len(stage.graph.nodes),
                "phases": Counter(node.phase for node in stage.graph.nodes),
                "in_regions": sum(1 for _ in stage.graph.walk()) - len(stage.graph.nodes),
            }
            for stage, name in zip(stages, names, strict=True)
        ],
        "files": [*names, *more],
    }


def installed(package: str) -> str:
    """Version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# Reading


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a dump. Raises `ArgumentError` where there is none of ours."""
    try:
        found: dict[str, Any] = read(dict[str, Any], parsed((directory / MANIFEST).read_bytes()))
        if found.get("schema") != SCHEMA:
            raise ValueError(f"{MANIFEST} is not of the form {SCHEMA!r}")
        read(tuple[str, ...], found.get("files"), "files")
        for stage in read(tuple[dict[str, Any], ...], found.get("stages"), "stages"):
            read(tuple[str, str], [stage.get("name"), stage.get("file")], "name and file")
        if not found["stages"]:
            raise ValueError(f"{MANIFEST} lists no stages")
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{directory} holds no dump: {error}") from None
    return found


def read_stages(path: Path) -> list[tuple[str, Callable[[], Graph]]]:
    """Name and graph of each stage in a dump's folder or in a file, read when it is called for."""
    if not path.is_dir():
        return [(path.stem, lambda: _read(path))]
    stages = read_manifest(path)["stages"]
    return [(each["name"], partial(_read, path / Path(each["file"]).name)) for each in stages]


def _read(path: Path) -> Graph:
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:  # also of a name that no file can have
        raise ArgumentError(f"cannot read {str(path)!r}: {error}") from None
    try:
        return parse(text, opaque=True)
    except ParseError as error:
        raise ParseError(f"{path}, {error}") from None


# BACKPASS_DUMP


def dump_by_environment(program: Program, stages: Sequence[Stage]) -> None:
    """Write the stages into `$BACKPASS_DUMP/<function>-<n>/`, where that is set.

    A dump never breaks the step: what goes wrong is told once.
    """
    root = os.environ.get("BACKPASS_DUMP")
    if not root:
        return
    try:
        _write(program, stages, _fresh(Path(root), _plain(program.name)), {})
    except Exception as error:
        _warn_once(root, f"{error}")


def _fresh(root: Path, name: str) -> Path:
    """Make the folder `root/name-n` of the first n that is free."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for directory in _numbered(root, name):
            try:
                directory.mkdir()
            except FileExistsError:
                continue
            return directory
    except OSError as error:
        raise _unwritable(root, error) from error
    raise AssertionError("numbers never end")


def _numbered(root: Path, name: str) -> Iterator[Path]:
    return (root / f"{name}-{n}" for n in count())


@cache
def _warn_once(root: str, text: str) -> None:
    warnings.warn(f"BACKPASS_DUMP={root}: {text}", stacklevel=2)
