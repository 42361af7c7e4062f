"""Losses over a vocabulary, computed some rows at a time: every spelling, no look-alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

import backpass as bp
from backpass.ir import verify
from backpass.passes import DEFAULT, Autodiff, Canonicalise, Cse, Dce, Fuse, Fusion, Fusions, Sink
from backpass.passes.autodiff.forward import Forward
from backpass.passes.autodiff.reverse import Reverse
from backpass.passes.fuse import chunk
from fuzz.interpret import run_graph
from passes.losses import MATCH, MISS, picked
from passes.texts import compiled, ops

B, T, D, V = 3, 7, 4, 24
FUSE = Fuse(chunk=5, least=1)
PASSES = tuple(FUSE if each.name == "fuse" else each for each in DEFAULT)


def arguments(dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 5)
    x, w, b = (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, [(B, T, D), (D, V), (V,)], strict=False)
    )
    labels = jax.random.randint(keys[3], (B, T), 0, V - 2)
    return x, w, b, labels, jax.random.uniform(keys[4], (B, T), dtype)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def lowered(loss, *args, passes=PASSES):
    step = bp.compile(bp.value_and_grad(loss, argnums=(0, 1, 2)), passes=passes, debug=True)
    return step, step.lower(*args)


def report(stages):
    return next(stage.report() for stage in stages if stage.name == "fuse")


def close(got, want, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MATCH)
def test_spelling_is_computed_by_rows(name):
    loss, args = MATCH[name], arguments()
    step, low = lowered(loss, *args)
    assert any(each.matched for each in report(low.stages)), list(map(str, report(low.stages)))
    tolerance = 1e-5 if "float32" in name else 1e-10
    close(step(*args), jax.value_and_grad(loss, argnums=(0, 1, 2))(*args), tolerance)


@pytest.mark.parametrize("name", MISS)
def test_look_alike_is_left_alone(name):
    loss, args = MISS[name], arguments()
    step, low = lowered(loss, *args)
    found = report(low.stages)
    assert not any(each.matched for each in found)
    assert all("test" in each.source or "losses.py" in each.source for each in found)
    close(step(*args), jax.value_and_grad(loss, argnums=(0, 1, 2))(*args))


def test_second_derivative_goes_through_the_chunks():
    x, *rest = arguments()
    v = jnp.cos(x)

    def along(grad, loss):
        return lambda x: jnp.vdot(grad(lambda x: loss(x, *rest))(x), v)

    for name in ("z_loss", "masked", "log_of_softmax"):
        ours = bp.compile(bp.grad(along(bp.grad, MATCH[name])), passes=PASSES, debug=True)
        assert any(each.matched for each in report(ours.lower(x).stages))
        close(ours(x), jax.grad(along(jax.grad, MATCH[name]))(x))


def rows_and_sums(x, w, b, labels, mask):
    """Numbers of rows, and sums of all rows, that can't be one number."""
    logits = x @ w + b
    z = nn.logsumexp(logits, -1)
    loss = z - picked(logits, labels)
    return loss, jnp.stack([loss.sum() * 2, jnp.square(z).sum()])


def forward_graph(f, *args):
    """The chunked form of a function that nobody differentiates yet."""
    passes = (Canonicalise(), Sink(), Cse(), FUSE)
    stages = bp.compile(f, passes=passes, debug=True).lower(*args).stages
    assert [node.op.name for node in stages[-1].graph.walk()].count("chunked") == 1
    return stages[-1].graph


def test_rows_that_are_differentiated_one_by_one():
    args = arguments()
    graph = forward_graph(rows_and_sums, *args)
    active = [True, True, True, False, False]
    split = Reverse().split(graph, active)
    found = run_graph(split.forward, *args)
    outs, stored = found[:2], found[2:]
    cts = [jnp.sin(o + 1) for o in outs]
    where = {"input": args, "stored": stored, "once": ()}
    back = run_graph(split.backward, *(where[k][i] for k, i in split.residuals), *cts)
    want, pull = jax.vjp(rows_and_sums, *args)
    close(outs, want)
    close(back, pull(tuple(cts))[:3])


def test_forward_mode_of_the_chunks():
    args = arguments()
    graph = forward_graph(rows_and_sums, *args)
    tangents = [jnp.cos(x) for x in args[:3]]
    joint = Forward().region(graph, [True, True, True, False, False])
    assert any(node.op.name == "chunked" for node in joint.nodes)
    got = run_graph(joint, *args, *tangents)
    zeros = [np.zeros((B, T), jax.dtypes.float0), jnp.zeros((B, T))]
    want = jax.jvp(rows_and_sums, args, (*tangents, *zeros))
    close(got, jax.tree.leaves(want))


def test_forward_mode_of_chunks_that_add_up():
    """The loss that is differentiated, with a sum over all rows beside numbers of each."""

    def loss(x, w, b):
        rows = nn.logsumexp(x @ w + b, -1)
        return rows.sum() / rows.size, rows

    args = arguments()[:3]
    step = bp.compile(bp.value_and_grad(loss, (0, 1, 2), has_aux=True), passes=PASSES, debug=True)
    fused = next(stage.graph for stage in step.lower(*args).stages if stage.name == "fuse")
    (region,) = (g for node in fused.nodes if node.op.name == "gradients" for g in node.regions)
    (chunked,) = (node for node in region.walk() if node.op.name == "chunked")
    assert 0 < chunked.attrs["num_sums"] < len(chunked.outputs)
    tangents = [jnp.cos(x) for x in args]
    got = run_graph(Forward().region(region, [True] * 3), *args, *tangents)
    close(got, jax.tree.leaves(jax.jvp(loss, args, tuple(tangents))))


def test_what_is_read_besides_is_still_there():
    """Accuracy, losses of rows, and a sum that is a part of the loss are returned as well."""

    def loss(x, w, labels):
        logits = x @ w
        rows = nn.logsumexp(logits, -1) - picked(logits, labels)
        total = rows.sum()
        return total / labels.size, (rows, total, (logits.argmax(-1) == labels).mean())

    x, w, _, labels, _ = arguments()

    def step(grad):
        return grad(loss, argnums=(0, 1), has_aux=True)

    ours = bp.compile(step(bp.value_and_grad), passes=PASSES, debug=True)
    assert any(each.matched for each in report(ours.lower(x, w, labels).stages))
    close(ours(x, w, labels), step(jax.value_and_grad)(x, w, labels))


def test_logits_that_are_returned_are_computed_once_and_whole():
    def loss(x, w, labels):
        logits = x @ w
        return -picked(nn.log_softmax(logits), labels).mean(), logits

    x, w, _, labels, _ = arguments()
    step = bp.compile(bp.grad(loss, has_aux=True), passes=PASSES)
    (found,) = report(step.lower(x, w, labels).stages)
    assert found.reason == f"f64[{B},{T},{V}] as a whole is read by the caller"


def test_an_effect_between_rows_and_loss_keeps_its_place():
    def loss(x, w, labels, mask):
        rows = -picked(nn.log_softmax(x @ w), labels)
        jax.debug.print("{}", rows[0, 0])
        return (rows * mask).sum() / mask.sum()

    x, w, _, labels, mask = arguments()
    step = bp.compile(bp.value_and_grad(loss), passes=PASSES, debug=True)
    close(step(x, w, labels, mask), jax.value_and_grad(loss)(x, w, labels, mask))


def alone(fun, *args):
    """What the pass makes of gradients, which stay the same in NumPy; and its notes."""
    given = Cse()(Sink()(Canonicalise()(compiled(fun, *args))))
    found = FUSE(given)
    verify(found)
    ours, theirs = (run_graph(Dce()(Autodiff()(g)), *args) for g in (found, given))
    close(ours, theirs)
    return found, FUSE.report(given)


def test_what_reads_rows_before_all_weights_are_there_comes_after():
    def loss(w, x, labels, mask):
        rows = -picked(nn.log_softmax(x @ w), labels)
        aux = jnp.sin(rows)
        return (rows * jnp.cos(mask)).sum(), aux

    x, w, _, labels, mask = arguments()
    found, (note,) = alone(bp.grad(loss, has_aux=True), w, x, labels, mask)
    assert note.matched and "chunked" in ops(found)


def test_an_effect_on_rows_before_all_weights_are_there_is_told():
    def loss(w, x, labels, mask):
        rows = -picked(nn.log_softmax(x @ w), labels)
        jax.debug.callback(lambda row: None, rows[0, 0])
        return (rows * jnp.cos(mask)).sum()

    x, w, _, labels, mask = arguments()
    given = Cse()(Sink()(Canonicalise()(compiled(bp.grad(loss), w, x, labels, mask))))
    assert FUSE(given) is given
    (note,) = FUSE.report(given)
    assert note.reason.startswith("debug_callback at ")
    assert note.reason.endswith(" reads its rows in between and has an effect")


def test_the_widest_product_comes_first():
    """What it needs may not be taken by a smaller one."""

    def loss(x, small, wide):
        return nn.logsumexp(x @ small, -1).sum() + nn.logsumexp(x @ wide, -1).sum()

    x, w, *_ = arguments()
    _, notes = alone(bp.grad(loss), x, w, jnp.tile(w, 2))
    assert [note.nbytes for note in notes] == [8 * B * T * 2 * V, 8 * B * T * V]


@pytest.mark.parametrize("least, fits", [(0, True), (8 * 9 * V, True), (8 * 9 * V + 1, False)])
def test_a_chunk_is_half_of_a_product_at_most(least, fits):
    """Nine of 18 rows here; of what is empty there is none."""

    def loss(x, w, empty):
        return nn.logsumexp(x @ w, -1).sum() + (x @ empty).sum()

    x, w, *_ = arguments()
    given = compiled(bp.grad(loss), x[:, :6], w, w[:, :0])
    assert ("chunked" in ops(Fuse(chunk=1, least=least)(Canonicalise()(given)))) == fits


def test_a_loss_in_a_scan_over_micro_batches():
    x, w, b, labels, mask = arguments()

    def step(grad):
        def loss(w):
            def one(total, batch):
                return total + MATCH["masked"](batch[0][None], w, b, *(v[None] for v in batch[1:]))[
                    ()
                ], None

            return lax.scan(one, jnp.zeros(()), (x, labels, mask))[0]

        return lambda w: grad(loss)(w)

    fuse = Fuse(chunk=3, least=1)
    passes = tuple(fuse if each.name == "fuse" else each for each in DEFAULT)
    ours = bp.compile(step(bp.value_and_grad), passes=passes, debug=True)
    assert any(each.matched for each in ours.lower(w).fusions)
    close(ours(w), step(jax.value_and_grad)(w))


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 10])
def test_any_size_of_chunk(chunk):
    args = arguments()
    loss = MATCH["z_loss"]
    passes = tuple(Fuse(chunk, 1) if each.name == "fuse" else each for each in DEFAULT)
    step, low = lowered(loss, *args, passes=passes)
    scans = [n.attrs["length"] for n in low.graph.walk() if n.op.name == "scan"]
    assert scans
    assert B * T // scans[0] <= chunk * 5 // 4 or chunk == 1
    close(step(*args), jax.value_and_grad(loss, argnums=(0, 1, 2))(*args))


def test_small_products_are_left_alone():
    args = arguments()
    low = bp.compile(bp.grad(MATCH["flat"])).lower(*args)
    assert not any(node.op.name == "chunked" for s in low.stages for node in s.graph.walk())


def test_the_logits_are_never_there():
    args = arguments()
    step, low = lowered(MATCH["optax_integer_labels"], *args)
    whole = B * T * V
    assert all(v.type.size < whole for node in low.graph.walk() for v in node.outputs)


def test_each_match_is_compared_on_random_numbers(monkeypatch):
    args = arguments()
    fuse = Fuse(chunk=5, least=1, verify=True)
    passes = tuple(fuse if each.name == "fuse" else each for each in DEFAULT)
    step, low = lowered(MATCH["masked"], *args, passes=passes)
    assert any(each.matched for each in low.fusions)

    def wrong(b, found, chunk):
        total, *rest = emitted(b, found, chunk)
        return [b.mul(total, 1.001), *rest]

    emitted = chunk._emit
    monkeypatch.setattr(chunk, "_emit", wrong)
    with pytest.raises(bp.FusionError, match="losses.py.* apart by 1.0e-03 of the largest"):
        lowered(MATCH["masked"], *args, passes=passes)


def test_the_option_of_compile():
    def loss(w, x):
        return -jnp.log(nn.softmax(x @ w)[:, 0]).mean()

    step = bp.compile(bp.grad(loss), debug="verify-fusions")
    w, x = (jax.random.normal(jax.random.key(0), shape) for shape in ((8, 8192), (1024, 8)))
    (found,) = step.lower(w.astype(jnp.float32), x.astype(jnp.float32)).fusions
    assert found.matched
    assert str(found).endswith("32.0 MiB never there as a whole")
    with pytest.raises(bp.BackpassError, match="'verify-fusions'"):
        bp.compile(loss, debug="verify")


def test_fusions_print_as_lines():
    """Equal ones as one, near misses after what was done."""
    made, missed = (Fusion("rows in chunks", "m.py:3", "", 2**20, why) for why in ("", "too few"))
    text = str(Fusions([missed, made, missed]))
    assert text.splitlines() == [
        "rows in chunks at m.py:3: 1.0 MiB never there as a whole",
        "2 x not: rows in chunks at m.py:3: too few",
    ]
    assert str(Fusions()) == ""
