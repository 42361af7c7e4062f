"""Kill a training run at random moments with SIGKILL, and compare its losses with a quiet run's.

    python benchmarks/kills.py --kills 50       some ten minutes on two cores

The run is `examples/resume.py`. It is started again after each kill, and must then

- begin at a save that is no older than the one before the last that it had begun,
- write losses that are, bit for bit, those of a run that nobody interrupted,
- and come to its end.

One kill in five falls into the start of the process, two into training, and two are set off by a
save: a folder that Orbax is still writing shows up.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

EXAMPLE = Path(__file__).parents[1] / "examples" / "resume.py"


@dataclass
class Outcome:
    """What the kills did: `saving` of them fell into a save."""

    kills: int = 0
    saving: int = 0
    steps: int = 0
    restored: list[int] = field(default_factory=list)


def start(out: Path, steps: int, every: int) -> subprocess.Popen[str]:
    """Start the example."""
    command = [sys.executable, "-P", str(EXAMPLE), f"--out={out}"]
    return subprocess.Popen(
        [*command, f"--steps={steps}", f"--every={every}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(out: Path) -> dict[int, set[str]]:
    """Every loss that was written for a step; lines that a kill cut short are left out."""
    found: dict[int, set[str]] = {}
    log = out / "losses.txt"
    for line in log.read_text().splitlines(keepends=True) if log.exists() else ():
        parts = line.split()
        if line.endswith("\n") and len(parts) == 2 and parts[0].isdigit():
            found.setdefault(int(parts[0]), set()).add(parts[1])
    return found


def half_saved(out: Path) -> set[str]:
    """Names of the saves that are being written, or were when the run was killed."""
    states = out / "states"
    return {p.name for p in states.iterdir() if "tmp" in p.name} if states.exists() else set()


def ended(run: subprocess.Popen[str]) -> int:
    """Wait for a run that was not killed; returns the step that it began at."""
    told, wrong = run.communicate()
    if run.returncode:
        raise AssertionError(f"the run ended with {run.returncode}:\n{told}\n{wrong}")
    return begun(told)


def begun(told: str) -> int:
    """The step that a run said that it begins at."""
    return int(told.partition("begins at step ")[2].split()[0])


def wait_for(run: subprocess.Popen[str], happens: Callable[[], bool]) -> None:
    """Return when something has happened, or the run has ended."""
    while run.poll() is None and not happens():
        time.sleep(0.002)


def killed(run: subprocess.Popen[str], out: Path, rng: random.Random) -> tuple[int | None, bool]:
    """Kill a run at a random moment; returns where it began, and whether it was saving."""
    log, old = out / "losses.txt", half_saved(out)
    written = log.stat().st_size if log.exists() else 0
    kind = rng.choice(("start", "training", "training", "save", "save"))
    if kind == "training":
        wait_for(run, lambda: log.exists() and log.stat().st_size > written)
    elif kind == "save":
        for _ in range(rng.randrange(1, 6)):
            seen = set(old)
            wait_for(run, lambda seen=seen: bool(half_saved(out) - seen))
            old |= half_saved(out)
    time.sleep(rng.uniform(0.0, {"start": 4.0, "training": 1.5, "save": 0.05}[kind]))
    run.kill()
    told, wrong = run.communicate()
    if run.returncode not in (0, -9):
        raise AssertionError(f"the run ended with {run.returncode}:\n{told}\n{wrong}")
    began = begun(told) if "begins at step" in told else None
    return began, began is not None and bool(half_saved(out))


def measure(kills: int, steps: int, every: int, seed: int) -> Outcome:
    """Kill and go on. Raises `AssertionError` for a save that is lost, or a loss that differs."""
    rng, outcome = random.Random(seed), Outcome(steps=steps)
    with TemporaryDirectory() as folder:
        quiet, broken = Path(folder) / "quiet", Path(folder) / "broken"
        ended(start(quiet, steps, steps))
        expected = losses(quiet)
        for _ in range(kills):
            before = max(losses(broken), default=0)
            run = start(broken, steps, every)
            at, saving = killed(run, broken, rng)
            outcome.kills += run.returncode == -9
            outcome.saving += saving
            if at is not None:
                check_begin(at, before, every)
                outcome.restored.append(at)
            print(f"  kill {outcome.kills}: began at {at}", file=sys.stderr)
        before = max(losses(broken), default=0)
        check_begin(ended(start(broken, steps, every)), before, every)
        found = losses(broken)
    wrong = {step: found.get(step) for step in expected if found.get(step) != expected[step]}
    assert not wrong, f"losses differ, first {next(iter(wrong.items()))}"
    assert len(expected) == steps
    assert outcome.kills == kills, f"it came to its end after {outcome.kills} kills: more --steps"
    return outcome


def check_begin(at: int, reached: int, every: int) -> None:
    """The last save but one of those begun is whole; a loss is written before its save."""
    begun = (reached - 1) // every * every
    assert at >= begun - every, f"went on at step {at}, though step {reached} was done"


def main(argv: Sequence[str] | None = None) -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--every", type=int, default=2, help="steps between saves")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    found = measure(options.kills, options.steps, options.every, options.seed)
    print(f"{found.kills} kills, {found.saving} of them within a save")
    print(f"went on at steps {', '.join(map(str, found.restored))}")
    print(f"losses of all {found.steps:,} steps are those of a quiet run, bit for bit")


if __name__ == "__main__":
    main()
