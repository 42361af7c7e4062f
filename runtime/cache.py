"""A folder of entries that several processes share: one file each, checked whenever it is read.

    file   ::= header newline body                  the header is JSON, and the body of a plan
    header ::= {"format": 1, "key": ..., "sha256": digest of the body's bytes}

An entry is put in its place in one move, so that readers and other writers meet all of it or
nothing. One that is damaged is dropped with a `CacheWarning`, and whoever asked does without; so
it is where nothing can be written. The folder is the user's own, and private: what lies there
decides what runs. Past a limit in bytes, the entries that were not used for longest go.
"""

from __future__ import annotations

import json
import os
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from ..ir.errors import CacheError, CacheWarning
from ..ir.records import parsed, read

FORMAT = 1
_HEADER = 1024  # bytes of a header, at most
_STALE = 3600.0  # seconds after which a file that somebody began to write is left over
_OPEN = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class _Damaged(Exception):
    """An entry is not as it was written."""


@dataclass(frozen=True)
class _Header:
    """The first line of an entry."""

    format: int
    key: str
    sha256: str


@dataclass(frozen=True)
class Kind:
    """What an entry holds: how its file's name ends, and bytes of one and of all, at most."""

    suffix: str
    largest: int
    limit: int


PLANS = Kind(".json", 32 << 20, 256 << 20)
EXECUTABLES = Kind(".xla", 2 << 30, 16 << 30)


@dataclass(frozen=True)
class Store:
    """The entries of one kind in a folder; made by `opened`."""

    directory: Path
    kind: Kind = PLANS

    def read(self, name: str, key: str) -> Any:
        """What was written for `key`, from JSON; None where there is none."""
        body = self.read_bytes(name, key)
        if body is None:
            return None
        try:
            return parsed(body)
        except ValueError:
            self.drop(name, "its body is no JSON")
            return None

    def read_bytes(self, name: str, key: str) -> bytes | None:
        """The body of an entry that was written for `key`; None where there is none."""
        path = self._path(name)
        try:
            body = _checked(_bytes(path, self.kind.largest), key)
        except FileNotFoundError:
            return None
        except (_Damaged, OSError) as error:
            self.drop(name, str(error))
            return None
        with suppress(OSError):
            os.utime(path)
        return body

    def write(self, name: str, key: str, body: Any) -> None:
        """Put an entry in its place as JSON, and make room for it."""
        text = json.dumps(body, allow_nan=False, separators=(",", ":"))
        self.write_bytes(name, key, text.encode())

    def write_bytes(self, name: str, key: str, body: bytes) -> None:
        """Put an entry in its place, and make room for it."""
        header = _Header(FORMAT, key, sha256(body).hexdigest())
        whole = json.dumps(asdict(header)).encode() + b"\n" + body
        if len(whole) > self.kind.largest:
            return
        try:
            _put(self._path(name), whole)
        except OSError as error:
            _warn(
                f"{self.directory} takes no new entries: {error.strerror or error}\n  what is "
                "compiled now will be prepared again in the next process"
            )
            return
        self._make_room()

    def drop(self, name: str, why: str) -> None:
        """Remove an entry that is of no use, and tell."""
        path = self._path(name)
        left = ""
        try:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        except FileNotFoundError:  # another process was faster
            pass
        except OSError as error:
            left = f"; it could not be removed: {error.strerror or error}"
        _warn(f"{path} was dropped: {why}{left}\n  it will be made again")

    def names(self, prefix: str) -> list[str]:
        """Names of the entries that begin so."""
        found = (path.name for path, _ in self.files())
        return sorted(n.removesuffix(self.kind.suffix) for n in found if n.startswith(prefix))

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """The files of all entries."""
        found: list[tuple[Path, os.stat_result]] = []
        with suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.name.endswith(self.kind.suffix):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return sum(about.st_size for _, about in self.files())

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}{self.kind.suffix}"

    def _make_room(self) -> None:
        """Remove the entries that were not used for longest, past the limit; and leftovers."""
        files = sorted(self.files(), key=lambda file: file[1].st_mtime_ns)
        size = sum(about.st_size for _, about in files)
        for path, about in files:
            if size <= self.kind.limit:
                break
            size -= about.st_size
            with suppress(OSError):
                path.unlink()
        for path in self._begun():
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _STALE:
                    path.unlink()

    def _begun(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from self.directory.glob("*.tmp")


def opened(directory: Path, kind: Kind = PLANS) -> Store:
    """Open a folder of entries, making it if need be.

    Raises `CacheError` where it cannot be made, or where others may write to it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = directory.stat()
    except OSError as error:
        raise CacheError(
            f"{directory} cannot be a cache: {error.strerror or error}\n  give another folder"
        ) from error
    _refuse_what_others_own(directory, about)
    return Store(directory, kind)


def _refuse_what_others_own(directory: Path, about: os.stat_result) -> None:
    """Raise `CacheError` unless the folder is the user's, and nobody else may write to it."""
    who = getattr(os, "geteuid", lambda: about.st_uid)()
    if about.st_uid != who:
        what, cure = f"it belongs to user {about.st_uid}, not to {who}", "give one of your own"
    elif os.name == "posix" and about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what, cure = "others may write to it", f"chmod 700 {directory}"
    else:
        return
    raise CacheError(
        f"{directory} cannot be a cache: {what}, and what lies in it decides what runs\n  {cure}"
    )


def _bytes(path: Path, largest: int) -> bytes:
    """Read a plain file, and wait for none. Raises `OSError`, `_Damaged`."""
    with open(os.open(path, _OPEN), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise _Damaged("it is no file")
        if about.st_size > largest:
            raise _Damaged(f"it has {about.st_size} bytes, the limit is {largest}")
        return file.read()


def _checked(whole: bytes, key: str) -> bytes:
    """The body of an entry for `key`. Raises `_Damaged`."""
    head, newline, body = whole.partition(b"\n")
    if not newline or len(head) > _HEADER:
        raise _Damaged("it has no header")
    try:
        header = read(_Header, parsed(head))
    except ValueError:
        raise _Damaged("its header makes no sense") from None
    if (header.format, header.key) != (FORMAT, key):
        raise _Damaged("it belongs to something else")
    if header.sha256 != sha256(body).hexdigest():
        raise _Damaged("its checksum is wrong")
    return body


def _put(path: Path, whole: bytes) -> None:
    """Write a file beside its place, then move it there. Raises `OSError`."""
    with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(whole)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _warn(text: str) -> None:
    warnings.warn(text, CacheWarning, stacklevel=4)
