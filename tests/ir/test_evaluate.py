"""Running a graph: what profilers are told, and what does not fit."""

import jax
import numpy as np
import pytest

from backpass.ir import evaluate, parse
from backpass.ir.errors import ArgumentError
from backpass.ir.evaluate import run

X = np.ones(4, np.float32)
GRAPH = parse("""backpass.ir 1
graph f(%0: f32[4]) {
  %1: f32[4] = sin(%0)  @ m.py:1  block/mlp
  %2: f32[4] = neg(%1)
backward:
  %3: f32[4] = cos(%2)  @ m.py:1  block/mlp
update:
  %4: f32[4] = exp(%3)
  return %4
}
""")


@pytest.mark.parametrize("annotate", [True, False])
def test_profilers_show_scopes_and_what_is_not_forward(annotate):
    jaxpr = jax.make_jaxpr(lambda x: run(GRAPH, [x], annotate=annotate))(X)
    told = [str(eqn.source_info.name_stack) for eqn in jaxpr.eqns]
    assert told == (["block/mlp", "", "backward/block/mlp", "update"] if annotate else [""] * 4)


@pytest.mark.parametrize("args", [(), (X, X)])
def test_the_number_of_arguments_is_that_of_the_inputs(args):
    with pytest.raises(ArgumentError, match=f"f takes 1 arguments, got {len(args)}"):
        evaluate(GRAPH, *args)
