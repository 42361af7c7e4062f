"""Every Python with every JAX that it gets: `python tests/matrix.py tests/ir` (or `make test-matrix`).

Each pair has an environment of its own under `build/matrix/`, made on first use. A pair whose
Python is not installed, or whose environment cannot be made, is told as not run, and is a failure.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "matrix"
# JAX 0.11 and later want Python 3.12.
PAIRS = (
    ("3.11", "0.10"),
    ("3.12", "0.10"),
    ("3.12", "0.11"),
    ("3.12", "0.12"),
    ("3.13", "0.10"),
    ("3.13", "0.11"),
    ("3.13", "0.12"),
)
OUTCOMES = ("passed", "failed", "errors", "skipped")


def interpreter(version: str) -> str | None:
    """The Python of a version that runs: among those of pyenv, or on the path."""
    found = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for path in (*map(str, reversed(found)), shutil.which(f"python{version}")):
        if (
            path
            and subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0
        ):
            return path
    return None


def environment(python: str, jax: str) -> Path | str:
    """The Python of a pair's environment, or why there is none; made if need be."""
    folder = FOLDER / f"{python}-jax{jax}"
    stamp, made = folder / "stamp", folder / "bin" / "python"
    if stamp.exists() and stamp.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
        return made
    found = interpreter(python)
    if found is None:
        return f"there is no Python {python}"
    wanted = [f"jax=={jax}.*", f"jaxlib=={jax}.*", "--editable", f"{ROOT}[dev]"]
    for command in (
        [found, "-m", "venv", str(folder)],
        [str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    ):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["it could not be made"])[-1][:100]
    stamp.touch()
    return made


def counts(text: str) -> dict[str, int]:
    """What pytest's last line tells: `3 failed, 97 passed in 4.21s`."""
    last = (text.strip().splitlines() or [""])[-1]
    found = re.findall(r"(\d+) (passed|failed|error|skipped)", last)
    return {f"{name}s" if name == "error" else name: int(count) for count, name in found}


def run(python: str, jax: str, tests: Sequence[str]) -> tuple[str, ...]:
    """A row of the table: the pair, and its counts or why it was not run."""
    made = environment(python, jax)
    if isinstance(made, str):
        return (python, jax, "not run", made)
    command = [str(made), "-P", "-m", "pytest", "-q", "-n", "2", *tests]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (FOLDER / f"{python}-jax{jax}.txt").write_text(done.stdout)
    found = counts(done.stdout)
    told = ", ".join(f"{found[name]} {name}" for name in OUTCOMES if name in found)
    return (python, jax, "passed" if done.returncode == 0 else "failed", told or "no tests ran")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [f"{python}-{jax}" for python, jax in PAIRS]
    parser.add_argument("tests", nargs="*", help="as pytest takes them; by default all")
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, metavar="PYTHON-JAX")
    options = parser.parse_args()
    rows = []
    for pair in options.pairs:
        print(f"{pair} ...", file=sys.stderr, flush=True)
        rows.append(run(*pair.split("-"), options.tests))
    print(f"{'Python':8}{'JAX':8}{'':9}tests")
    for python, jax, outcome, told in rows:
        print(f"{python:8}{jax:8}{outcome:9}{told}")
    return int(any(outcome != "passed" for _, _, outcome, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
