"""The search for a plan whose peak fits, with peaks of our own in place of XLA's."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpass import BudgetError
from backpass.compiler.budget import Fitting
from backpass.passes.rematerialise.forms import FEW

LIVE = SimpleNamespace(argument_bytes=0, output_bytes=0, donated_bytes=0)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search sees of a plan, and the `peak` that it turns out to have."""

    bytes: int
    seconds: float
    peak: int
    fenced: bool
    choice: None = None
    live = LIVE


@dataclass(frozen=True)
class Programs:
    """What a search sees of a program's forms."""

    plains: list[Plan]
    others: list[Plan]
    graph = SimpleNamespace(name="step")

    @property
    def plain(self):
        return self.plains[0]

    @property
    def leanest(self):
        return self.leanest_of_each[0]

    @property
    def leanest_of_each(self):
        return sorted(self.others, key=lambda each: each.bytes)[:FEW]

    def fastest(self, budget):
        fit = (each for each in (*self.plains, *self.others) if each.bytes <= budget)
        return min(fit, key=lambda each: each.seconds, default=None)


def fitted(forms, budget):
    """The plan that a search settles on; raises `BudgetError`."""
    search = Fitting(forms, budget, forms.fastest(budget) or forms.leanest)
    while not search.measure(search.candidate.peak):
        pass
    return search.candidate


def plans(fenced):
    sizes = st.integers(100, 400)
    return st.builds(
        lambda size, off, seconds: Plan(size, float(seconds), size * off // 100, fenced),
        sizes,
        st.integers(50, 200),
        st.integers(1, 50),
    )


PROGRAMS = st.builds(
    Programs,
    st.lists(plans(fenced=False), min_size=1, max_size=3),
    st.lists(plans(fenced=True), min_size=1, max_size=2 * FEW),
)


@settings(max_examples=1000)
@given(PROGRAMS, st.integers(50, 800))
def test_a_plan_fits_or_the_error_names_a_budget_that_does(forms, budget):
    try:
        assert fitted(forms, budget).peak <= budget
    except BudgetError as error:
        assert error.minimum_bytes > budget
        assert fitted(forms, error.minimum_bytes).peak <= error.minimum_bytes


@settings(max_examples=1000)
@given(PROGRAMS, st.integers(50, 800))
def test_every_error_names_the_same_budget(forms, budget):
    with pytest.raises(BudgetError) as least:
        fitted(forms, 1)
    try:
        fitted(forms, budget)
    except BudgetError as error:
        assert error.minimum_bytes == least.value.minimum_bytes


def test_the_leanest_plans_are_not_looked_for_where_another_fits():
    class Large(Programs):
        @property
        def leanest_of_each(self):
            raise AssertionError("planned for nothing")

    plain, other = Plan(200, 1.0, 190, fenced=False), Plan(100, 2.0, 110, fenced=True)
    assert fitted(Large([plain], [other]), 150) is other
    assert fitted(Large([plain], [other]), 200) is plain
