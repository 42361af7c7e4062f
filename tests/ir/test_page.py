"""The HTML page: what its data say, and what a browser makes of it."""

import base64
import hashlib
import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import backpass as bp
from backpass.ir import OPS, ArrayType, Builder, Graph, Node, Origin, Value, parse
from backpass.ir.device import DEVICES
from backpass.ir.liveness import liveness
from backpass.ir.page import Shown, write_page
from backpass.ir.page.again import computed_again
from backpass.ir.page.stages import program_data
from backpass.ir.page.tables import runs
from ir.graphs import graphs, patient

HOSTILE = "</script><img src=x onerror=alert(1)>"


def loss(params, x):
    with jax.named_scope("stem"):
        x = jnp.tanh(x @ params["stem"])

    def layer(x, w):
        with jax.named_scope("layer"):
            return x + jnp.sin(x @ w), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    with jax.named_scope("head"):
        return jnp.mean((x @ params["stem"].T) ** 2)


def step(params, x):
    value, grads = bp.value_and_grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


ARGS = ({"stem": shape(64, 128), "layers": shape(6, 128, 128)}, shape(512, 64))


@pytest.fixture(scope="module")
def lowered():
    return bp.compile(step, memory_budget="3MiB", donate_argnums=0).lower(*ARGS)


@pytest.fixture(scope="module")
def page(lowered, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    lowered.to_html(path)
    return path


def data_of(text):
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])


# What the data say


def test_policy_allows_nothing_but_the_page_itself(page):
    text = page.read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    for name, code in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert len(re.findall("<script", text)) == 2
    assert re.findall(r"""(?:src|href)\s*=|https?://|url\(""", text.replace("script-src", "")) == []


def test_nodes_and_values_stand_once(lowered):
    data = program_data(lowered.stages, DEVICES["cpu"], lowered.donated)
    graphs = [stage.graph for stage in lowered.stages]
    nodes = {node for graph in graphs for node in graph.walk()}
    assert len(data["nodes"]["op"]) == len(nodes)
    assert sum(data["nodes"]["reads"]) == len(data["nodes"]["inputs"])
    final = data["stages"][-1]
    assert sum(final["order"][1::2]) == len(lowered.graph.nodes)
    same = [a is b for a, b in zip(graphs, graphs[1:])]
    assert [stage.get("same", False) for stage in data["stages"]] == [False, *same]
    assert any(same)


def test_timeline_is_liveness(lowered):
    data = program_data(lowered.stages, DEVICES["cpu"], lowered.donated)
    live = liveness(lowered.graph, lowered.donated, fused=True)
    memory = data["stages"][-1]["memory"]
    assert tuple(np.cumsum(memory["bytes"])) == live.bytes
    value, _, first, last, _ = memory["buffers"]
    sizes = [data["types"][data["values"]["type"][v]][1] for v in value]
    at = live.peak_position
    here = sum(s for s, a, b in zip(sizes, first, last) if a <= at <= b)
    assert here == sum(b.nbytes for b in live.peak_buffers)


def test_recomputed_are_those_that_the_plan_names(lowered):
    named = [each.value for each in lowered.plan.decisions if each.action == "recompute"]
    found = computed_again(lowered.graph)
    assert {node.op.name for node in found} == {name.partition(" ")[0] for name in named}
    inside = {n for node in lowered.graph.nodes for r in node.regions for n in r.walk()}
    assert {node.op.name for node in found & inside} == {"dot_general"}
    assert all(node.phase == "backward" for node in found)


def test_nothing_is_recomputed_without_a_plan():
    graph = bp.compile(step, passes="canonicalise,autodiff,cse,dce").lower(*ARGS).graph
    assert computed_again(graph) == set()


def test_each_pass_is_told_by_what_it_changed():
    x = Value(ArrayType((4,), np.dtype("float32")), "x")
    b = Builder(OPS)
    first = b.emit("sin", [x])
    before = b.graph("f", [x], [*b.emit("cos", first), *b.emit("exp", first)])
    b = Builder(OPS)
    outputs = [*b.emit("cos", b.emit("sin", [x])), *b.emit("exp", [x]), *b.emit("tanh", [x])]
    after = b.graph("f", [x], outputs)
    data = program_data([Shown("a", before), Shown("b", after)], DEVICES["cpu"])
    stage, ops = data["stages"][1], data["nodes"]["op"]
    names = [data["texts"][i] for i in ops]
    assert [names[n] for n in stage["added"][::2]] == ["tanh"]
    assert stage["removed"] == []
    (changed, what) = stage["changed"]
    assert names[changed] == "exp" and data["texts"][what]


def test_runs():
    assert runs([3, 4, 5, 9, 1, 2]) == [3, 3, 9, 1, 1, 2]


def hostile_graph():
    b = Builder(OPS)
    x = Value(ArrayType((2,), np.dtype("float32")), HOSTILE)
    (value,) = b.emit("sin", [x])
    (node,) = b.nodes
    bad = Node(node.op, node.inputs, (value,), {"note": HOSTILE}, (), Origin(HOSTILE, HOSTILE))
    return Graph(HOSTILE, (x,), (bad,), (value,))


def test_hostile_text_stays_in_its_place():
    text = write_page(HOSTILE, [Shown(HOSTILE, hostile_graph())])
    assert "<img" not in text
    assert len(re.findall("</script", text)) == 2
    assert HOSTILE in data_of(text)["texts"]
    assert data_of(text)["title"] == HOSTILE


@settings(patient, max_examples=20)
@given(graphs())
def test_any_graph_has_a_page(graph):
    text = write_page(graph.name, [Shown("a", graph)]).encode().decode()
    assert len(re.findall("</script", text)) == 2
    data = data_of(text)
    assert sum(data["stages"][0]["order"][1::2]) == len(graph.nodes)
    assert graph._repr_html_().encode()


def test_notebook_summary_has_no_script(lowered):
    for text in (lowered._repr_html_(), lowered.graph._repr_html_()):
        assert "<svg" in text and "<script" not in text
    assert "<img" not in hostile_graph()._repr_html_()
    assert "0" in Graph("empty", (), (), ())._repr_html_()


def test_notebook_shows_what_is_live_at_each_position():
    text = """
      %1: f32[8] = concatenate(%0, %0) {dimension=0}
      %2: f32[16] = concatenate(%1, %1) {dimension=0}
      %3: f32[] = reduce_sum(%2) {axes=(0)}
      %4: f32[] = sin(%3)
      return %4
    """
    graph = parse(f"backpass.ir 1\ngraph f(%0: f32[4]) {{\n{text}\n}}\n")
    live = liveness(graph, fused=True).bytes
    assert len(set(live)) > 2
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([0-9.]+)"', graph._repr_html_())]
    tallest = max(heights) / max(live)
    assert heights == pytest.approx([tallest * size for size in live], abs=0.1)


def test_notebook_shows_phases_and_the_return_as_the_last():
    text = "%1: f32[4] = sin(%0)\nbackward:\n%2: f32[4] = cos(%1)\nupdate:\n%3: f32[4] = neg(%2)\nreturn %3"
    graph = parse(f"backpass.ir 1\ngraph f(%0: f32[4]) {{\n{text}\n}}\n")
    fills = re.findall(r'<rect[^>]* fill="([^"]+)"', graph._repr_html_())
    assert len(set(fills)) == 3 and fills[3:] == fills[2:3]
    assert (
        len(re.findall("<rect", parse("backpass.ir 1\ngraph f() {\nreturn\n}\n")._repr_html_()))
        == 1
    )


# What a browser makes of it


def row(tab, text, kind=""):
    rows = tab.text(f"#rows .row{kind}")
    return next(i for i, each in enumerate(rows) if text in each)


def open_row(tab, text):
    tab.click("#rows .row .cell:first-child .twist", row(tab, text))


@pytest.fixture
def tab(chromium, page):
    tab = chromium.open(page.as_uri())
    yield tab
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    tab.close()


def test_layers_start_collapsed_and_open(tab):
    assert tab.text("#rows .row.pair") == []
    open_row(tab, "stem")
    open_row(tab, "jnp.tanh(x @ params")
    assert any(each.startswith("tanh") for each in tab.text("#rows .row.pair .cell.forward"))
    open_row(tab, "stem")
    assert tab.text("#rows .row.pair") == []


def test_a_node_tells_its_derivative_and_line(tab):
    open_row(tab, "stem")
    open_row(tab, "jnp.tanh(x @ params")
    tab.click("#rows .row.pair .cell:first-child", row(tab, "tanh", ".pair"))
    (text,) = tab.text("#details")
    assert "test_page.py:" in text and 'x = jnp.tanh(x @ params["stem"])' in text
    assert "f32[512,128]" in text and "ITS DERIVATIVE" in text and "RECOMPUTED AS tanh" in text
    links = tab.text("#details .link")
    tab.click("#details .link", next(i for i, link in enumerate(links) if "square" in link))
    (text,) = tab.text("#details")
    assert text.startswith("square backward") and "DERIVATIVE OF tanh" in text
    assert tab.text("#rows .cell.picked")[0].startswith("square")


def test_bodies_of_scans_stand_side_by_side(tab):
    open_row(tab, "jax.lax.scan(layer")
    tab.click("#rows .row.pair .twist")
    open_row(tab, "› layer")
    open_row(tab, "jnp.sin(x @ w)")
    rows = tab.text("#rows .row.pair")
    assert any(each.startswith("sin ") and "cos" in each for each in rows)
    assert any("recomputed" in each for each in rows)


def test_the_timeline_lists_what_is_live(tab):
    peak = int(tab.run("document.getElementById('timeline').getAttribute('aria-valuenow')"))
    assert "MiB live" in tab.text("#live")[0]
    tab.run("document.getElementById('timeline').focus()")
    tab.press("Home")
    start = tab.text("#live")[0]
    assert "at 0" in start and "args[0]['stem']" in start
    tab.press("ArrowRight", "ArrowRight")
    assert "at 2" in tab.text("#live")[0]
    box = tab.run(
        "(() => { const b = document.getElementById('timeline').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    tab.mouse("mouseMoved", box[0] + box[2] * 0.6, box[1] + box[3] / 2)
    tab.settle()
    moved = int(tab.run("document.getElementById('timeline').getAttribute('aria-valuenow')"))
    assert moved not in (2, peak)
    tab.press("Enter")
    assert tab.run("document.querySelectorAll('#rows .cell.picked').length") == 1
    assert tab.run("app.stage.place[app.picked]") == moved


def test_search_filters(tab):
    tab.press("/")
    tab.type("tanh stem")
    stem, line = tab.text("#rows .row.group .cell:first-child .name")
    assert stem == "stem" and line.startswith("test_page.py:")
    assert any(each.startswith("tanh") for each in tab.text("#rows .row.pair"))
    assert tab.text("#matches")[0] == f"{tab.run('app.tree.found')} nodes"
    tab.run("document.getElementById('search').select()")
    tab.type("f32[6,512,128]")
    assert tab.text("#rows .row.pair") != []
    tab.run("document.getElementById('search').select()")
    tab.type("no such node")
    assert tab.text("#rows") == ["No node matches."]
    tab.press("Escape")
    assert tab.run("document.getElementById('search').value") == ""
    assert tab.run("document.activeElement.id") == "scroll"
    assert len(tab.text("#rows .row.group")) > 2


def test_the_keyboard_walks_the_tree(tab):
    tab.run("document.getElementById('scroll').focus()")
    active = "document.getElementById(document.getElementById('scroll').getAttribute('aria-activedescendant'))"
    assert tab.run(f"{active}.getAttribute('aria-expanded')") == "false"
    tab.press("ArrowRight")
    assert tab.run(f"{active}.getAttribute('aria-expanded')") == "true"
    tab.press("ArrowDown", "Enter", "ArrowDown")
    assert tab.run("app.picked >= 0 && app.stage.lane[app.picked]") == 0
    tab.press("ArrowRight")
    assert tab.run("app.stage.lane[app.picked]") == 1
    tab.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert tab.run(f"{active}.getAttribute('aria-expanded')") == "false"
    tab.press("Escape")
    assert tab.run("app.picked") == -1


def test_the_slider_shows_what_a_pass_changed(tab, lowered):
    names = [stage.name for stage in lowered.stages]
    at = names.index("autodiff")
    tab.click("#stops button", at)
    (told,) = tab.text("#passed")
    assert told.startswith(f"autodiff {len(lowered.stages[at].graph.nodes)} nodes")
    assert re.search(r"\+\d+ added", told) and re.search(r"−\d+ removed", told)
    tab.click("#only")
    tab.press("/")
    tab.type("gradients")
    assert [each for each in tab.text("#rows .cell.gone") if "gradients" in each] != []
    tab.run("document.getElementById('stage').focus()")
    tab.press("ArrowLeft")
    assert tab.text("#passed")[0].startswith(names[at - 1])


def test_hostile_text_is_shown_as_text(chromium, tmp_path):
    path = tmp_path / "hostile.html"
    hostile_graph().to_html(path)
    tab = chromium.open(path.as_uri())
    assert tab.text("#title") == [HOSTILE]
    for _ in range(8):
        if tab.run("document.querySelectorAll('#rows [aria-expanded=false]').length"):
            tab.click("#rows .row[aria-expanded=false] .twist")
    tab.click("#rows .row.pair .cell")
    assert tab.text("#details")[0].count(HOSTILE) >= 3
    assert tab.run("document.images.length") == 0
    assert tab.run("document.scripts.length") == 2
    assert tab.complaints() == []
    assert tab.requests() == [path.as_uri()]


def test_colours_follow_the_system(chromium, page):
    papers = []
    for dark in (False, True):
        tab = chromium.open(page.as_uri(), dark=dark)
        papers.append(tab.run("getComputedStyle(document.body).backgroundColor"))
        tab.close()
    assert papers == ["rgb(255, 255, 255)", "rgb(18, 21, 26)"]
