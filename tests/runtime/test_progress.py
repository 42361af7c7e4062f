"""A word on stderr when a compile takes long; silence when it does not."""

import time

import pytest

from backpass.runtime import progress
from backpass.runtime.progress import Watch


def test_silence_when_it_is_quick(capfd):
    assert Watch("step").stop() >= 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_compile_is_told(capfd, monkeypatch, terminal):
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    watch = Watch("step")
    while not watch._told:
        time.sleep(0.01)
    assert watch.stop() >= 0.01
    out, err = capfd.readouterr()
    assert out == ""
    assert "backpass: compiling step ... 0 s" in err
    assert "backpass: compiled step in 0." in err
    assert err.endswith("\n") and ("\r" in err) == terminal
