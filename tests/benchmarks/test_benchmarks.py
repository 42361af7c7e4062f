"""Every benchmark runs at a tiny size and tells what it should."""

import cProfile
import json
import pstats

import jax
import jax.numpy as jnp
import pytest

from ir.chromium import found

NAMES = ["mlp", "resnet", "gpt", "gpt_scan", "lstm", "vit", "unet", "moe", "vae"]


@pytest.mark.parametrize("tiny", [True, False])
def test_every_model_is_a_scalar_loss(load_benchmark, tiny):
    """At both sizes, by shape alone; every leaf is a parameter in float32."""
    made = load_benchmark("workloads").models(tiny=tiny)
    assert [model.name for model in made] == NAMES
    for model in made:
        key = jax.eval_shape(lambda: jax.random.key(0))
        params, batch = jax.eval_shape(model.init, key), jax.eval_shape(model.batch, key)
        assert jax.eval_shape(model.loss, params, batch) == jax.ShapeDtypeStruct((), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.float32.dtype}


def test_fusion_parts(load_benchmark, capsys):
    """Every part runs, in the words of the table of steps, and both arms agree."""
    module = load_benchmark("parts")
    assert len(module.parts(tiny=False)) == len(module.parts(tiny=True)) == 22
    arguments = ["--tiny", "--repeats", "2", "--parts", "loss_z_loss", "gru_6"]
    results = module.main(arguments)
    assert [each.model for each in results] == ["loss_z_loss", "gru_6"]
    assert all(each.loss < 1e-5 and each.grads < 1e-4 for each in results)
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "gru_6"


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


def test_health(load_benchmark, capsys):
    """A row for each model and optimiser, with and without health."""
    arguments = ["--tiny", "--models", "mlp_1024", "--optimisers", "sgd", "--repeats", "2"]
    (result,) = load_benchmark("health").main(arguments)
    assert result.step == "mlp_1024 sgd" and set(result.seconds) == {"plain", "health"}
    assert result.cpu.low <= result.cpu.median <= result.cpu.high
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["mlp_1024", "sgd"]


def test_steps(load_benchmark, tmp_path, capsys):
    """Ratios are told on stdout, all numbers are in the file, and both arms agree."""
    path = tmp_path / "steps.json"
    arguments = ["--tiny", "--models", "mlp", "--repeats", "2", "--json", str(path)]
    (result,) = load_benchmark("steps").main(arguments)
    told = capsys.readouterr()
    assert result.time.low <= result.time.median <= result.time.high
    assert result.loss < 1e-5 and result.grads < 1e-4 and result.temp > 0
    assert told.out.splitlines()[-1].split()[0] == "mlp"
    assert "compiled in" in told.err and "compiled in" not in told.out
    written = json.loads(path.read_text())
    assert written["environment"]["jax"] == jax.__version__
    assert [row["model"] for row in written["results"]] == ["mlp"]
    assert len(written["results"][0]["seconds"]["jax"]) == 2


def test_a_model_that_fails_is_a_row(load_benchmark, monkeypatch, capsys):
    """And no other row is lost."""
    steps = load_benchmark("steps")

    def fails(model, *rest):
        raise ValueError("no rule for lattice")

    monkeypatch.setattr(steps, "measure", fails)
    assert steps.main(["--tiny", "--models", "mlp", "vae"]) == []
    told = capsys.readouterr()
    assert [line.split() for line in told.out.splitlines()[-2:]] == [
        ["mlp", "failed"],
        ["vae", "failed"],
    ]
    assert "ValueError: no rule for lattice" in told.err


def test_differences_are_those_of_the_gradients(load_benchmark):
    """At `CHECK_RATE` the update shows a gradient that is wrong by one part in a thousand."""
    steps = load_benchmark("steps")
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    grads = {"w": jnp.array([0.5, 0.25]), "b": jnp.array([1e-3])}

    def stepped(factor):
        rate = factor * steps.CHECK_RATE
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), jnp.float32(factor)

    assert steps.differences(params, stepped(1.0), stepped(1.0)) == (0.0, 0.0)
    loss, apart = steps.differences(params, stepped(1.001), stepped(1.0))
    assert loss == pytest.approx(1e-3, rel=1e-2) and apart == pytest.approx(1e-3, rel=1e-2)


def test_tracing(load_benchmark, capsys):
    """The phases make up the whole."""
    arguments = ["--tiny", "--layers", "1", "--repeats", "2", "--keep-caches"]
    (result,) = load_benchmark("tracing").main(arguments)
    assert {"trace+import", "autodiff", "bind", "rest"} <= result.phases.keys()
    assert min(result.equations.values()) > 100
    assert result.trace.low <= result.trace.median <= result.trace.high
    out = capsys.readouterr().out
    assert out.count("gpt 1 layers") == 2 and "caches kept" in out


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
    head, first = capsys.readouterr().out.splitlines()[2:4]
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
    head, first = capsys.readouterr().out.splitlines()[2:4]
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


def test_dispatch(load_benchmark, capsys):
    """A row for each case."""
    results = load_benchmark("dispatch").main(["--tiny", "--repeats", "2", "--calls", "2"])
    cases = ["3 to 3", "3 to 3, donated", "3 to 1", "1 to 1"]
    assert [result.case for result in results] == cases
    assert all(case in capsys.readouterr().out for case in cases[:1])
    assert all(len(result.seconds["backpass"]) == 2 for result in results)


def test_vjp(load_benchmark, capsys):
    """A row for each op, the slowest first, and the median of all."""
    results = load_benchmark("vjp").main(["--tiny", "--repeats", "2", "--calls", "1"])
    assert sorted(result.op for result in results) == ["mul", "sin"]
    assert results[0].whole.median >= results[1].whole.median > 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "median"


def test_ratios_are_round_by_round(load_benchmark):
    """What slows a whole round changes nothing."""
    ratio = load_benchmark("measure").ratio([1.0, 10.0, 3.0], [2.0, 20.0, 6.0])
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 0.5, 0.5)


def test_arms_take_turns(load_benchmark):
    """The first to run changes, and `before` comes before each."""
    order = []
    arms = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = load_benchmark("measure").interleave(arms, 2, 2, lambda: order.append("|"))
    assert "".join(order) == "|aa|bb|bb|aa"
    assert [len(sample.wall) for sample in samples.values()] == [2, 2]


def test_the_allocator_is_fixed_by_starting_again(load_benchmark, monkeypatch):
    """Once: not when it is set already, nor when the default was asked for."""
    measure = load_benchmark("measure")
    started = []
    monkeypatch.setattr(measure.os, "execve", lambda *call: started.append(call))
    for name in measure.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    measure.fix_allocator(keep_default=True)
    assert not started
    measure.fix_allocator(keep_default=False)
    assert measure.ALLOCATOR.items() <= started[0][2].items()
    for name, text in measure.ALLOCATOR.items():
        monkeypatch.setenv(name, text)
    measure.fix_allocator(keep_default=False)
    assert len(started) == 1


def test_memory(load_benchmark, tmp_path, capsys):
    """Every peak is within its budget, and rivals that fit are named."""
    path = tmp_path / "memory.json"
    arguments = ["--tiny", "--budgets", "3", "--repeats", "2", "--json", str(path)]
    rows = load_benchmark("frontier").main(arguments)
    assert len(rows) == 3 and all(row.peak <= row.budget for row in rows)
    assert rows[0].policy != "none fits" and rows[0].time > 0
    told = " ".join(capsys.readouterr().out.split())
    assert "peak within the budget 3" in told
    assert [row["model"] for row in json.loads(path.read_text())["results"]] == ["mlp"] * 3


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


def test_contrast(load_benchmark, capsys):
    """All arms train alike; each is a row."""
    rows = load_benchmark("tiny").main(["--tiny"])
    assert {"jax ops", "jax.jit", "dynamic", "compiled"} <= {row.arm for row in rows}
    told = capsys.readouterr()
    assert told.err.count("ten losses within") == len(rows)
    assert "dynamic" in told.out


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


def test_meshes(load_benchmark, quick, capsys):
    """The peak of one device is within its budget, and losses are those without one."""
    arguments = ["--tiny", "--strategies", "data", "--budgets", "1"]
    (result,) = load_benchmark("meshes").main(arguments)
    assert result.peak <= result.budget == result.plain and result.error < 1e-5
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "1"
