"""Throws bad input at every door: `python -m fuzz.knock -n 1000000` (or `make fuzz-doors`).

Input number i is the same in every run. It has two seconds of processor time and a gibibyte of
memory, of which Python sees a part of inputs use no more than a bound that grows with their length.
It runs in a process of its own, so that a crash or a hang is told as well. What is a fault is made
smaller, and kept as a file that `--again` reads.
"""

import argparse
import multiprocessing
import os
import queue
import resource
import signal
import sys
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from traceback import extract_tb, format_exception
from typing import Any

from tqdm import tqdm

from fuzz.doors import DOORS, Corpus, Door, corpus

SECONDS = 2.0  # of processor time, for an input
PATIENCE = 60.0  # seconds without news, after which a process hangs
HEADROOM = 1 << 30  # bytes of address space, for an input
LIFE = 200_000  # inputs for each process, as JAX keeps something of each graph
CHUNK = 200  # inputs between two reports
WATCHED = 50  # one of so many inputs has its memory watched: it takes five times the time
FIXED, PER_BYTE = 6 << 26, 2000  # bytes that an input may take: six times the largest constants'

ROOT = Path(__file__).parents[2]


class Slow(BaseException):
    """An input took too long; no `Exception`, so that nothing on the way handles it."""


@dataclass
class Report:
    """Counts by door and outcome, and the first input of each fault by its signature."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: dict[str, tuple[str, bytes, str]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Report") -> None:
        self.outcomes += other.outcomes
        self.times += other.times
        for name, fault in other.faults.items():
            self.faults.setdefault(name, fault)


def thrown(i: int, sound: Corpus, names: Sequence[str] = tuple(DOORS)) -> tuple[str, bytes]:
    """Input number `i`, and the door that it is thrown at."""
    rng = Random(i)
    (name,) = rng.choices(names, [DOORS[name].share for name in names])
    return name, DOORS[name].input(sound, rng)


def outcome(door: Door, data: bytes, folder: Path, watched: bool = False) -> str | BaseException:
    """`taken` or `refused`; or the fault."""
    if watched:
        tracemalloc.start()
    start = process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        door.enter(data, folder)
        found = "taken"
    except door.refusals:
        found = "refused"
    except (Exception, Slow, RecursionError) as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = tracemalloc.get_traced_memory()[1] if watched else 0
        if watched:
            tracemalloc.stop()
    if process_time() - start > SECONDS:
        return Slow(f"{process_time() - start:.1f} s")
    if peak > FIXED + PER_BYTE * len(data):
        return MemoryError(f"{peak} bytes for an input of {len(data)}")
    return found


def signature(name: str, error: BaseException) -> str:
    """The door, the kind of error, and the innermost of our lines that it came out of."""
    ours = [f for f in extract_tb(error.__traceback__) if str(ROOT) in f.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
    return f"{name}: {type(error).__name__} in {where}"


def smaller(data: bytes, fails: Callable[[bytes], bool], seconds: float) -> bytes:
    """What is left of an input that still fails so when pieces are cut out, large ones first."""
    end, size = perf_counter() + seconds, len(data) // 2
    while size and perf_counter() < end:
        at = 0
        while at < len(data) and perf_counter() < end:
            less = data[:at] + data[at + size :]
            if fails(less):
                data = less
            else:
                at += size
        size //= 2
    return data


def knock(
    numbers: Sequence[int], sound: Corpus, folder: Path, names: Sequence[str], shrink: float
) -> Report:
    """Throw inputs of these numbers; `shrink` seconds go into making each fault smaller."""
    report = Report()
    for i in numbers:
        name, data = thrown(i, sound, names)
        watched, start = i % WATCHED == 0, process_time()
        found = outcome(DOORS[name], data, folder, watched)
        report.times[name] += process_time() - start
        if isinstance(found, str):
            report.outcomes[name, found] += 1
            continue
        report.outcomes[name, "FAULT"] += 1
        kind = signature(name, found)
        if kind not in report.faults:
            told = f"input {i}\n{''.join(format_exception(found))[-4000:]}"

            def fails(less: bytes, door: Door = DOORS[name], kind: str = kind) -> bool:
                other = outcome(door, less, folder, watched)
                return isinstance(other, BaseException) and kind.endswith(
                    signature("", other).removeprefix(": ")
                )

            report.faults[kind] = name, smaller(data, fails, shrink), told
    return report


def prepare() -> None:
    """Bounds on time and memory, for this process."""

    def stop(*_: Any) -> None:
        raise Slow(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("error")


def work(
    numbers: range, sound: Corpus, names: Sequence[str], shrink: float, at: Any, out: Any
) -> None:
    """A process: reports chunk by chunk, and tells in `at` where it is."""
    with TemporaryDirectory() as folder:
        for name in names:  # what is made on first use is not the input's
            for data in sound.get(DOORS[name].seeds, ())[:1]:
                DOORS[name].enter(data, Path(folder))
        prepare()
        for i in range(0, len(numbers), CHUNK):
            chunk = numbers[i : i + CHUNK]
            report = Report()
            for number in chunk:
                at.value = number
                report.add(knock([number], sound, Path(folder), names, shrink))
            out.put(report)


def reports(options: argparse.Namespace, sound: Corpus) -> Iterator[Report]:
    """Reports as they come; a process that dies or hangs is a fault, and another goes on."""
    context = multiprocessing.get_context("spawn")
    first, last = options.seed, options.seed + options.n
    while first < last:
        numbers = range(first, min(last, first + LIFE))
        at, out = context.Value("q", first), context.Queue()
        args = numbers, sound, options.doors, options.shrink, at, out
        process = context.Process(target=work, args=args, daemon=True)
        process.start()
        first = numbers.stop
        left = -(-len(numbers) // CHUNK)
        while left:
            try:
                yield out.get(timeout=1 if not process.is_alive() else PATIENCE + options.shrink)
                left -= 1
            except queue.Empty:
                how = "hung" if process.is_alive() else f"died with {process.exitcode}"
                process.kill()
                name, data = thrown(at.value, sound, options.doors)
                yield Report(
                    Counter({(name, "FAULT"): 1}),
                    {f"{name}: the process {how}": (name, data, f"input {at.value}")},
                )
                first, left = at.value + 1, 0
        process.join()


def arguments(texts: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000, help="inputs")
    parser.add_argument("--seed", type=int, default=0, help="the first input")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz-doors"), help="for faults")
    parser.add_argument("--shrink", type=float, default=20, help="seconds for each fault")
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS), metavar="DOOR")
    parser.add_argument("--again", type=Path, nargs="+", default=[], help="files of faults")
    return parser.parse_args(texts)


def main() -> int:
    options = arguments()
    os.environ["BACKPASS_DEVICE"] = "cpu"
    if options.again:
        return again(options.again)
    start, total = perf_counter(), Report()
    with TemporaryDirectory() as folder:
        sound = corpus(Path(folder))
    with tqdm(total=options.n, mininterval=1, file=sys.stderr) as bar:
        for report in reports(options, sound):
            for name in report.faults.keys() - total.faults.keys():
                keep(options.folder, name, *report.faults[name])
            total.add(report)
            bar.update(min(options.n, total.outcomes.total()) - bar.n)
            bar.set_postfix(faults=len(total.faults))
    rate = options.n / (perf_counter() - start)
    print(
        f"{options.n} inputs from {options.seed}, {rate:.0f} a second, {corpus_size(sound)} seeds"
    )
    for name in options.doors:
        counts = [total.outcomes[name, each] for each in ("taken", "refused", "FAULT")]
        print("{:14} {:8} taken {:8} refused {:6} faults".format(name, *counts), end="")
        print(f" {1e3 * total.times[name] / max(1, sum(counts)):8.2f} ms each")
    for name in sorted(total.faults):
        print(f"  {name}")
    return bool(total.faults)


def corpus_size(sound: Corpus) -> int:
    return sum(map(len, sound.values()))


def keep(folder: Path, name: str, door: str, data: bytes, told: str) -> None:
    """Write the input of a fault, and what it led to beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = "".join(c if c.isalnum() else "_" for c in name.partition(": ")[2])
    path = folder / f"{door.replace(' ', '_')}:{plain}.input"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(f"{name}\n{told}\n{data[:2000]!r}\n")
    tqdm.write(f"{name}\n  {data[:300]!r}\n  {path}")


def again(paths: Sequence[Path]) -> int:
    """Throw inputs that were kept once more; the traceback of each that still is a fault."""
    prepare()
    faults = 0
    with TemporaryDirectory() as folder:
        for path in paths:
            name = path.name.partition(":")[0].replace("_", " ")
            found = outcome(DOORS[name], path.read_bytes(), Path(folder))
            faults += isinstance(found, BaseException)
            told = found if isinstance(found, str) else "".join(format_exception(found))
            print(f"{path.name}: {told}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
