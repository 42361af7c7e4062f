"""Faults of a cache's folder: whatever lies in it, steps give the same numbers, or a warning.

    PYTHONPATH=tests python -m stress.cache --entries 500 --executables 50 --processes 2 8
    PYTHONPATH=tests python -m stress.cache --mounts             # as root: a full disk, a read-only one

Each damage is done to an entry that was just made; a new compiled function, which remembers
nothing, then meets it. Its result has to be that of a step without a cache, bit by bit; a damaged
entry has to be told of by a `CacheWarning`, and made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp
from backpass.compiler.settled import forget
from backpass.runtime import cache as files

WIDTH, ROWS, LAYERS = 16, 1024, 6
BUDGETS = (400_000, 500_000)
Damage = Callable[[Path, Path, random.Random], None]


def step(w, x):
    def loss(w):
        h = x
        for each in w:
            h = jnp.tanh(h @ each)
        return (h * h).mean()

    value, grads = bp.value_and_grad(loss)(w)
    return [p - 0.1 * g for p, g in zip(w, grads, strict=True)], value


def arguments() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    w = list(rng.standard_normal((LAYERS, WIDTH, WIDTH)).astype(np.float32) / 4)
    return w, rng.standard_normal((ROWS, WIDTH)).astype(np.float32)


def run(budget: int) -> tuple[str, str]:
    """A digest of what a new compiled function gives under a budget, and what was warned of."""
    forget()
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        out = bp.compile(step, memory_budget=budget)(*arguments())
    kinds = sorted({f"{each.category.__name__}" for each in met})
    digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(out)))
    return digest.hexdigest(), ",".join(kinds)


def _rewritten(change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]) -> Damage:
    """An entry with another header and body, the checksum right."""

    def damage(path: Path, other: Path, rng: random.Random) -> None:
        head, _, body = path.read_bytes().partition(b"\n")
        header, body = change(json.loads(head), body)
        header["sha256"] = hashlib.sha256(body).hexdigest()
        path.write_bytes(json.dumps(header).encode() + b"\n" + body)

    return damage


def _flipped(path: Path, other: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _truncated(path: Path, other: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _replaced(make: Callable[[Path], Any]) -> Damage:
    def damage(path: Path, other: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


def _huge(path: Path) -> None:
    path.write_bytes(b"[" * 10)
    os.truncate(path, files.PLANS.largest + 1)


def _kept_folder(path: Path) -> None:
    path.mkdir()
    (path / "thing").write_text("kept")


ANY: dict[str, Damage] = {  # of any file
    "flipped": _flipped,
    "truncated": _truncated,
    "noise": lambda path, other, rng: (
        path.write_bytes(rng.randbytes(rng.randrange(1, 4000))) and None
    ),
    "empty": _replaced(Path.touch),
    "swapped": lambda path, other, rng: path.write_bytes(other.read_bytes()) and None,
}
OURS: dict[str, Damage] = ANY | {
    "version": _rewritten(lambda head, body: ({**head, "format": 99}, body)),
    "header": _rewritten(lambda head, body: ({"format": head}, body)),
    "nested": _rewritten(lambda head, body: (head, b"[" * 100_000 + b"]" * 100_000)),
    "list": _rewritten(lambda head, body: (head, b"[1, 2]")),
    "number": _rewritten(lambda head, body: (head, b"1e999")),
    "choice": _rewritten(lambda head, body: (head, b'{"choice": {"bodies": 3}, "peak": 1}')),
    "other plan": _rewritten(
        lambda head, body: (head, b'{"choice": {"bodies": [], "stretches": []}, "peak": 1}')
    ),
    "low peak": _rewritten(
        lambda head, body: (head, json.dumps({**json.loads(body), "peak": 1}).encode())
    ),
    "huge": _replaced(_huge),
    "folder": _replaced(Path.mkdir),
    "full folder": _replaced(_kept_folder),
    "pipe": _replaced(os.mkfifo),
    "link": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "loop": _replaced(lambda path: path.symlink_to(path)),
}
UNSEEN = {"low peak"}  # such entries are sound, and their plan is


def check_entries(count: int, seed: int) -> list[str]:
    """Damage plans; returns what went wrong."""
    rng, wrong, seen = random.Random(seed), [], Counter[str]()
    with cached() as folder:
        expected = {budget: run(budget)[0] for budget in BUDGETS}
        plans = sorted((folder / "backpass").glob("plan-*.json"))
        assert len(plans) == len(BUDGETS), plans
        sound = {path: path.read_bytes() for path in plans}
        for i in range(count):
            name = list(OURS)[i % len(OURS)] if i < 2 * len(OURS) else rng.choice(list(OURS))
            at = rng.randrange(len(plans))
            path, budget = plans[at], int(plans[at].stem.rpartition("-")[2])
            OURS[name](path, plans[1 - at], rng)
            same = name in ANY and path.read_bytes() == sound[path]
            digest, told = run(budget)
            again, silent = run(budget)
            want = "" if name in UNSEEN or same else "CacheWarning"
            if (digest, again, told) != (expected[budget], expected[budget], want):
                wrong.append(f"{name}: {digest == expected[budget]}, told {told!r}")
            if name == "full folder":  # stays, as it is not ours; told again
                shutil.rmtree(path)
                run(budget)
            elif silent:
                wrong.append(f"{name}: told again: {silent}")
            seen[name] += 1
            for each, data in sound.items():
                each.write_bytes(data)
    print(f"{sum(seen.values())} damaged plans, {len(wrong)} wrong: {dict(seen)}", flush=True)
    return wrong


def check_executables(count: int, seed: int) -> list[str]:
    """Damage executables; returns what went wrong."""
    rng, wrong, seen = random.Random(seed), [], Counter[str]()
    with cached() as folder:
        expected = run(BUDGETS[0])[0]
        jax.jit(lambda w, x: (w, x.sum()))(*arguments())
        entries = sorted((folder / "backpass").glob("*.xla"))
        for path in entries:
            os.utime(path, (1, 1))
        run(BUDGETS[0])  # reads one executable of the step: that of its plan
        used = [path for path in entries if path.stat().st_mtime > 1]
        own = [path for path in used if path.name.startswith("jit_step")]
        assert len(own) == 1, used
        sound = {path: path.read_bytes() for path in entries}
        for _ in range(count):
            name, path = rng.choice(list(ANY)), rng.choice(own)
            ANY[name](path, rng.choice([e for e in entries if e is not path]), rng)
            digest, told = run(BUDGETS[0])
            seen[name] += 1
            if digest != expected or told != "CacheWarning" or run(BUDGETS[0])[1]:
                wrong.append(f"executable {name}: {digest == expected}, told {told!r}")
            for each, data in sound.items():
                each.write_bytes(data)
    print(f"{count} damaged executables, {len(wrong)} wrong: {dict(seen)}", flush=True)
    return wrong


WORKER = """
import sys
from stress.cache import BUDGETS, run
import backpass as bp
bp.cache(sys.argv[1])
for i in range(int(sys.argv[2])):
    print(*run(BUDGETS[i % 2]), flush=True)
"""


def check_processes(workers: int, rounds: int) -> list[str]:
    """Several processes fill one cache at once, while entries go away; what went wrong."""
    wrong = []
    expected = {run(budget)[0] for budget in BUDGETS}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-c", WORKER, folder, str(rounds)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        running = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
            )
            for _ in range(workers)
        ]
        rng = random.Random(workers)
        while any(each.poll() is None for each in running):
            for path in Path(folder, "backpass").glob("plan-*.json"):
                if rng.random() < 0.3:
                    path.unlink(missing_ok=True)
            try:
                running[0].wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        lines = 0
        for each in running:
            out, err = each.communicate()
            found = [line.split() for line in out.splitlines()]
            lines += len(found)
            if each.returncode or len(found) != rounds:
                wrong.append(f"a process ended with {each.returncode}: {err[-2000:]}")
            wrong += [f"a process: {line}" for line in found if line[0] not in expected]
            wrong += [f"a process warned: {line}" for line in found if "CacheWarning" in line[1:]]
        left = list(Path(folder, "backpass").glob("*.tmp"))
        wrong += [f"left over: {path}" for path in left]
    print(f"{workers} processes, {lines} steps, {len(wrong)} wrong", flush=True)
    return wrong


def check_mounts() -> list[str]:
    """A full disk and a read-only one, each a small tmpfs; what went wrong."""
    wrong, expected = [], run(BUDGETS[0])[0]
    for options, fill in (("size=64k", True), ("size=8m,ro", False)):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", folder], check=True
            )
            try:
                bp.cache(folder)
                subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
                if fill:
                    _fill(Path(folder, "filler"))
                found = [run(BUDGETS[0]) for _ in range(3)]
                if any(digest != expected or "CacheWarning" not in told for digest, told in found):
                    wrong.append(f"{options}: {found}")
                print(f"{options}: {found[0][1]}", flush=True)
            finally:
                off()
                subprocess.run(["umount", folder], check=True)
    return wrong


def _fill(path: Path) -> None:
    """Write until nothing more goes on the disk."""
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
    except OSError:
        return


@contextmanager
def cached() -> Iterator[Path]:
    """A cache in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        bp.cache(folder)
        try:
            yield Path(folder)
        finally:
            off()


def off() -> None:
    """Turn the cache off."""
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    forget()


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for; tells what went wrong, and exits with 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=0, help="damaged plans")
    parser.add_argument("--executables", type=int, default=0, help="damaged executables")
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="at one cache")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each process")
    parser.add_argument("--mounts", action="store_true", help="full and read-only disks; as root")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    wrong = check_entries(options.entries, options.seed) if options.entries else []
    wrong += check_executables(options.executables, options.seed) if options.executables else []
    for workers in options.processes:
        wrong += check_processes(workers, options.rounds)
    wrong += check_mounts() if options.mounts else []
    print(*wrong[:20], sep="\n")
    return min(len(wrong), 1)


if __name__ == "__main__":
    raise SystemExit(main())
