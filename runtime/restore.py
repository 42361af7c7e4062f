"""`bp.restore`: the state that `bp.Saver` saved, compared with what it is to take the place of."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ..ir.errors import ArgumentError, RestoreError
from .leaves import (
    Record,
    describe,
    differs,
    empty,
    flatten,
    is_read_in_parts,
    is_stored,
    record_of,
    restored,
    sharding_of,
)

FORMAT = "backpass.state 1"
_SHOWN = 8  # leaves that an error names


def orbax() -> Any:
    """Orbax's module. Raises `ArgumentError` where it is not installed."""
    try:
        import orbax.checkpoint
    except ModuleNotFoundError as error:
        raise ArgumentError(
            "states are saved by Orbax, which is not installed: pip install 'backpass[checkpoints]'"
        ) from error
    return orbax.checkpoint


def restore(directory: str | Path, like: Any, *, step: int | None = None) -> tuple[int, Any] | None:
    """Return `(step, state)` of the latest save in a directory, or None where there is none.

    Only reads: another process may be saving there. Each leaf comes back bit for bit as what it
    was: JAX's array, NumPy's, a key, a Python number; with its weak type, and on the sharding that
    `like` has there.

    Args:
        directory: where `bp.Saver` saved.
        like: a pytree of the state's structure, of arrays or `jax.ShapeDtypeStruct`s, whose values
            are not read.
        step: the save to restore, if not the latest.

    Raises:
        RestoreError: the save is damaged, of another structure, shape or dtype, or there is none
            of that step.
        ArgumentError: a leaf of `like` can't be in a state, or Orbax is not installed.
    """
    ocp = orbax()
    leaves, tree = flatten(like)
    root = Path(directory).absolute()
    try:
        return _restored(ocp, root, leaves, tree, step)
    except OSError as error:  # the directory's; those of a save's own files are told as damage
        raise RestoreError(f"cannot read {root}: {error.strerror or error}") from error


def _restored(
    ocp: Any, root: Path, leaves: Sequence[tuple[str, Any]], tree: Any, step: int | None
) -> tuple[int, Any] | None:
    wanted = [describe(path, leaf) for path, leaf in leaves]
    if not root.is_dir():
        _refuse(root, step, [])
        return None
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
    with ocp.CheckpointManager(root, options=options) as manager:
        steps = sorted(manager.all_steps())
        chosen = steps[-1] if steps and step is None else step
        if chosen is None or chosen not in steps:
            _refuse(root, step, steps)
            return None
        try:
            found = _read(ocp, manager, chosen, wanted, [leaf for _, leaf in leaves])
        except RestoreError as error:
            raise RestoreError(
                f"step {chosen} in {root} {error}{_others(chosen, steps)}"
            ) from error.__cause__
    return chosen, tree.unflatten(found)


def _read(
    ocp: Any, manager: Any, step: int, wanted: Sequence[Record], likes: Sequence[Any]
) -> list[Any]:
    """The leaves of one save. Raises `RestoreError`."""
    try:
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        records = _records(about["about"])
        _compare(records, wanted)
        names = [name_of(i, record.path) for i, record in enumerate(records)]
        asked = {
            name: _way(ocp, record, like)
            for name, record, like in zip(names, records, likes, strict=True)
            if is_stored(record)
        }
        numbers: dict[str, Any] = {}
        if asked:
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=asked))
            numbers = manager.restore(step, args=args)["state"]
        return [
            restored(record, numbers[name] if name in asked else empty(record), like)
            for name, record, like in zip(names, records, likes, strict=True)
        ]
    except RestoreError:
        raise
    except Exception as error:  # files are damaged in many ways, and Orbax raises as many errors
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise RestoreError(f"is damaged, or was not saved by bp.Saver: {told}") from error


def _way(ocp: Any, record: Record, like: Any) -> Any:
    """How Orbax reads an array: as a whole, or each process what it holds."""
    if is_read_in_parts(record, like):
        return ocp.ArrayRestoreArgs(sharding=sharding_of(like), global_shape=record.shape)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _compare(saved: Sequence[Record], wanted: Sequence[Record]) -> None:
    """Raise `RestoreError` where the leaves of a save and those that are wanted differ."""
    old = {record.path: record for record in saved}
    new = {record.path: record for record in wanted}
    lines = [
        f"{path}: saved {old.get(path, 'nothing')}, expected {new.get(path, 'nothing')}"
        for path in {**new, **old}
        if path not in old or path not in new or differs(old[path], new[path])
    ]
    if not lines and [*old] != [*new]:
        lines = ["the same leaves in another order"]
    if lines:
        more = [f"{len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        told = "\n  ".join([*lines[:_SHOWN], *more])
        raise RestoreError(
            f"is of another state than expected\n  {told}\n"
            "  build the state as the run did that saved it, or give another directory"
        )


def _others(step: int, steps: Sequence[int]) -> str:
    """What else there is to restore."""
    rest = [s for s in steps if s != step]
    return f"\n  there are also steps {', '.join(map(str, rest))}: give step=" if rest else ""


def _refuse(root: Path, step: int | None, steps: Sequence[int]) -> None:
    """Raise `RestoreError` where a step was asked for."""
    if step is not None:
        held = f"steps {', '.join(map(str, steps))}" if steps else "no save"
        raise RestoreError(f"there is no save of step {step} in {root}, which holds {held}")


# How the two parts of a save are written; `saver.py` uses them


def name_of(position: int, path: str) -> str:
    """What a leaf's array is called among Orbax's: unlike any other, and to be recognised."""
    return f"{position:05d}_{re.sub(r'[^0-9A-Za-z]+', '_', path).strip('_')[:80]}"


def about_of(records: Sequence[Record]) -> dict[str, Any]:
    """The records as JSON, with a checksum of their own."""
    listed = [record.as_json() for record in records]
    return {"format": FORMAT, "checksum": _checksum(listed), "leaves": listed}


def _records(about: Any) -> list[Record]:
    if about["format"] != FORMAT:
        raise RestoreError(f"is of the form {about['format']!r}, expected {FORMAT!r}")
    if about["checksum"] != _checksum(about["leaves"]):
        raise RestoreError("is damaged: the checksum of its records differs")
    return [record_of(each) for each in about["leaves"]]


def _checksum(listed: Any) -> int:
    return crc32(json.dumps(listed, sort_keys=True).encode())
