"""Train a small GPT over many devices, in one process or several.

    python examples/distributed.py                               8 pretended CPU devices
    python examples/distributed.py --strategy fsdp
    python examples/distributed.py --processes 2                 the same devices, in two processes
    python examples/distributed.py --check                       beside one device

With `--processes` the script starts itself so many times; the processes find each other through
`jax.distributed` and speak over gloo, JAX's collectives for CPUs. On a cluster each machine runs
one process, and `jax.distributed.initialize()` finds the others by itself: the rest is the same.
Strategies are told in `strategies.py`. Progress goes to stderr, losses to stdout.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# What a process is told by the one that starts it: which one it is, and where the first is.
RANK, COORDINATOR = "BACKPASS_EXAMPLE_RANK", "BACKPASS_EXAMPLE_COORDINATOR"


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", default="data", choices="data tensor fsdp pipeline".split())
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--devices", type=int, default=8, help="of all processes together")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--budget", help='memory of one device, such as "6MiB"')
    parser.add_argument("--saves", type=Path, help="a folder; started again, the run goes on")
    parser.add_argument("--check", action="store_true", help="compare with one device")
    options = parser.parse_args(argv)
    if options.devices % options.processes:
        parser.error(f"{options.devices} devices do not divide among {options.processes} processes")
    return options


def launch(argv: Sequence[str], processes: int) -> int:
    """Run this script in so many processes; the first one that fails ends the others."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *argv],
            env={**os.environ, RANK: str(rank), COORDINATOR: coordinator},
            stdout=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    try:
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            time.sleep(0.1)
            codes = [process.poll() for process in running]
        return max(abs(code or 0) for code in codes)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
            process.wait()


def join(options: argparse.Namespace) -> None:
    """Set up this process's share of the devices; meet the other processes."""
    local = options.devices // options.processes
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={local}".strip()
    import jax

    jax.config.update("jax_platforms", "cpu")
    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        rank = int(os.environ[RANK])
        jax.distributed.initialize(os.environ[COORDINATOR], options.processes, rank)


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train, and print the losses; returns them."""
    options = options_of(argv)
    import jax

    from strategies import Sizes, train

    sizes = Sizes(options.layers, options.width, 8, options.context, 256, options.batch)
    first = jax.process_index() == 0

    def tell(line: str) -> None:
        if first:
            print(line, file=sys.stderr, flush=True)

    budget = {"memory_budget": options.budget} if options.budget else {}
    where = f"{jax.device_count()} devices in {jax.process_count()} processes"
    tell(f"{options.strategy} on {where}")
    losses = train(options.strategy, options.steps, sizes, tell, options.saves, **budget)
    print(f"{options.strategy}, {where}: " + " ".join(f"{loss:.6f}" for loss in losses))
    if options.check:
        alone = [sys.executable, os.path.abspath(__file__), "--devices", "1", *_sizes(options)]
        env = {k: v for k, v in os.environ.items() if k not in (RANK, COORDINATOR, "XLA_FLAGS")}
        told = subprocess.run(alone, env=env, check=True, capture_output=True, text=True).stdout
        expected = [float(word) for word in told.partition(": ")[2].split()]
        most = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        print(f"one device: {told.partition(': ')[2].strip()}\nlargest difference: {most:.1e}")
    return losses


def _sizes(options: argparse.Namespace) -> list[str]:
    names = ("steps", "layers", "width", "context", "batch")
    return [word for name in names for word in (f"--{name}", str(getattr(options, name)))]


if __name__ == "__main__":
    asked = options_of(None)
    if asked.processes > 1 and RANK not in os.environ:
        sys.exit(launch(sys.argv[1:], asked.processes))
    join(asked)
    main()
