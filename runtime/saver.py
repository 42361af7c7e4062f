"""`bp.Saver`: the state of a training run on disk, by Orbax, whole or not at all.

A save is one folder `DIRECTORY/STEP`, written under another name and moved into its place when all
of it is on disk. It holds `state`, the arrays in Orbax's format, and `about`, one record for each
leaf with its path, type and checksum (`leaves.py`).
"""

from __future__ import annotations

import operator
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from ..ir.errors import ArgumentError, SaveError
from .leaves import describe, fetch, flatten, is_stored, start_fetching
from .lock import Lock
from .restore import about_of, name_of, orbax, restore

# A save needs new threads until it is whole, and these Pythons start none once a program ends, not
# even in the hook below (python/cpython#113964): there `save` waits, so that no save is lost.
_WAITS = (3, 12, 0) <= sys.version_info < (3, 12, 2)


class Saver:
    """Saves a state as training goes on, and gives it back after a crash.

        with bp.Saver("runs/a", every=100, keep=3) as saver:
            start, state = saver.restore(state) or (0, state)
            for step in range(start, 10_000):
                state, loss = train_step(state, batch_of(step))
                saver.save(step + 1, state)

    `save` copies the state and returns; it is written while training goes on, so that a step may
    be given the state's buffers at once. A save counts when it is whole: the next `save`, `wait`
    and `close` wait for it, and raise `SaveError` if it failed, in which case the saves before it
    are still there. One process at a time saves in a directory; with `jax.distributed`, all
    processes of one run call alike.

    Args:
        directory: of this run alone; made where there is none.
        every: `save` does nothing at steps that are no multiple of it.
        keep: how many saves are kept, the latest ones; None keeps all.

    Raises:
        SaveError: the directory can't be written to, or another process saves there.
        ArgumentError: `every` or `keep` are no positive numbers, or Orbax is not installed.
    """

    def __init__(self, directory: str | Path, *, every: int = 1, keep: int | None = 3) -> None:
        for name, value in {"every": every, "keep": 1 if keep is None else keep}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} wants a positive number, got {value!r}")
        self._ocp = orbax()
        self._root = Path(directory).absolute()
        self._every = every
        self._keep = keep
        self._known: int | None = None  # the last step that this object saved or restored
        self._writing: int | None = None
        self._open: Any = None
        with self._told("begin to save"):
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self._root) if jax.process_index() == 0 else None
            self._manager()
        _before_threads_end(self)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps whose saves are whole."""
        return tuple(sorted(self._manager().all_steps()))

    def save(self, step: int, state: Any, *, force: bool = False) -> bool:
        """Begin to save a pytree of arrays, keys, numbers and strings; returns whether it does.

        Args:
            step: how many steps are done; larger than that of any save in the directory.
            state: its arrays are copied before this returns, and may be donated then.
            force: save whatever `every` says.

        Raises:
            SaveError: this save can't begin, or the last one failed.
            ArgumentError: a leaf can't be saved; `DonationError` for one that is gone.
        """
        step = _checked(step)
        if not force and step % self._every:
            return False
        leaves, _ = flatten(state)
        for path, leaf in leaves:
            describe(path, leaf)  # what can't be saved is told before anything is done
        self.wait()
        if not self._follows(step):
            return False
        start_fetching([leaf for _, leaf in leaves])
        fetched = [fetch(path, leaf) for path, leaf in leaves]
        records = [record for record, _ in fetched]
        numbers = {
            name_of(i, record.path): each
            for i, (record, each) in enumerate(fetched)
            if is_stored(record)
        }
        args = {"about": self._ocp.args.JsonSave(about_of(records))}
        if numbers:
            args["state"] = self._ocp.args.PyTreeSave(numbers)
        self._writing = step
        with self._told(f"save step {step}"):
            self._manager().save(step, args=self._ocp.args.Composite(**args), force=True)
        self._known = step
        if _WAITS:
            self.wait()
        return True

    def restore(self, like: Any, *, step: int | None = None) -> tuple[int, Any] | None:
        """Return `(step, state)` of the latest save, or None; see `bp.restore`."""
        self.wait()
        found = restore(self._root, like, step=step)
        self._known = found and found[0]
        return found

    def wait(self) -> None:
        """Return when what was saved is on disk. Raises `SaveError` where it could not be."""
        if self._open is not None:
            with self._told(f"save step {self._writing}"):
                self._open.wait_until_finished()
        self._writing = None

    def close(self) -> None:
        """Wait, and let others save in the directory. Raises `SaveError`."""
        try:
            self.wait()
        finally:
            self._drop()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; where an error is on its way already, a failed save is a note to it."""
        try:
            self.close()
        except SaveError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    def __repr__(self) -> str:
        return f"<backpass.Saver {self._root} every={self._every} keep={self._keep}>"

    def _manager(self) -> Any:
        """Orbax's manager; a new one removes what a process that was killed left half-written."""
        if self._open is None:
            from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

            kept = policies.PreserveAll() if self._keep is None else policies.LatestN(self._keep)
            options = self._ocp.CheckpointManagerOptions(
                preservation_policy=kept, cleanup_tmp_directories=True
            )
            self._open = self._ocp.CheckpointManager(self._root, options=options)
        return self._open

    def _follows(self, step: int) -> bool:
        """False where this very step is saved. Raises `SaveError` for one before the latest."""
        latest = self._manager().latest_step()
        if latest is None or step > latest:
            return True
        if step == latest == self._known:
            return False
        raise SaveError(
            f"cannot save step {step}: {self._root} holds saves up to step {latest}\n"
            "  restore that one first, or give another directory"
        )

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Raise `SaveError` in the place of whatever the system, or Orbax, raises."""
        try:
            yield
        except SaveError:
            raise
        except Exception as error:
            told = f"cannot {what} in {self._root}: {_reason(error)}{self._left()}"
            self._drop()
            raise SaveError(told) from error

    def _left(self) -> str:
        """What there still is after a failure."""
        if self._known is None and self._writing is None:
            return "\n  give a directory that can be written to"
        steps = sorted(int(p.name) for p in _folders(self._root) if p.name.isdigit())
        kept = f"step {steps[-1]} can be restored" if steps else "there is no earlier save"
        return (
            f"\n  {kept}; the state in memory is as it was: make room or mend the cause, and go on"
        )

    def _drop(self) -> None:
        """Let go of Orbax's manager, whatever state it is in; half a save goes with the next."""
        manager, self._open, self._writing = self._open, None, None
        if manager is not None:
            with suppress(Exception):  # the failure that is being told, once more
                manager.close()


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []


def _reason(error: BaseException) -> str:
    """The system's own words where an error has any: `No space left on device`."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of what Orbax writes with
    if code:
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _checked(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0 or isinstance(step, bool):
        raise ArgumentError(f"step wants a number of steps that are done, got {step!r}")
    return number


def _before_threads_end(saver: Saver) -> None:
    """Wait for the last save when Python ends, though nobody closed the saver.

    Orbax starts threads until the end of a save, which Python forbids before it calls `atexit`:
    the hook that is early enough has no public name.
    """
    register = getattr(threading, "_register_atexit", None)
    known = weakref.ref(saver)

    def finish() -> None:
        alive = known()
        if alive is not None:
            alive.wait()

    if register is not None:
        register(finish)
