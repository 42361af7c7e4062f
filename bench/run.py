"""Runs suites, case by case; a case that fails is a row."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..ir.errors import ArgumentError
from ..runtime.device import renew
from .arms import PEERS
from .measure import environment
from .models.sizes import SIZES, fitting
from .progress import Progress
from .report import Report
from .rows import Row, Setup, message
from .suites.table import SUITES, Suite


def run(
    suites: Sequence[str] = (),
    *,
    against: Sequence[str] = ("jax",),
    size: str = "auto",
    models: Sequence[str] = (),
    repeats: int | None = None,
    seed: int = 0,
    passes: str | None = None,
    precision: str | None = None,
) -> Report:
    """Run suites beside peers in this process.

    Args:
        suites: names of `SUITES`; by default all of them.
        against: names of `PEERS`; a suite runs beside those that it knows.
        size: `tiny`, `small`, `large`, or `auto`: what suits the default device.
        models: names of cases, in whichever suites they are; by default all.
        repeats: rounds of the arms in turns; by default the suite's own.
        seed: of parameters and data.
        passes: a pipeline in place of the default one.
        precision: `bfloat16` for our products, and PyTorch's; JAX's stay as they are.

    Raises:
        ArgumentError: a name that is not known, a peer that is not installed, nothing to run.
    """
    _check("suite", suites, SUITES)
    _check("peer", against, PEERS)
    _check("size", [size], ("auto", *SIZES))
    if repeats is not None and repeats < 1:
        raise ArgumentError(f"--repeats wants at least one round, got {repeats}")
    torch = any(peer.startswith("torch") for peer in against)
    if torch and not _has("torch"):
        raise ArgumentError(
            "--against torch wants PyTorch, which is not installed: pip install 'backpass[bench]'"
        )
    peers = tuple(dict.fromkeys(against))
    setup = Setup(fitting(size), peers, seed=seed, passes=passes, precision=precision)
    chosen = [SUITES[name] for name in dict.fromkeys(suites or SUITES)]
    work = [
        (suite, name, what)
        for suite in chosen
        if any(peer in suite.peers for peer in against)
        for name, what in _wanted(suite.cases(setup.size), models).items()
    ]
    if not work:
        known = "; ".join(
            f"{s.name} is beside {', '.join(s.peers)} and has {', '.join(s.cases(setup.size))}"
            for s in chosen
        )
        raise ArgumentError(f"there is nothing to run: {known}")
    _check("case", models, {name: what for _, name, what in work})
    renew()  # parts of the device's speed are told
    stamp = environment(["torch"] if torch else [])
    rows: list[Row] = []
    with Progress(len(work)) as progress:
        for suite, name, what in work:
            progress.advance(f"{suite.name}: {name}")
            mine = replace(
                setup,
                peers=tuple(peer for peer in setup.peers if peer in suite.peers),
                repeats=repeats or suite.repeats,
                tell=progress.tell,
            )
            rows += _measured(suite, name, what, mine)
    options = {name: value for name, value in asdict(setup).items() if name not in _NOT_TOLD}
    return Report(stamp, options | {"repeats": repeats}, tuple(rows))


_NOT_TOLD = ("repeats", "tell")


def _measured(suite: Suite, name: str, what: Any, setup: Setup) -> list[Row]:
    """The rows of a case, or those that tell why there are none."""
    try:
        return suite.measure(suite.name, name, what, setup)
    except Exception as error:  # one case that fails must not hide the others
        setup.tell(f"{name}: {message(error)}")
        return [Row(suite.name, name, peer, error=message(error)) for peer in setup.peers]
    finally:
        gc.collect()


def _wanted(cases: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: what for name, what in cases.items() if not names or name in names}


def _check(kind: str, names: Sequence[str], known: Any) -> None:
    for name in names:
        if name not in known:
            raise ArgumentError(f"there is no {kind} {name!r}; known are {', '.join(known)}")


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
