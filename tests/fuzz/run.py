"""Fuzz: `python -m fuzz.run -n 20000 --seed 0` (or `make fuzz`), from `tests/`.

Each seed is a program; each is differentiated by us and by JAX. Failures are shrunk, printed as
Python that runs, kept as files, and counted by their signature at the end.
"""

import argparse
import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from traceback import format_exception

import jax
from tqdm import tqdm

from fuzz.generate import question
from fuzz.oracle import Discarded, Expected, Wrong, check
from fuzz.questions import Question
from fuzz.shrink import shrunk
from quick import set_flags

COMPILED = 60  # three of so many programs go through XLA as a whole: seconds each
CHUNK = 20  # programs for each task
LIFE = 3000  # programs for each process: JAX keeps some hundred kilobytes of each


def way(seed: int) -> str:
    """How our answer is got."""
    special = {7: "compiled", 22: "budget", 37: "call"}.get(seed % COMPILED)
    return special or ("bare", "pipeline", "rewrites", "strips")[seed % 4]


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
    set_flags()
    jax.config.update("jax_enable_x64", True)


@dataclass
class Report:
    """Counts of outcomes, counts of failures by signature, and the failures' texts by seed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)


def fuzz(seeds: Sequence[int], seconds: float) -> Report:
    """Ask the questions of some seeds; `seconds` for the shrinking of each failure."""
    ready()
    report = Report()
    for seed in seeds:
        try:
            q = question(seed)
            wrong = failure(q, way(seed))
        except Discarded as reason:
            report.outcomes["discarded"] += 1
            report.outcomes[f"discarded, {str(reason).splitlines()[0][:60]}"] += 1
            continue
        except Exception as error:  # of the fuzzer's own: to be seen, and not to end a long run
            report.outcomes["wrong"] += 1
            report.failures[f"the fuzzer: {type(error).__name__} {error}"[:100]] += 1
            report.texts[seed] = "".join(format_exception(error))
            continue
        report.outcomes["right" if wrong is None else "wrong"] += 1
        if wrong is not None:
            small = smallest(q, way(seed), wrong.kind, seconds)
            report.failures[signature(small, wrong.kind)] += 1
            told = "\n# ".join(str(wrong).splitlines())
            report.texts[seed] = f"{small.snippet()}\n# {way(seed)}: {told}\n"
    return report


def reports(options: argparse.Namespace) -> Iterator[Report]:
    """Reports of chunks of seeds, as they come; a process ends before its caches grow too large."""
    context = multiprocessing.get_context("spawn")
    last = options.seed + options.n
    chunks = [range(i, min(i + CHUNK, last)) for i in range(options.seed, last, CHUNK)]
    # Not `concurrent.futures`, whose pool may wait for ever once its processes have ended so.
    with context.Pool(options.jobs, maxtasksperchild=LIFE // CHUNK) as pool:
        yield from pool.imap_unordered(partial(fuzz, seconds=options.shrink), chunks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000, help="programs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for failures")
    parser.add_argument("--shrink", type=float, default=30, help="seconds for each failure")
    options = parser.parse_args()
    start, total = perf_counter(), Report()
    with tqdm(total=options.n, mininterval=1, file=sys.stderr) as bar:
        for report in reports(options):
            total.outcomes += report.outcomes
            total.failures += report.failures
            for seed, text in report.texts.items():
                options.folder.mkdir(parents=True, exist_ok=True)
                (options.folder / f"seed_{seed}.py").write_text(text)
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
            done = sum(total.outcomes[name] for name in ("right", "wrong", "discarded"))
            bar.update(done - bar.n)
            bar.set_postfix(wrong=total.outcomes["wrong"])
    rate = options.n / (perf_counter() - start)
    print(f"{options.n} programs from seed {options.seed}, {rate:.1f} a second")
    for name, count in [*total.outcomes.most_common(), *total.failures.most_common()]:
        print(f"{count:8}  {name}")
    return bool(total.failures)


if __name__ == "__main__":
    sys.exit(main())
