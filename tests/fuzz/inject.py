"""Wrong rules against the tests: `python -m fuzz.inject -n 400`, from `tests/`.

Each of `mutations.MUTATIONS` stands in the op table for a while. Told are how many of the op's
cases in `ops.cases` notice (for ops with regions: of the programs in `passes.test_autodiff`), and
after how many of the fuzzer's programs that hold the op it is found, if it is.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import backpass as bp
from backpass.ir.tables import table
from fuzz.generate import question
from fuzz.interpret import run_graph, run_jaxpr
from fuzz.mutations import MUTATIONS, Mutation
from fuzz.oracle import Discarded, Expected, Wrong, check
from fuzz.questions import asked
from fuzz.run import ready
from ops.cases import ELSEWHERE
from ops.test_rules import DIFFERENTIABLE, test_vjp
from passes.test_autodiff import REGIONS

MOST = 12  # programs with regions, for each wrong rule
Pool = Sequence[tuple[Expected, frozenset[str]]]


def pool(seeds: Sequence[int]) -> Pool:
    """Questions that have an answer, with the names of the ops that stand in them."""
    found = []
    for seed in seeds:
        expected = Expected(question(seed))
        try:
            check(expected, "bare")
        except (Discarded, Wrong):
            continue
        found.append((expected, ops(expected)))
    return found


def ops(expected: Expected) -> frozenset[str]:
    """Ops of a question's program, and of its gradient."""
    q = expected.question
    lowered = bp.compile(asked(q), passes="canonicalise,autodiff").lower(*q.program.inputs)
    return frozenset(n.op.name for stage in lowered.stages for n in stage.graph.walk())


def by_fuzzing(mutation: Mutation, programs: Pool) -> tuple[int, int]:
    """`(number of the program that finds it, programs that hold the op)`; 0 when none does."""
    holding = [expected for expected, names in programs if mutation.op in names]
    with mutation.applied():
        for number, expected in enumerate(holding, 1):
            try:
                check(expected, "bare")
            except (Wrong, Discarded):
                return number, len(holding)
    return 0, len(holding)


def by_cases(mutation: Mutation) -> tuple[int, int]:
    """`(cases that notice, cases)` of the op."""
    if mutation.op in ELSEWHERE:
        names = [name for name in REGIONS if mutation.op in _region_ops(name)][:MOST]
        wanted = {name: _region_slopes(name, jax) for name in names}
        with mutation.applied():
            noticed = sum(not _alike(_region_ours(name), wanted[name]) for name in names)
        return noticed, len(names)
    cases = [case for case in DIFFERENTIABLE if case.op == mutation.op]
    with mutation.applied():
        noticed = sum(_fails(case) for case in cases)
    return noticed, len(cases)


def _fails(case: Any) -> bool:
    try:
        test_vjp(case)
    except Exception:
        return True
    return False


def _region(name: str, by: Any) -> tuple[Any, tuple[Any, ...]]:
    fun, args, wrt = REGIONS[name]
    return by.value_and_grad(lambda *xs: jax.numpy.sum(fun(*xs)), wrt), args


def _region_ops(name: str) -> set[str]:
    function, args = _region(name, bp)
    lowered = bp.compile(function, passes="canonicalise").lower(*args)
    return {node.op.name for node in lowered.graph.walk()}


def _region_slopes(name: str, by: Any) -> list[Any]:
    function, args = _region(name, by)
    return run_jaxpr(jax.make_jaxpr(function)(*args), *jax.tree.leaves(args))


def _region_ours(name: str) -> list[Any] | None:
    function, args = _region(name, bp)
    try:
        graph = bp.compile(function, passes="canonicalise,autodiff,dce").lower(*args).graph
        return run_graph(graph, *jax.tree.leaves(args))
    except Exception:
        return None


def _alike(found: list[Any] | None, want: list[Any]) -> bool:
    return found is not None and all(
        np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=1e-6, atol=1e-9)
        for x, y in zip(found, want, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=400, help="programs of the fuzzer")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    ready()
    programs = pool(tqdm(range(options.seed, options.seed + options.n), desc="programs"))
    rows, missed = [], [0, 0]
    for mutation in tqdm(MUTATIONS, desc="wrong rules"):
        noticed, cases = by_cases(mutation)
        number, holding = by_fuzzing(mutation, programs)
        missed[0] += noticed == 0
        missed[1] += number == 0
        place = f"at {number} of {holding}" if number else f"missed in {holding}"
        print(f"{mutation}: {noticed} of {cases}; {number} of {holding}", flush=True)
        rows.append((str(mutation), f"{noticed} of {cases}", place))
    print(table(("wrong rule", "cases that notice", "program that finds it"), rows))
    count = len(MUTATIONS)
    print(f"{count - missed[0]} of {count} by the cases, {count - missed[1]} by the fuzzer")
    return bool(missed[0])


if __name__ == "__main__":
    sys.exit(main())
