"""What a run is written as, and how two are compared."""

import json
from dataclasses import replace

import jsonschema
import pytest
from matplotlib.figure import Figure

from backpass.bench.compare import compare
from backpass.bench.measure import Ratio
from backpass.bench.plot import frontier, plot
from backpass.bench.report import Report, means, read
from backpass.bench.rows import Row
from backpass.cli.main import main
from backpass.ir.errors import ArgumentError

NUMBER, TEXT = {"type": "number", "exclusiveMinimum": 0}, {"type": "string"}
RATIO = {
    "type": "object",
    "properties": dict.fromkeys(("low", "median", "high"), NUMBER),
    "required": ["low", "median", "high"],
    "additionalProperties": False,
}
ROW = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("suite", "case", "peer"), TEXT),
        "ratios": {"type": "object", "additionalProperties": RATIO},
        "figures": {"type": "object"},
        "error": {"type": ["string", "null"]},
    },
    "required": ["suite", "case", "peer", "ratios", "figures", "error"],
    "additionalProperties": False,
}
STAMP = ("backpass", "jax", "jaxlib", "numpy", "python", "cpu", "cores", "device", "allocator")
SCHEMA = {
    "type": "object",
    "properties": {
        "schema": {"const": "backpass.bench 1"},
        "environment": {"type": "object", "required": [*STAMP, "load"]},
        "options": {"type": "object", "required": ["size", "peers", "seed", "repeats", "passes"]},
        "rows": {"type": "array", "items": ROW, "minItems": 1},
        "means": {"type": "array", "minItems": 1},
    },
    "required": ["schema", "environment", "options", "rows", "means"],
    "additionalProperties": False,
}


def row(case="mlp", time=0.5, spread=0.05, temp=0.8, peer="jax", suite="models"):
    ratios = {"time": Ratio(time, time - spread, time + spread), "temp": Ratio(temp, temp, temp)}
    return Row(suite, case, peer, ratios, {"ms": 3.0})


def report(*rows):
    return Report({"cpu": "one", "device": "1 x cpu", "cores": 2}, {}, rows)


def test_markdown():
    """Ratios come first, geometric means last, and every line has as many cells."""
    text = str(
        report(row(time=0.5), row("gpt", time=2.0), Row("models", "vae", "jax", error="E: x"))
    )
    stamp, title, table, failed = text.split("\n\n")
    assert stamp.startswith("cpu one") and title.startswith("## models: ")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0][:4] == ["case", "peer", "time", "cpu"] and set("".join(lines[1])) == {"-"}
    assert lines[2][:5] == ["mlp", "jax", "0.50 [0.45, 0.55]", "-", "0.80"]
    assert lines[4][:3] == ["vae", "jax", "failed"]
    assert lines[5][:5] == ["geometric mean", "jax", "1.00", "", "0.80"]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert failed == "- models / vae / jax: E: x"


def test_geometric_mean_is_of_what_all_rows_have():
    lacking = replace(row(time=4.0), ratios={"time": Ratio(4.0, 4.0, 4.0)})
    assert means([row(time=1.0), lacking], "jax") == {"time": pytest.approx(2.0)}
    assert means([row()], "torch") == {}


def test_json_comes_back(tmp_path):
    path, made = tmp_path / "run.json", report(row(), Row("models", "vae", "jax", error="E: x"))
    made.save(path)
    assert read(path) == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other 1"}'])
def test_a_file_that_is_none(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match="expected a file of backpass bench --json"):
        read(path)


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        (row(time=0.5), False),
        (row(time=0.59), False),  # the middle halves overlap
        (row(time=0.7), True),
        (row(time=0.3), False),
        (row(temp=0.81), False),
        (row(temp=0.9), True),
        (Row("models", "mlp", "jax", error="E: x"), True),
    ],
)
def test_a_regression_is_beyond_the_spread(now, worse):
    found = compare(report(row()), report(now))
    assert found.worse == worse
    assert ("worse" in str(found) or "failed since" in str(found)) == worse


def test_a_small_step_is_no_regression():
    """However narrow the quartiles are."""
    old, new = row(time=0.5, spread=0.001), row(time=0.51, spread=0.001)
    assert not compare(report(old), report(new)).worse


def test_what_cannot_be_compared_is_told():
    new = replace(report(row("vae")), environment={"cpu": "other", "device": "1 x cpu", "cores": 2})
    found = compare(report(row("mlp")), new)
    assert found.missing == (("models", "mlp", "jax"),) and not found.worse
    assert "cpu one, now other" in str(found) and "models / mlp / jax" in str(found)


def test_plot(tmp_path):
    budgets = {"peak_bytes": 5, "plain_bytes": 10, "time": 1.2}
    lean = replace(row("mlp budget 1 of 2", suite="memory"), figures=budgets)
    path = tmp_path / "ratios.png"
    plot(report(row(), row(peer="torch"), lean), path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ArgumentError, match="no row has a ratio"):
        plot(report(Row("models", "mlp", "jax", error="E: x")), path)
    with pytest.raises(ArgumentError, match="can't be written"):
        plot(report(row()), tmp_path / "none" / "ratios.png")


def test_the_frontier_has_rivals_beside_it():
    """A use of `jax.checkpoint` that is the best within two budgets is one point, at its median."""

    def budget(rival, time, peak, own=0.5):
        ratios = {"time": Ratio(time, time, time), "peak": Ratio(peak, peak, peak)}
        figures = {"peak_bytes": 6, "plain_bytes": 10, "time": own, "rival": rival}
        return Row("memory", "mlp budget 1 of 4", "jax-checkpoint", ratios, figures)

    rows = [budget("dots", 0.5, 1.5), budget("dots", 0.25, 1.5), budget("plain", 1, 1)]
    rows.append(replace(rows[0], ratios={}, figures={**rows[0].figures, "rival": "none fits"}))
    axes = Figure().subplots()
    frontier(axes, "memory", rows)
    lines = {line.get_label(): line for line in axes.lines}
    assert {"mlp", "jax.checkpoint", "plain jax"} <= set(lines)
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_ls() == ":"]
    assert pytest.approx(points[0][0]) == [0.4, 1.5]


def test_the_command(tmp_path, capsys):
    """Tables on stdout, progress on stderr, files where asked; 1 for a planted regression."""
    paths = {name: tmp_path / f"run.{name}" for name in ("json", "markdown", "plot")}
    command = ["bench", "dispatch", "--size", "tiny", "--models", "1 to 1", "--repeats", "3"]
    files = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    files[files.index(str(paths["plot"]))] = str(tmp_path / "run.png")
    assert main([*command, *files]) == 0
    told = capsys.readouterr()
    assert "| 1 to 1 " in told.out and "dispatch: 1 to 1" in told.err
    assert paths["markdown"].read_text() == told.out
    assert (tmp_path / "run.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads(paths["json"].read_text())
    jsonschema.validate(written, SCHEMA)
    for each in written["rows"]:
        each["ratios"]["time"] = {"low": 1e-9, "median": 1e-9, "high": 1e-9}
    paths["json"].write_text(json.dumps(written))
    assert main([*command, "--compare", str(paths["json"])]) == 1
    assert "worse" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["speed"],
        ["--against", "numpy"],
        ["--repeats", "0"],
        ["--models", "alexnet"],
        ["--compare", "none.json"],
    ],
)
def test_bad_use_is_two(arguments, capsys):
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith("backpass: ")
