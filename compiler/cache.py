"""`bp.cache`: what was compiled and planned is kept for the next process.

XLA's executables are kept by JAX's persistent cache, which decides their keys; their files are
ours, checked and put in place in one move. Our plans lie beside them, in the folder `backpass` of
JAX's `jax_compilation_cache_dir`: whoever turns on JAX's cache alone has plans too. A plan is worth
keeping, as it was found by compiling several. The graphs that the passes make are not: making them
again takes little of that time (`benchmarks/cache.py`), and the trace is made in any case.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache as once
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from ..ir.errors import CacheError, CacheWarning
from ..ir.jax_compat import ExecutableCache, keep_executables
from ..ir.tables import bytes_text
from ..runtime.cache import EXECUTABLES, Store, opened
from ..runtime.device import VARIABLE, cache_path

_PACKAGE = Path(__file__).parents[1]
_LAYERS = ("compiler", "dynamic", "ir", "passes", "runtime")
_FOLDER = "backpass"


@dataclass(frozen=True)
class Cache:
    """A cache's folder, and what lies in it; prints as a line."""

    directory: Path

    @property
    def entries(self) -> int:
        """Plans that are kept."""
        return len(self._store.files())

    @property
    def executables(self) -> int:
        """Executables that are kept."""
        return len(self._executables.files())

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return self._store.bytes + self._executables.bytes

    def __str__(self) -> str:
        """The folder, entries and bytes."""
        return (
            f"{self.directory}: {self.executables} executables, {self.entries} plans, "
            f"{bytes_text(self.bytes)}"
        )

    @property
    def _store(self) -> Store:
        return Store(self.directory / _FOLDER)

    @property
    def _executables(self) -> Store:
        return Store(self.directory / _FOLDER, EXECUTABLES)


def cache(directory: str | os.PathLike[str] | None = None) -> Cache:
    """Keep executables and plans in a folder, where later processes find them.

    Sets JAX's `jax_compilation_cache_dir`, and has it keep also what compiled quickly. The folder
    is made private to the user; what lies in it decides what runs.

    Args:
        directory: the folder; by default `$XDG_CACHE_HOME/backpass/programs`, or
            `~/.cache/backpass/programs`.

    Returns:
        The cache, which tells its size.

    Raises:
        CacheError: the folder cannot be made, or others may write to it.
    """
    path = Path(default_directory() if directory is None else directory).expanduser().absolute()
    opened(path)
    executables = opened(path / _FOLDER, EXECUTABLES)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    keep_executables(
        ExecutableCache(
            path,
            lambda key: executables.read_bytes(key, key),
            lambda key, value: executables.write_bytes(key, key, value),
        )
    )
    return Cache(path)


def default_directory() -> Path:
    """The folder of a user's cache."""
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder) / "backpass" / "programs"


def current() -> Cache | None:
    """The cache that is turned on, by `cache` or by JAX's own setting; on this machine's disks."""
    found = _setting("jax_compilation_cache_dir")
    if not found or not _setting("jax_enable_compilation_cache") or "://" in found:
        return None
    return Cache(Path(found).absolute())


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def store() -> Store | None:
    """Where plans are kept, where they are; warns of a folder that cannot be used."""
    found = current()
    if found is None:
        return None
    try:
        return opened(found.directory / _FOLDER)
    except CacheError as error:
        warnings.warn(f"{error}\n  no plans are kept", CacheWarning, stacklevel=2)
        return None


def key_of(*parts: Hashable) -> str:
    """A key for what depends on `parts` and on the environment."""
    return sha256(json.dumps([environment(), *map(repr, parts)]).encode()).hexdigest()


def environment() -> list[Any]:
    """What decides plans beside the program: versions, device, XLA's flags."""
    versions = [jax.__version__, version("jaxlib"), list(sys.version_info[:2]), _sources()]
    device = jax.devices()[0]
    asked = [os.environ.get(name, "") for name in (VARIABLE, "XLA_FLAGS")]
    return [*versions, cache_path(device).name, len(jax.devices()), *asked]


@once
def _sources() -> str:
    """A digest of our own code: another version plans otherwise."""
    digest = sha256()
    for layer in _LAYERS:
        for path in sorted((_PACKAGE / layer).rglob("*.py")):
            digest.update(str(path.relative_to(_PACKAGE)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
