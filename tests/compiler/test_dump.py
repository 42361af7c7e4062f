"""Dumps: every stage parses back, exports open, folders are whole, and nothing breaks a step."""

import json
import os
import stat
import warnings

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pydot
import pytest

import backpass as bp
from backpass.cli.main import main
from backpass.compiler import dump
from backpass.compiler.dump import FORMATS, read_manifest

F32 = jnp.float32
X = np.ones((4, 16), np.float32)
PARAMS = {"w": np.full((16, 8), 0.1, np.float32)}


def loss(params, x):
    with jax.named_scope("block/mlp"):
        hidden = jnp.tanh(x @ params["w"])
    return jnp.mean(hidden**2)


def update(params, x):
    value, grads = bp.value_and_grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


@pytest.fixture
def lowered():
    return bp.compile(update, donate_argnums=0).lower(PARAMS, X)


FILE = """
import jax
import jax.numpy as jnp
import backpass as bp

def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)

def step(w, x):
    value, grad = bp.value_and_grad(loss)(w, x)
    return w - grad, value

def example_args():
    return jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.float32)
"""


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "dumped_model.py"
    path.write_text(FILE)
    return f"{path}:step"


# Folders


def test_a_dump_is_whole(lowered, tmp_path):
    paths = lowered.dump(tmp_path / "deep" / "out")
    assert sorted(paths) == sorted((tmp_path / "deep" / "out").iterdir()), "no temporary files"
    manifest = read_manifest(tmp_path / "deep" / "out")
    assert [*manifest["files"], "manifest.json"] == [path.name for path in paths]
    for stage, row in zip(lowered.stages, manifest["stages"], strict=True):
        text = (tmp_path / "deep" / "out" / row["file"]).read_text(encoding="utf-8")
        assert bp.ir.parse(text) == stage.graph
        assert (row["name"], row["nodes"]) == (stage.name, len(stage.graph.nodes))
        assert sum(row["phases"].values()) == row["nodes"]
    assert manifest["arguments"] == [
        {"path": "args[0]['w']", "type": "f32[16,8]"},
        {"path": "args[1]", "type": "f32[4,16]"},
    ]
    assert manifest["versions"]["jax"] == jax.__version__
    assert "stablehlo.dot_general" in (tmp_path / "deep" / "out" / "program.mlir").read_text()
    assert not (tmp_path / "deep" / "out" / "program.hlo").exists()


def test_hlo_on_request(lowered, tmp_path):
    paths = {path.name: path for path in lowered.dump(tmp_path, hlo=True)}
    assert "HloModule" in paths["program.hlo"].read_text()


def test_another_program_takes_the_place_of_the_first(lowered, tmp_path):
    """Whole: no file of the longer dump stays; files that are not ours do."""
    (tmp_path / "notes.txt").write_text("mine")
    before = lowered.dump(tmp_path)
    short = bp.compile(lambda x: x + 1, passes="dce").lower(X)
    after = short.dump(tmp_path)
    assert len(after) < len(before)
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in after} | {"notes.txt"}


def test_a_foreign_manifest_removes_nothing(lowered, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    folder = tmp_path / "dump"
    lowered.dump(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = ["../outside.txt"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lowered.dump(folder)
    assert outside.read_text() == "mine"


def test_a_place_that_cannot_be_written(lowered, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(bp.ir.errors.DumpError, match="cannot write .*file"):
        lowered.dump(tmp_path / "file")
    with pytest.raises(OSError):
        lowered.dump(tmp_path / "file" / "below")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    dump.write_text(path, "old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(bp.ir.errors.DumpError, match="No space left"):
        dump.write_text(path, "new")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_files_are_readable_by_others(tmp_path):
    dump.write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "b.txt")}
    assert len(modes) == 1


def test_dumping_does_not_settle_a_plan(tmp_path):
    """StableHLO of a plan that has not been measured leaves the search as it was."""
    step = bp.compile(update, memory_budget="1MiB", donate_argnums=0)
    lowered = step.lower(PARAMS, X)
    assert lowered.plan.measured_bytes is None
    lowered.dump(tmp_path)
    step({"w": jnp.array(PARAMS["w"])}, X)
    assert step.lower(PARAMS, X).plan.measured_bytes is not None


# Other tools


def test_dot_is_read_by_pydot(lowered, tmp_path):
    lowered.dump(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydot's, of its parser
        (graph,) = pydot.graph_from_dot_file(tmp_path / "graph.dot")
        read = nx.nx_pydot.from_pydot(graph)
    drawn = lowered.graph.to_networkx()
    assert set(drawn.nodes) <= set(read.nodes) | {
        node.get_name() for cluster in _clusters(graph) for node in cluster.get_nodes()
    }
    assert read.number_of_edges() == drawn.number_of_edges()


def _clusters(graph):
    for inner in graph.get_subgraphs():
        yield inner
        yield from _clusters(inner)


def trace_of(lowered):
    trace = json.loads(FORMATS["trace"].render(lowered))
    assert set(trace) == {"traceEvents", "displayTimeUnit"} and trace["displayTimeUnit"] == "ms"
    return trace["traceEvents"]


def test_trace_events_have_their_documented_fields(lowered):
    wanted = {"X": {"ts", "dur"}, "C": {"ts", "args"}, "M": {"args"}}
    for event in trace_of(lowered):
        assert {"name", "pid", *wanted[event["ph"]]} <= set(event)
        assert all(event[key] >= 0 for key in ("ts", "dur") if key in event)
        if event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())


def test_trace_slices_nest(lowered):
    """Two slices of a thread are apart, or one holds the other; every pass is in one slice."""
    events = trace_of(lowered)
    for process in (1, 2):
        slices = [e for e in events if e["ph"] == "X" and e["pid"] == process]
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in slices]
        open_spans = []
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_spans and open_spans[-1] <= start:
                open_spans.pop()
            assert all(end <= outer for outer in open_spans)
            open_spans.append(end)
    names = [e["name"] for e in events if e["ph"] == "X" and e["pid"] == 1]
    assert names == ["lower update", "traced", "passes", *(s.name for s in lowered.stages[1:])]


def test_trace_has_the_memory_of_the_donated_program(lowered):
    live = bp.ir.liveness(lowered.graph, [0], fused=True)
    assert lowered.donated == (0,)
    counters = [sum(e["args"].values()) for e in trace_of(lowered) if e["ph"] == "C"]
    assert counters == list(live.bytes)
    assert sum(counters) < sum(bp.ir.liveness(lowered.graph, fused=True).bytes)


# BACKPASS_DUMP


def test_environment(tmp_path, monkeypatch):
    """A folder for each compile; a program that is known already writes none."""
    monkeypatch.setenv("BACKPASS_DUMP", str(tmp_path / "dumps"))
    step = bp.compile(update)
    step(PARAMS, X)
    step(PARAMS, X)
    step(PARAMS, X[:2])
    bp.compile(lambda x: x + 1)(X)
    folders = sorted(path.name for path in (tmp_path / "dumps").iterdir())
    assert folders == ["lambda-0", "update-0", "update-1"]
    stages = read_manifest(tmp_path / "dumps" / "update-1")["stages"]
    text = (tmp_path / "dumps" / "update-1" / stages[-1]["file"]).read_text()
    assert bp.ir.parse(text) == step.lower(PARAMS, X[:2]).graph


def test_environment_dumps_the_plan_that_was_settled(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKPASS_DUMP", str(tmp_path))
    step = bp.compile(update, memory_budget="1MiB")
    step(PARAMS, X)
    (folder,) = tmp_path.iterdir()
    assert read_manifest(folder)["stages"][-1]["name"] == "rematerialise"


def test_environment_dumps_what_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKPASS_DUMP", str(tmp_path))
    step = bp.compile(update, memory_budget=16)
    with pytest.raises(bp.BudgetError):
        step(PARAMS, X)
    assert [path.name for path in tmp_path.iterdir()] == ["update-0"]


def test_environment_never_breaks_a_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BACKPASS_DUMP", str(tmp_path / "file"))
    step = bp.compile(update)
    with pytest.warns(UserWarning, match="BACKPASS_DUMP.*cannot write") as warned:
        _, value = step(PARAMS, X)
        step(PARAMS, X[:2])
        bp.compile(update)(PARAMS, X[:3])
    assert len(warned) == 1 and np.isfinite(float(value))


# The command


def run(*arguments):
    return main([str(each) for each in arguments])


def test_the_command_writes_what_lowered_dumps(target, tmp_path, capsys):
    assert run("dump", target, "-o", tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert {"graph.dot", "graph.json", "trace.json", "program.mlir"} <= set(manifest["files"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_printed_and_written(name, target, tmp_path, capsys):
    stage = [] if FORMATS[name].whole else ["--stage", "autodiff"]
    assert run("dump", target, "--format", name, *stage) == 0
    printed = capsys.readouterr().out
    assert run("dump", target, "--format", name, *stage, "-o", tmp_path / "one") == 0
    written = (tmp_path / "one").read_text()
    assert printed and written
    if name in ("json", "trace"):
        json.loads(printed), json.loads(written)
    elif name == "html":  # it has the seconds of the passes in it
        assert printed.startswith("<!DOCTYPE html>") and written.startswith("<!DOCTYPE html>")
    elif name == "hlo":  # it has the lines of this test in it
        assert printed.startswith("HloModule") and written.startswith("HloModule")
    else:
        assert printed == written + "\n"


def test_a_folder_takes_a_file_by_its_name(target, tmp_path, capsys):
    assert run("dump", target, "--format", "trace", "-o", tmp_path) == 0
    assert (tmp_path / "program.json").exists()
    assert run("dump", target, "--format", "dot", "-o", tmp_path / "dots") == 0
    names = sorted(path.name for path in (tmp_path / "dots").iterdir())
    assert names[0] == "000_traced.dot" and len(names) > 5


@pytest.mark.parametrize(
    "options",
    [("--stage", "no"), ("--format", "hlo", "--stage", "cse"), ("f32[",)],
)
def test_bad_use_is_two(options, target, capsys):
    assert run("dump", target, *options) == 2
    assert capsys.readouterr().err.startswith("backpass: ")


def test_what_cannot_be_written_is_two(target, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("dump", target, "-o", tmp_path / "file") == 2
    assert run("dump", target, "--stage", "dce", "-o", tmp_path / "file" / "x") == 2
    assert capsys.readouterr().err.count("cannot write") == 2


def test_rows_as_json(target, tmp_path, capsys):
    assert run("dump", target, "--json", "-o", tmp_path / "out") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["stage"] == "traced" and rows[-1]["nodes"] > rows[0]["nodes"]
    assert all(os.path.exists(row["path"]) for row in rows)


def test_html_is_one_page_of_all_stages(target, tmp_path, capsys):
    path = tmp_path / "page.html"
    assert main(["dump", target, "--format", "html", "-o", str(path)]) == 0
    assert capsys.readouterr().err.strip() == str(path)
    data = path.read_text().partition('type="application/json">')[2].partition("</script>")[0]
    stages = [stage["name"] for stage in json.loads(data)["stages"]]
    assert stages[0] == "traced" and "autodiff" in stages
