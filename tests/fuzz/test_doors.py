"""The fuzzer of the doors: some inputs for each, the same every time; and that it finds faults."""

import multiprocessing
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import knock
from fuzz.doors import DOORS, Corpus, Door, corpus

COUNT = 200


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    found = corpus(folder, ("mlp tanh",))
    for door in DOORS.values():  # what is made on first use takes its time
        for data in found.get(door.seeds, ())[:1]:
            door.enter(data, folder)
    return found


@pytest.fixture
def bounded(monkeypatch) -> Iterator[None]:
    """The bounds of a worker on time; those on memory would hold for the tests that follow."""
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    before = signal.getsignal(signal.SIGPROF)
    knock.prepare()
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("name", DOORS)
def test_what_comes_in_is_taken_or_refused(name, sound, bounded, tmp_path):
    report = knock.knock(range(COUNT), sound, tmp_path, (name,), 0)
    assert report.faults == {}
    assert report.outcomes.total() == COUNT and len(report.outcomes) >= 1


def test_what_is_sound_is_taken(sound, bounded, tmp_path):
    for name, door in DOORS.items():
        for data in sound.get(door.seeds, ()):
            assert knock.outcome(door, data, tmp_path) == "taken", name


def test_a_number_is_an_input(sound):
    assert [knock.thrown(i, sound) for i in range(99)] == [
        knock.thrown(i, sound) for i in range(99)
    ]
    drawn = Counter(knock.thrown(i, sound)[0] for i in range(999))
    assert drawn.keys() == DOORS.keys() and drawn.most_common(1)[0][0] == "graph"


def broken(data: bytes, folder: Path) -> None:
    if b"7" in data:
        raise KeyError("seven")
    if b"8" in data:
        while True:
            pass
    if b"9" in data:
        bytearray(1 << 22)
    raise ValueError


@pytest.mark.parametrize(
    ("cause", "kind"), [(b"7", "KeyError"), (b"8", "Slow"), (b"9", "MemoryErr")]
)
def test_faults_are_found_and_made_smaller(cause, kind, bounded, tmp_path, monkeypatch):
    monkeypatch.setattr(knock, "SECONDS", 0.2)
    monkeypatch.setattr(knock, "WATCHED", 1)
    monkeypatch.setattr(knock, "FIXED", 1 << 20)
    door = Door(broken, (ValueError,), 1, "seed")
    monkeypatch.setattr(knock, "DOORS", {"broken": door})
    monkeypatch.setattr(knock, "thrown", lambda i, *_: ("broken", b"abc" * i + cause + b"def" * i))
    report = knock.knock([0, 1, 5], {}, tmp_path, ("broken",), 20)
    ((name, (_, data, told)),) = report.faults.items()
    assert name.startswith(f"broken: {kind}") and data == cause and "input 0" in told
    assert report.outcomes["broken", "FAULT"] == 3


def test_a_process_that_dies_is_a_fault(monkeypatch):
    class Dead:
        """Instead of a process: ended at once, as after a crash."""

        exitcode = -11

        def __init__(self, target, args, daemon) -> None:
            self.args = args

        def start(self) -> None:
            *_, at, _ = self.args
            at.value = self.args[0][-1]

        is_alive = kill = join = lambda self: False

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(type(context), "Process", Dead)
    options = knock.arguments(["-n", "2", "--seed", "5", "--doors", "budget"])
    (report,) = knock.reports(options, {})
    assert list(report.faults) == ["budget: the process died with -11"]
    assert (
        report.faults["budget: the process died with -11"][1] == knock.thrown(6, {}, ["budget"])[1]
    )
