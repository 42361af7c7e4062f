"""Bad use of the command: exit 2, one clear message on stderr, nothing on stdout, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backpass.cli.main import main

FILES = {
    "model.py": """
import jax, jax.numpy as jnp
ROWS = jax.ShapeDtypeStruct((4, 8), jnp.float32)
number = 3
def f(x): return (x * 2).sum()
def g(x): return x + 1
def raises(x): raise RuntimeError("mine")
def leaves(x): raise SystemExit(7)
def slow(x):
    import time
    print("slow", flush=True)
    time.sleep(60)
f.example_args = lambda: (ROWS,)
raises.example_args = slow.example_args = leaves.example_args = f.example_args
def words(x): return x
words.example_args = ("text",)
def lazy(x): return x
lazy.example_args = lambda: 1 / 0
""",
    "syntax.py": "def f(x:\n",
    "raising.py": "raise RuntimeError('mine')\n",
    "leaving.py": "raise SystemExit(7)\n",
    "missing.py": "import no_such_module_here\n",
    "bytes.py": b's = "\xff"\n',
    "graph.txt": "backpass.ir 1\ngraph f(\n",
    "latin.txt": b"backpass.ir 1\n\xe9",
    "file": "",
}
# A call, and what its message tells.
BAD = {
    "dump": "arguments are required",
    "dump model.py": "expected FILE_OR_MODULE:FUNCTION, got 'model.py'",
    "dump model.py:": "expected FILE_OR_MODULE:FUNCTION",
    "dump :f": "expected FILE_OR_MODULE:FUNCTION",
    "dump none.py:f": "there is no file 'none.py'",
    "dump folder.py:f": "there is no file 'folder.py'",
    "dump no_module_of_that_name:f": "cannot import 'no_module_of_that_name'",
    "dump .model:f": "cannot import '.model'",
    "dump a..b:f": "cannot import 'a..b'",
    "dump model.txt:f": "cannot import 'model.txt'",
    "dump model.py:none": "model.py has no function 'none'",
    "dump model.py:f.none": "model.py has no function 'f.none'",
    "dump model.py:number": "is no function but a int",
    "dump model.py:g": "model.py:g needs argument types",
    "dump model.py:f f32[4,8] f32[4]": "model.py:f does not take 2 arguments: too many positional",
    "dump model.py:f f32[4": "expected an argument type such as f32[8,512] or i32[], got 'f32[4'",
    "dump model.py:f f31[4]": "expected an argument type",
    "dump model.py:f f32[-1]": "expected an argument type",
    "dump model.py:f f32[9999999999999999999]": "expected an argument type",
    "dump model.py:f --stage none": "there is no stage 'none'; the stages are traced,",
    "dump model.py:f --passes none": "there is no pass 'none'",
    "dump model.py:f --passes cse{x=1}": "pass 'cse' has no option 'x'",
    "dump model.py:f --format none": "invalid choice: 'none'",
    "dump model.py:f --format html --stage cse": "--format html is of the whole program",
    "dump model.py:f -o file": "cannot write file",
    "dump model.py:f -o file/below --stage cse": "cannot write file/below",
    "dump model.py:f -o /proc/none": "cannot write /proc/none",
    "dump model.py:words": "words",
    "diff": "arguments are required",
    "diff graph.txt": "diff wants two dumps",
    "diff none none": "cannot read 'none'",
    "diff folder.py folder.py": "folder.py holds no dump",
    "diff graph.txt graph.txt": "graph.txt, line 3, column 1: expected a value",
    "diff latin.txt latin.txt": "cannot read 'latin.txt'",
    "diff model.py:f --stages traced,none": "there is no stage 'none'",
    "diff model.py:f --stages a,b,c": "--stages wants one stage or two",
    "diff graph.txt f32[2] --stages traced,dce": "graph.txt is a dump, which takes no argument",
    "plan model.py:f --budget much": "memory_budget wants bytes",
    "plan model.py:f --budget=-1GiB": "memory_budget wants bytes",
    "plan model.py:f --budget 0": "memory_budget wants bytes",
    f"plan model.py:f --budget {'9' * 400}GiB": "memory_budget wants bytes",
    "plan model.py:f --budget ,": "memory_budget wants bytes",
    "plan model.py:f --device h9": "there is no device 'h9'; known are cpu,",
    "plan model.py:f --donate x": "--donate wants positions",
    "plan model.py:f --donate \u0663": "--donate wants positions",
    f"plan model.py:f --donate {'9' * 5000}": "--donate wants positions",
    "plan model.py:f --donate 7": "7",
    "plan model.py:f --device cpu --budget 1GiB --png file/x.png": "cannot write file/x.png",
    "plan model.py:f --device cpu --budget 1GiB --png folder.py": "cannot write folder.py",
    "doctor more": "unrecognized arguments: more",
    "none": "invalid choice: 'none'",
    "": "arguments are required",
}
# The user's own code stops the command: their line, and no line of ours above it in the way.
THEIRS = {
    "dump syntax.py:f": ("syntax.py", "SyntaxError"),
    "dump bytes.py:f": ("bytes.py", "SyntaxError"),
    "dump raising.py:f": ("raising.py", "RuntimeError: mine"),
    "dump missing.py:f": ("missing.py", "No module named 'no_such_module_here'"),
    "dump leaving.py:f": ("leaving.py", "SystemExit"),
    "dump model.py:raises": ("model.py", "RuntimeError: mine"),
    "dump model.py:leaves": ("model.py", "SystemExit"),
    "dump model.py:lazy": ("model.py", "ZeroDivisionError"),
    "diff raising.py:f graph.txt": ("raising.py", "RuntimeError: mine"),
    "plan model.py:raises --budget 1GiB --device cpu": ("model.py", "RuntimeError: mine"),
}


@pytest.fixture
def there(tmp_path, monkeypatch):
    for name, text in FILES.items():
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.py").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


COMMAND = "import sys; from backpass.cli.main import main; sys.exit(main())"


def called(words: list[str]) -> int:
    """The exit status; argparse leaves by an exception."""
    try:
        return main(words)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize("call", BAD, ids=lambda call: call[:60])
def test_bad_use_is_two_and_told(call, there, capsys):
    assert called(call.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    assert BAD[call] in told.err.split("backpass: ", 1)[-1]
    assert len(told.err) < 2000


@pytest.mark.parametrize("call", THEIRS)
def test_what_the_users_code_raises_is_shown_with_its_line(call, there, capsys):
    assert called(call.split()) == (2 if call.startswith("diff") else 1)
    told = capsys.readouterr()
    assert told.out == ""
    for word in THEIRS[call]:
        assert word in told.err


def process(there: Path, *words: str, before=(), code=COMMAND, **options) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-P", "-c", code, *words]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=there, env=env, text=True, **{"stdout": pipe, "stderr": pipe, **options}
    )


def test_ctrl_c_ends_it_with_a_word(there):
    # A shell has what it runs in the background ignore this signal, and a child does as its parent.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    running = process(there, "dump", "model.py:slow", code=heeds + COMMAND)
    assert running.stdout.readline() == "slow\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "") and err.endswith("backpass: interrupted\n")
    assert "Traceback" not in err


def test_whoever_reads_may_stop_reading(there):
    """As `head` does; of little text and of much."""
    for stage in ([], ["--stage", "traced"]):
        read, write = os.pipe()
        running = process(there, "dump", "model.py:f", *stage, stdout=write)
        os.close(read)
        os.close(write)
        _, err = running.communicate(timeout=60)
        assert (running.returncode, err) == (1, "")


def test_a_closed_stdout_is_no_trouble(there):
    running = process(
        there, "dump", "model.py:f", "-o", "out", before=("sh", "-c", 'exec "$@" >&-', "-")
    )
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0 and "Traceback" not in err
    assert (there / "out" / "manifest.json").exists()
