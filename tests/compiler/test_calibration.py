"""What peaks of some plans tell of others'."""

from types import SimpleNamespace

import pytest

from backpass.compiler.calibration import MARGIN, Calibration

FIXED = 100


def plan(nbytes):
    live = SimpleNamespace(argument_bytes=120, output_bytes=60, donated_bytes=80)
    return SimpleNamespace(bytes=nbytes, live=live)


def test_without_plans_it_is_as_predicted():
    assert Calibration([]).expected(plan(700)) == 700
    assert Calibration([]).predicted(700) == 700


def test_temporaries_are_off_in_proportion():
    calibration = Calibration([(plan(FIXED + 400), FIXED + 500)])
    assert calibration.expected(plan(FIXED + 800)) == FIXED + 1000
    assert calibration.expected(plan(FIXED + 400)) == FIXED + 500
    assert calibration.predicted(FIXED + 1000) == pytest.approx(FIXED + 800 * MARGIN)


def test_between_two_plans_it_goes_in_a_straight_line():
    found = Calibration([(plan(FIXED + 400), FIXED + 400), (plan(FIXED + 600), FIXED + 800)])
    assert found.expected(plan(FIXED + 500)) == FIXED + 600
    assert found.predicted(FIXED + 600) == FIXED + 500
    assert found.expected(plan(FIXED + 200)) == FIXED + 200
    assert found.expected(plan(FIXED + 900)) == FIXED + 1200


def test_a_smaller_plan_is_never_expected_to_take_more():
    found = Calibration([(plan(FIXED + 400), FIXED + 900), (plan(FIXED + 600), FIXED + 700)])
    sizes = [found.expected(plan(FIXED + size)) for size in range(100, 1000, 50)]
    assert sizes == sorted(sizes)
