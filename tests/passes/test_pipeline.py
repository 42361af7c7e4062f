"""The pass manager: how pipelines are spelled, run and recorded."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import pytest

import backpass as bp
from backpass.passes import DEFAULT, PASSES, Cse, Dce, parse_pipeline, run_passes
from backpass.passes.pipeline import spelled
from passes.texts import graph

GIVEN = ("%0: f32[3]", "%1: f32[3] = sin(%0)\n%2: f32[3] = sin(%0)\nreturn %2")


@dataclass(frozen=True)
class Budgeted:
    """A pass with options, as one of the table would have."""

    name: ClassVar[str] = "budgeted"
    budget: int = 3
    mode: str = "fast"
    on: bool = True
    scale: float = 1.0

    def __call__(self, graph):
        return graph


@dataclass(frozen=True)
class Broken:
    """Loses a definition that is still read."""

    name: ClassVar[str] = "broken"

    def __call__(self, graph):
        return replace(graph, nodes=graph.nodes[1:])


KNOWN = {**PASSES, "budgeted": Budgeted}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("cse", ["cse"]),
        ("cse,dce", ["cse", "dce"]),
        ("  cse ,\n dce  ", ["cse", "dce"]),
        ("cse,cse,cse", ["cse"] * 3),
        ("cse{},dce{}", ["cse", "dce"]),
    ],
)
def test_parse(text, names):
    found = parse_pipeline(text, PASSES)
    assert [each.name for each in found] == names
    assert parse_pipeline(spelled(found), PASSES) == found


def test_default_is_spelled():
    assert spelled(DEFAULT) == (
        "canonicalise,sink,hoist,defer,cse,dce,roll,fuse,autodiff,fold,simplify,convolutions,cse,"
        "defer,cse,dce"
    )
    assert parse_pipeline(spelled(DEFAULT), PASSES) == DEFAULT
    assert {each.name for each in DEFAULT} == PASSES.keys() - {
        "restack",
        "rematerialise",
        "strip",
        "unroll",
        "autocast",
        "accumulate",
        "microbatch",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("budgeted", Budgeted()),
        ("budgeted{mode=slow}", Budgeted(mode="slow")),
        ("budgeted{budget=7,on=false}", Budgeted(budget=7, on=False)),
        ("budgeted{ budget = -1 , scale = 2e-3 }", Budgeted(budget=-1, scale=2e-3)),
    ],
)
def test_options_are_fields(text, expected):
    found = parse_pipeline(f"cse,{text},dce", KNOWN)
    assert found == (Cse(), expected, Dce())
    assert parse_pipeline(spelled(found), KNOWN) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cse,nothing", ["no pass 'nothing'", "canonicalise", "dce"]),
        ("cse,,dce", ["pass name", "',dce'"]),
        ("cse dce", ["pass name"]),
        ("Cse", ["pass name"]),
        ("cse{", ["pass name"]),
        ("budgeted{size=3}", ["no option 'size'", "budget", "mode"]),
        ("budgeted{budget=many}", ["'budget'", "wants int", "'many'"]),
        ("budgeted{on=perhaps}", ["'on'", "wants bool", "'perhaps'"]),
        ("budgeted{budget}", ["'budget'", "wants int"]),
        ("cse{deep}", ["no option 'deep'"]),
        ("-cse,dce", ["to leave out as in '-cse,-dce'"]),
        ("-nothing", ["no pass 'nothing'", "dce"]),
        ("-", ["no pass ''"]),
        ("cse,-dce", ["pass name", "'-dce'"]),
    ],
)
def test_what_does_not_parse(text, words):
    with pytest.raises(bp.ArgumentError) as caught:
        parse_pipeline(text, KNOWN)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["-cse,-restack", " -restack , - cse,-cse "])
def test_the_usual_pipeline_without_some(text):
    found = parse_pipeline(text, PASSES)
    assert spelled(found) == "-cse,-restack"
    assert [each.name for each in found.of(DEFAULT[-3:])] == ["defer", "dce"]


@pytest.mark.parametrize("budget", [None, "1GiB"])
def test_a_step_without_some_of_its_passes(budget):
    def stages(passes):
        step = bp.compile(bp.grad(jnp.sum), passes=passes, memory_budget=budget)
        lowered = step.lower(jnp.ones(3))
        return [stage.name for stage in lowered.stages]

    usual = stages(None)
    assert stages("-cse,-fuse") == [each for each in usual if each not in ("cse", "fuse")]
    assert {"cse", "fuse"} < set(usual)


def test_stages():
    given = graph(*GIVEN)
    stages = run_passes(given, (Cse(), Dce(), Dce()), seconds=2.5)
    assert [stage.name for stage in stages] == ["traced", "cse", "dce", "dce"]
    assert [len(stage.graph.nodes) for stage in stages] == [2, 1, 1, 1]
    assert stages[0].graph is given and stages[2].graph is stages[1].graph is stages[3].graph
    assert stages[0].seconds == 2.5 and all(stage.seconds < 1 for stage in stages[1:])
    assert repr(stages[0]) == "<Stage traced: 2 nodes, 2.500 s>"


def test_check_finds_the_pass_that_breaks_a_graph():
    given = graph("%0: f32[3]", "%1: f32[3] = sin(%0)\n%2: f32[3] = cos(%1)\nreturn %2")
    with pytest.raises(bp.GraphError, match="not defined before") as caught:
        run_passes(given, (Cse(), Broken(), Dce()), check=True)
    assert "a bug in backpass" in str(caught.value)
    assert any("cos" in note for note in caught.value.__notes__)
    assert run_passes(given, (Broken(),))[-1].graph.nodes[0].op.name == "cos"
