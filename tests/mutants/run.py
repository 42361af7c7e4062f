"""Do the tests notice a fault? Draws changes of `ir/` and `passes/`, and runs what covers each.

`make coverage` first: it keeps which test runs which line. A change is caught when one of these
tests fails, or hangs. What no test catches is printed, to be looked at.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

from coverage import CoverageData
from tqdm import tqdm

from .sites import Mutant, mutants

ROOT = Path(__file__).parents[2]
DRAWN_FROM = ("ir", "passes")
PACKAGE = ("__init__.py", "py.typed", *(each.parent.name for each in ROOT.glob("*/__init__.py")))
TREE = (*PACKAGE, "tests", "examples", "benchmarks", "docs", "pyproject.toml", "README.md")
KILLS = ("caught", "hung")


@dataclass(frozen=True)
class Outcome:
    """A mutant and what became of it: caught, hung, survived or uncovered."""

    mutant: Mutant
    what: str
    tests: int
    told: str = ""


class Covering:
    """Which tests run which lines: those with a word of the file's name first, then the fastest."""

    def __init__(self, data: Path, times: Path) -> None:
        """Read a coverage file with a context for each test, and pytest's times of them."""
        self._data = CoverageData(str(data))
        self._data.read()
        self._seconds = {
            f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(
                case.get("time", 0)
            )
            for case in ElementTree.parse(times).iter("testcase")
        }
        self._files = {Path(name).resolve(): name for name in self._data.measured_files()}

    def of(self, mutant: Mutant, most: int, seconds: float) -> list[list[str]]:
        """Tests of a line; of its file, where it runs as that is imported.

        The first `most`, and as many more as take some seconds, in a list of their own: a change of
        what all programs go through is rarely noticed by the fastest tests.
        """
        name = self._files.get((ROOT / mutant.path).resolve())
        if name is None:
            return []
        lines = self._data.contexts_by_lineno(name)
        contexts = {context for context in lines.get(mutant.line, ()) if context}
        if not contexts:
            if mutant.line not in lines:
                return []
            contexts = {each for found in lines.values() for each in found if each}
        tests = {context.rpartition("|")[0] for context in contexts}
        own = {*mutant.path.stem.split("_"), mutant.path.parent.name}

        def order(test: str) -> tuple[bool, float, str]:
            stem = Path(test.partition("::")[0]).stem.removeprefix("test_")
            return own.isdisjoint(stem.split("_")), self._seconds.get(test, 1e9), test

        ordered = sorted(tests, key=order)
        ends = accumulate(self._seconds.get(test, 0.0) for test in ordered[most:])
        more = [test for test, end in zip(ordered[most:], ends, strict=True) if end <= seconds]
        return [part for part in (ordered[:most], more) if part]


def draw(parts: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """Changes drawn evenly from all that there are in some folders."""
    found = [
        mutant
        for part in parts
        for path in sorted((ROOT / part).rglob("*.py"))
        for mutant in mutants(path.relative_to(ROOT), path.read_text())
    ]
    return random.Random(seed).sample(found, min(count, len(found)))


class Tree:
    """A copy of the repository, where the package is imported from."""

    def __init__(self, folder: Path) -> None:
        """Copy what tests read."""
        shutil.rmtree(folder, ignore_errors=True)
        self.root = folder / "tree"
        self.root.mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in TREE:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=ignored)
            else:
                shutil.copy(source, self.root / name)
        (folder / "site").mkdir()
        (folder / "site" / "backpass").symlink_to(self.root)
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(folder / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, tests: Sequence[str], limit: float | None, *more: str) -> tuple[int, str]:
        """Run tests; gives pytest's status and what it printed, or 124 past the limit."""
        listed = self.root / "tests.txt"
        listed.write_text("\n".join(tests))
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *more]
        with subprocess.Popen(
            [*command, f"@{listed}"],
            cwd=self.root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                return 124, ""
            return process.returncode, printed

    def tried(self, mutant: Mutant, parts: Sequence[Sequence[str]], limit: float) -> Outcome:
        """Change the copy, run the tests part by part, and change it back."""
        found = Outcome(mutant, "uncovered", 0)
        path = self.root / mutant.path
        source = path.read_text()
        path.write_text(mutant.applied(source))
        try:
            for tests in parts:
                status, printed = self.run(tests, limit, "-x", "--tb=line")
                what = {0: "survived", 5: "survived", 124: "hung"}.get(status, "caught")
                found = Outcome(mutant, what, found.tests + len(tests), _last(printed))
                if what in KILLS:
                    break
        finally:
            path.write_text(source)
        return found


def _last(printed: str) -> str:
    lines = [line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else ""


def _sound(tree: Tree, tests: Iterable[str], jobs: int) -> set[str]:
    """The tests that pass in a copy without any change."""
    listed = sorted(set(tests))
    print(f"{len(listed)} tests without a change", file=sys.stderr)
    status, printed = tree.run(
        listed, None, "-n", str(jobs), "--dist", "worksteal", "--tb=no", "-rfE"
    )
    if status not in (0, 1):
        raise SystemExit(f"the tests do not run in a copy:\n{printed[-2000:]}")
    bad = set(re.findall(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE))
    if bad:
        print(f"{len(bad)} fail without a change, and are left out", file=sys.stderr)
    return set(listed) - bad


def main() -> int:
    """Draw, run, and report; exit status 1 when fewer are caught than asked for."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=100, help="how many changes")
    parser.add_argument("--parts", nargs="+", default=DRAWN_FROM, help="folders to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tests", type=int, default=200, help="tests of each, to begin with")
    parser.add_argument("--more", type=float, default=20, help="seconds of more, if none notices")
    parser.add_argument("--limit", type=float, default=300, help="seconds of each, at most")
    parser.add_argument("--least", type=float, default=0.9, help="the share to be caught")
    parser.add_argument("--coverage", type=Path, default=ROOT / "build/coverage/data")
    parser.add_argument("--times", type=Path, default=ROOT / "build/coverage/times.xml")
    parser.add_argument("--work", type=Path, default=ROOT / "build/mutants")
    options = parser.parse_args()
    covering = Covering(options.coverage, options.times)
    drawn = draw(options.parts, options.n, options.seed)
    tests = {mutant: covering.of(mutant, options.tests, options.more) for mutant in drawn}
    trees = [Tree(options.work / str(i)) for i in range(options.jobs)]
    sound = _sound(
        trees[0], (t for parts in tests.values() for part in parts for t in part), options.jobs
    )
    free: SimpleQueue[Tree] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def outcome(mutant: Mutant) -> Outcome:
        tree = free.get()
        try:
            chosen = [[test for test in part if test in sound] for part in tests[mutant]]
            return tree.tried(mutant, [part for part in chosen if part], options.limit)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = []
        for found in tqdm(pool.map(outcome, drawn), total=len(drawn), file=sys.stderr):
            outcomes.append(found)
            if found.what not in KILLS:
                tqdm.write(f"{found.what} ({found.tests} tests): {found.mutant}", file=sys.stdout)
    caught = sum(found.what in KILLS for found in outcomes)
    share = caught / len(outcomes)
    print(f"{caught} of {len(outcomes)} changes caught, {share:.0%} (seed {options.seed})")
    return int(share < options.least)


if __name__ == "__main__":
    raise SystemExit(main())
