"""Fuzz: `python -m fuzz.run -n 20000 --seed 0` (or `make fuzz`), from `tests/`.

Each seed is a program; each is differentiated by us and by JAX. Failures are shrunk, printed as
Python that runs, kept as files, and counted by their signature at the end.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

import jax
from tqdm import tqdm

from fuzz.generate import question
from fuzz.oracle import Discarded, Expected, Wrong, check
from fuzz.questions import Question
from fuzz.shrink import shrunk

COMPILED = 24  # one of so many programs goes through XLA as a whole


def way(seed: int) -> str:
    """How our answer is got."""
    special = {7: "compiled", 15: "call"}.get(seed % COMPILED)
    return special or ("bare", "pipeline")[seed % 2]


def failure(q: Question, how: str) -> Wrong | None:
    """What is wrong with our answer, if it is. Raises `Discarded`."""
    try:
        check(Expected(q), how)
    except Wrong as wrong:
        return wrong
    return None


def smallest(q: Question, how: str, kind: str, seconds: float) -> Question:
    """The smallest question that fails in this way."""

    def fails(other: Question) -> bool:
        try:
            wrong = failure(other, how)
        except Discarded:
            return False
        return wrong is not None and wrong.kind == kind

    return shrunk(q, fails, seconds)


def signature(q: Question, kind: str) -> str:
    """How it fails, and the functions in the program that does."""
    names = re.findall(
        r"\b(?:lax|jnp|jax|nn|linalg)\.(\w+)", " ".join(s.expr for s in q.program.walk())
    )
    return f"{kind} [{' '.join(sorted(set(names) - {'linalg', 'nn', 'numpy'}))}]"


def ready() -> None:
    """Double precision, and a quick compiler: a program runs but once."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)


def fuzz(seeds: Iterable[int], folder: Path, seconds: float) -> tuple[Counter[str], Counter[str]]:
    """Run; returns the counts of outcomes and of failures by signature."""
    outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for seed in seeds:
        try:
            q = question(seed)
            wrong = failure(q, way(seed))
        except Discarded as reason:
            outcomes["discarded"] += 1
            outcomes[f"discarded, {str(reason).splitlines()[0][:60]}"] += 1
            continue
        outcomes["right" if wrong is None else "wrong"] += 1
        if wrong is not None:
            small = smallest(q, way(seed), wrong.kind, seconds)
            last = failure(small, way(seed)) or wrong
            failures[signature(small, wrong.kind)] += 1
            text = f"{small.snippet()}\n# {way(seed)}: " + "\n# ".join(str(last).splitlines())
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"seed_{seed}.py").write_text(text + "\n")
            tqdm.write(f"{text}\n", file=sys.stdout)
            sys.stdout.flush()
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000, help="programs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for failures")
    parser.add_argument("--shrink", type=float, default=30, help="seconds for each failure")
    options = parser.parse_args()
    ready()
    start = perf_counter()
    seeds = tqdm(range(options.seed, options.seed + options.n), mininterval=1, file=sys.stderr)
    outcomes, failures = fuzz(seeds, options.folder, options.shrink)
    rate = options.n / (perf_counter() - start)
    print(f"{options.n} programs from seed {options.seed}, {rate:.1f} a second")
    for name, count in [*outcomes.most_common(), *failures.most_common()]:
        print(f"{count:8}  {name}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
