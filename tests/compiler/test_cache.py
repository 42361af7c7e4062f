"""The cache of plans and executables: a later process finds what an earlier one settled on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import backpass as bp
from backpass.compiler import cache as of_programs
from backpass.compiler.settled import Shelf, forget
from backpass.runtime.cache import Store
from stress import cache as stress

BUDGET = stress.BUDGETS[0]


@pytest.fixture
def folder():
    with stress.cached() as found:
        yield found


def compiled(budget=BUDGET):
    """As of a process that remembers nothing."""
    forget()
    f = bp.compile(stress.step, memory_budget=budget)
    f(*stress.arguments())
    return f


def plan_of(f):
    return f.lower(*stress.arguments()).plan


def text_of(f):
    return f.lower(*stress.arguments()).as_text("stablehlo")


def test_a_plan_is_recalled_and_gives_the_same_program(folder):
    first, second = compiled(), compiled()
    (before,), (after,) = first.explain().traces, second.explain().traces
    assert (before.recalled, after.recalled, after.compiles) == (False, True, 1)
    assert "(known plan)" in str(second.explain()) and "(known plan)" not in str(first.explain())
    assert plan_of(second).choice == plan_of(first).choice
    assert plan_of(second).measured_bytes == plan_of(first).measured_bytes <= BUDGET
    assert text_of(second) == text_of(first)


def test_without_a_cache_nothing_is_kept():
    compiled()
    assert not compiled().explain().traces[0].recalled
    assert of_programs.current() is None and of_programs.store() is None


def test_jax_own_setting_turns_it_on(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    try:
        compiled()
        (entry,) = (tmp_path / "jax" / "backpass").iterdir()
        assert entry.name.endswith(f"-{BUDGET}.json")
    finally:
        stress.off()


def test_the_cache_tells_its_size(folder):
    compiled()
    found = of_programs.current()
    assert found is not None and (found.directory, found.entries) == (folder, 1)
    assert found.executables > 0 and found.bytes > 1000
    assert str(found).startswith(f"{folder}: ") and "1 plans" in str(found)


def test_a_lower_budget_is_not_given_a_higher_peak_by_another_process(folder):
    low = plan_of(compiled(BUDGET)).measured_bytes
    high = plan_of(compiled(2 * BUDGET)).measured_bytes
    assert low <= high


def test_options_and_programs_have_plans_of_their_own(folder):
    compiled()
    forget()
    bp.compile(stress.step, memory_budget=BUDGET, donate_argnums=0)(*stress.arguments())
    names = Store(folder / "backpass").names("plan-")
    assert len({name.split("-")[1] for name in names}) == 2


def test_a_plan_that_no_longer_fits_is_dropped_and_made_again(folder):
    """As after a change of XLA: the entry is sound, but what it tells of is not so."""
    high, expected = plan_of(compiled(1 << 30)), plan_of(compiled())
    assert high.measured_bytes > BUDGET
    large, small = (next((folder / "backpass").glob(f"*-{b}.json")) for b in (1 << 30, BUDGET))
    key = json.loads(small.read_bytes().partition(b"\n")[0])["key"]
    body = json.loads(large.read_bytes().partition(b"\n")[2])
    Store(folder / "backpass").write(small.stem, key, {**body, "peak": 1})
    large.unlink()
    with pytest.warns(bp.CacheWarning, match="its peak is now"):
        again = compiled()
    assert plan_of(again).choice == expected.choice
    assert plan_of(again).measured_bytes <= BUDGET
    assert compiled().explain().traces[0].recalled


def test_whatever_lies_in_the_folder_the_numbers_are_right():
    assert stress.check_entries(len(stress.OURS), seed=0) == []


def test_whatever_lies_in_jax_own_folder_the_numbers_are_right():
    assert stress.check_executables(6, seed=0) == []


def test_two_processes_fill_one_cache():
    assert stress.check_processes(2, 3) == []


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(bp.CacheError, match="others may write to it"):
        bp.cache(shared)
    assert of_programs.current() is None


def test_such_a_folder_of_plans_is_told_of_and_left(folder):
    (folder / "backpass").chmod(0o777)
    with pytest.warns(bp.CacheWarning, match="no plans are kept"):
        f = compiled()
    assert plan_of(f).measured_bytes <= BUDGET


SECOND = """
import sys
import jax
import backpass as bp
from stress import cache as stress

hits = []
jax.monitoring.register_event_listener(lambda name, **more: hits.append(name))
bp.cache(sys.argv[1])
f = bp.compile(stress.step, memory_budget=stress.BUDGETS[0])
f(*stress.arguments())
(trace,) = f.explain().traces
plan = f.lower(*stress.arguments()).plan
missed = sum(name.endswith("cache_misses") for name in hits)
print(trace.recalled, missed, plan.measured_bytes, stress.run(stress.BUDGETS[0])[0])
"""


def test_a_process_of_another_hash_seed_finds_everything(tmp_path):
    def process(seed: str) -> list[str]:
        tests = str(Path(__file__).parents[1])
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": tests}
        command = [sys.executable, "-P", "-c", SECOND, str(tmp_path / "cache")]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        ).stdout.split()

    first, second = process("1"), process("2")
    assert (first[0], second[0]) == ("False", "True")
    assert int(first[1]) > 0 and second[1] == "0"
    assert first[2:] == second[2:]


@pytest.mark.parametrize(
    "body",
    [
        {"choice": {"bodies": [], "stretches": []}, "peak": float("inf")},
        {"choice": {"bodies": [], "stretches": []}, "peak": "1"},
        {"choice": {"bodies": [], "stretches": [{}]}, "peak": 1},
        [1],
    ],
)
def test_an_entry_that_is_no_plan_is_dropped(tmp_path, body):
    shelf = Shelf(Store(tmp_path), "k" * 64)
    text = json.dumps(body).encode()
    shelf.store.write_bytes(shelf._name(7), f"{shelf.key}-7", text)
    with pytest.warns(bp.CacheWarning, match="was dropped"):
        assert list(shelf.plans()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_nests_without_end_is_dropped(tmp_path):
    shelf = Shelf(Store(tmp_path), "k" * 64)
    for text in ('{"bodies":[' * 300 + '],"stretches":[]}' * 300, "[" * 10_000):
        body = f'{{"choice": {text}, "peak": 1}}'.encode()
        shelf.store.write_bytes(shelf._name(7), f"{shelf.key}-7", body)
        with pytest.warns(bp.CacheWarning, match="was dropped"):
            assert list(shelf.plans()) == []
