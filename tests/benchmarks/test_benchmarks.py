"""Every benchmark runs at a tiny size and tells what it should."""

import cProfile
import json
import pstats

import pytest

from ir.chromium import found


def test_cache(load_benchmark, capsys):
    """The second process recalls the first one's plan, and gets its loss."""
    results = load_benchmark("cache").main(["--tiny"])
    assert [each["start"] for each in results] == ["first", "second"] * 2
    assert results[3]["compiles"] == 1 and results[2]["loss"] == results[3]["loss"]
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "second"


def test_nonfinite(load_benchmark, capsys):
    """The fault is found by both, and a row told."""
    (row,) = load_benchmark("nonfinite").main(["--tiny", "--repeats", "2", "--models", "mlp"])
    assert row.time.median > 0 and min(row.found, row.again, row.debug_nans) > 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "mlp"


def test_rolling(load_benchmark, capsys):
    """Each arm has a row, the first one's steps relative to themselves."""
    arguments = ["--tiny", "--layers", "3", "--arms", "rolled", "jax", "--repeats", "2"]
    results = load_benchmark("rolling").main(arguments)
    assert [(each.layers, each.arm) for each in results] == [(3, "rolled"), (3, "jax")]
    assert results[0].step.median == 1
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["3", "jax"]


def test_attention(load_benchmark, capsys):
    """Plain `jax.jit` first, at which the others are relative; less memory under less budget."""
    arguments = ["--tiny", "--kinds", "window", "--budgets", "1", "2", "--repeats", "2"]
    plain, free, least, more = load_benchmark("attention").main(arguments)
    assert plain.time.median == plain.peak == plain.temp == 1
    assert least.peak <= more.peak <= free.peak
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["window_16", "2"]


def test_health(load_benchmark, capsys):
    """A row for each model and optimiser, with and without health."""
    arguments = ["--tiny", "--models", "mlp_1024", "--optimisers", "sgd", "--repeats", "2"]
    (result,) = load_benchmark("health").main(arguments)
    assert result.step == "mlp_1024 sgd" and set(result.seconds) == {"plain", "health"}
    assert result.cpu.low <= result.cpu.median <= result.cpu.high
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["mlp_1024", "sgd"]


def test_scaling(load_benchmark, tmp_path, capsys):
    """Growth is told for each phase and size, and drawn."""
    path = tmp_path / "scaling.png"
    results = load_benchmark("scaling").main(["--tiny", "--repeats", "1", "--plot", str(path)])
    assert [(r.program, r.size) for r in results] == [
        ("chain", 50),
        ("chain", 100),
        ("parameters", 50),
        ("parameters", 100),
    ]
    assert all(r.nodes > r.size and r.seconds["all"] > r.seconds["bind"] > 0 for r in results)
    head, _, first = capsys.readouterr().out.splitlines()[2:5]
    assert head.split()[-5:] == ["all", "jax", "all", "/", "jax"]
    assert first.split()[2:15] == ["1.00"] * 13
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("program", ["chain", "parameters"])
def test_work_grows_with_the_program(load_benchmark, program):
    """Calls of Python functions, which are the same each time, in place of seconds."""
    scaling = load_benchmark("scaling")

    def calls(size):
        profiler = cProfile.Profile()
        profiler.runcall(scaling.phases, program, size)
        return pstats.Stats(profiler).total_calls

    calls(300)  # imports, and tables that are made once
    assert calls(1200) / calls(300) < 4.4


def test_planning(load_benchmark, capsys):
    """Seconds for each program and size, and beside XLA's."""
    results = load_benchmark("planning").main(["--tiny", "--programs", "mlp", "mixed"])
    assert [r.program for r in results] == ["mlp", "mlp", "mixed", "mixed"]
    assert results[0].nodes < results[1].nodes
    assert all(min(r.seconds[name] for name in ("plan", "xla")) > 0 for r in results)
    head, _, first = capsys.readouterr().out.splitlines()[2:5]
    assert head.split()[-3:] == ["plan", "/", "xla"]
    assert first.split()[0] == "mlp"


def test_planning_grows_with_the_program(load_benchmark, monkeypatch):
    """Calls of Python functions, in place of seconds; segments are at most so many."""
    planning = load_benchmark("planning")
    monkeypatch.setattr(planning, "XLA_LARGEST", 0)

    def calls(size):
        profiler = cProfile.Profile()
        planning.planned("mlp", size, profiler)
        return pstats.Stats(profiler).total_calls

    calls(200)
    assert calls(4000) / calls(2000) < 2.4


def test_vjp(load_benchmark, capsys):
    """A row for each op, the slowest first, and the median of all."""
    results = load_benchmark("vjp").main(["--tiny", "--repeats", "2", "--calls", "1"])
    assert sorted(result.op for result in results) == ["mul", "sin"]
    assert results[0].whole.median >= results[1].whole.median > 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "median"


def test_prediction(load_benchmark, capsys):
    """Predicted peaks are near XLA's."""
    (result,) = load_benchmark("prediction").main(["--tiny", "--budgets", "2"])
    assert len(result.first) == 2 and all(abs(error) < 0.25 for error in result.first)
    assert "calibrated" in capsys.readouterr().out


def test_roofline(load_benchmark, tmp_path, capsys):
    """Steps, then ops by what the planner gives them; each is predicted and measured."""
    path = tmp_path / "roofline.json"
    arguments = ["--tiny", "--models", "mlp", "lstm", "--ops", "5", "--json", str(path)]
    rows = load_benchmark("roofline").main(arguments)
    assert [row.name for row in rows[:2]] == ["mlp", "lstm"] and len(rows) == 7
    assert all(row.predicted > 0 and row.measured > 0 for row in rows)
    assert rows[2].count * rows[2].predicted == max(r.count * r.predicted for r in rows[2:])
    written = json.loads(path.read_text())["results"]
    assert [row["name"] for row in written[: len(rows)]] == [row.name for row in rows]
    assert [row["name"] for row in written[len(rows) :]] == ["mlp", "lstm"]
    assert all(row["flops"] > 0 < row["seconds"] for row in written[len(rows) :])
    assert capsys.readouterr().out.count("predicted / measured") == 2


def test_ops_are_timed_by_themselves(load_benchmark):
    """An op in a loop pays for its operands when it is alone: here twice what it writes."""
    from backpass.ir import parse
    from backpass.ir.device import DEVICES

    roofline, spec = load_benchmark("roofline"), DEVICES["cpu"]
    text = "backpass.ir 1\ngraph f(%0: f32[64,64]) {\n%1: f32[64,64] = OP\nreturn %1 }\n"
    neg = parse(text.replace("OP", "neg(%0)")).nodes[0]
    assert roofline.alone(neg, spec) == pytest.approx(2 * neg.output.type.nbytes / spec.bytes_per_s)
    dot = "dot_general(%0, %0) {dimension_numbers=(((1,),(0,)),((),()))}"
    product = parse(text.replace("OP", dot)).nodes[0]
    assert roofline.alone(product, spec) == spec.seconds(product)
    assert roofline.timed(neg) > 0


def test_constants(load_benchmark, capsys):
    """Each way to give the table is compiled."""
    (row,) = load_benchmark("constants").main(["--tiny", "--repeats", "1"])
    assert list(row.seconds) == ["read", "computed", "argument"] and min(row.seconds.values()) > 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "1"


def test_convolutions(load_benchmark, capsys):
    """Both libraries compute each part, and the product stands beside them."""
    (row,) = load_benchmark("convolutions").main(["--tiny", "--repeats", "1"])
    assert set(row.ynn) == {"forward", "images", "filters"} and min(row.ynn.values()) > 0
    assert row.product > 0 and len(row.cores) == 2
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["2", "4", "16"]


def test_dump(load_benchmark, capsys):
    """A row for each program, whose files were written."""
    results = load_benchmark("dump").main(["--tiny"])
    assert [row.program for row in results] == ["chain", "parameters"]
    assert all(row.nodes > 50 and row.bytes > row.largest > 0 for row in results)
    head = capsys.readouterr().out.splitlines()[2].split()
    assert head[0] == "program" and head[-2:] == ["MB", "largest"]


def test_page(load_benchmark, capsys):
    """A page of a small program is written, opened and used."""
    if found() is None:
        pytest.skip("there is no Chromium")
    (result,) = load_benchmark("page").main(["--tiny"])
    assert result.nodes >= 200 and result.bytes > 50_000
    assert min(result.open_ms, result.unfold_ms, result.frame_ms, result.search_ms) > 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == str(result.nodes)


def test_gallery(load_benchmark, tmp_path, capsys):
    """Each picture is drawn; plans are within budgets below the plain peaks."""
    out = tmp_path / "gallery"
    pairs = load_benchmark("gallery").main(["--tiny", "--out", str(out)])
    assert [pair.name for pair in pairs] == ["gpt", "gpt_scan", "unet", "lstm"]
    for pair in pairs:
        lean, plain = pair.lean, pair.plain
        assert lean.predicted_bytes <= lean.budget_bytes < plain.predicted_bytes
        assert (out / f"{pair.name}.png").read_bytes()[:4] == b"\x89PNG"
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["model", "plain"] and rows[-1][0] == "lstm"


def test_sweep(load_benchmark, capsys):
    """Budgets hold and results agree, without times."""
    arguments = ["--tiny", "--models", "mixture", "--by", "jax", "--budgets", "2", "--repeats", "0"]
    (result,) = load_benchmark("sweep.run").main(arguments)
    assert result.faults == [] and len(result.budgets) == 2
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["mixture", "jax"]


def test_accumulate(load_benchmark, capsys):
    """A row for each number of steps; the parts give what the whole gives."""
    arguments = ["--tiny", "--models", "lstm", "--steps", "2", "--repeats", "2"]
    (result,) = load_benchmark("accumulate").main(arguments)
    assert result.step == "lstm in 2" and result.error < 1e-5
    assert set(result.temp_bytes) == {"whole", "parts", "by hand"}


def test_kills(load_benchmark, capsys):
    """Two runs that are killed, one that comes to its end: the losses of a quiet one."""
    load_benchmark("kills").main(["--kills", "2", "--steps", "40", "--seed", "1"])
    told = capsys.readouterr().out
    assert told.startswith("2 kills") and "all 40 steps are those of a quiet run" in told


def test_meshes(load_benchmark, capsys):
    """The peak of one device is within its budget, and losses are those without one."""
    arguments = ["--tiny", "--strategies", "data", "--budgets", "1"]
    (result,) = load_benchmark("meshes").main(arguments)
    assert result.peak <= result.budget == result.plain and result.error < 1e-5
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "1"
