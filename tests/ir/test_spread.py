"""How arrays lie on a mesh: rules beside where JAX's own types say that results lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import backpass as bp
from backpass.ir.cost import Work, node_cost
from backpass.ir.links import traffic
from backpass.ir.spec import fitted, spec_of
from backpass.ir.spread import spread
from backpass.ir.types import ArrayType


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("d", "m"), axis_types=(kind,) * 2)


X = ((8, 16, 32), P("d", None, "m"))
W = ((32, 64), P("m"))
ROW = ((8, 16), P(None, "d"))

CASES = {
    "elementwise": (lambda x: jnp.sin(x) * 2 + x, X),
    "transpose": (lambda x: x.transpose(2, 0, 1), X),
    "sum": (lambda x: x.sum(1), X),
    "keepdims": (lambda x: x.max(1, keepdims=True), X),
    "split": (lambda x: x.reshape(8, 16, 4, 8), X),
    "merge": (lambda x: x.reshape(2, 4, 16, 32), X),
    "broadcast": (lambda x: jnp.broadcast_to(x, (3, 8, 16)), ROW),
    "expand": (lambda x: x[:, None, :, None], ROW),
    "outer": (lambda x, y: x[:, :, None] * y[None, None], ROW, ((4,), P("m"))),
    "product": (lambda x, w: x @ w, ((8, 32), P("d")), ((32, 64), P(None, "m"))),
    "batched": (lambda x, y: jnp.einsum("btd,bsd->bts", x, y), ((8, 4, 6), P("d")), ((8, 5, 6), P("d"))),
    "cumsum": (lambda x: jnp.cumsum(x, 1), X),
    "concatenate": (lambda x: jnp.concatenate([x, x], 1), X),
    "slice": (lambda x: x[:, 3:9], X),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, c * y), x[0] * 0, x), ((6, 8, 4), P(None, "d"))),
    "call": (lambda x: jax.nn.relu(x), X),
    "sum over what is divided": (lambda x: x.sum((0, 1)), X),
    "largest": (lambda x: x.argmax(1), X),
    "squeeze": (lambda x: x[:, :, 0], ((8, 16, 1), P("d", "m"))),
    "pad": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))), X),
    "flipped": (lambda x: x[:, ::-1], X),
    "gathered": (lambda x: jnp.broadcast_to(x, (8, 16, 32)), ((1, 16, 32), P(None, "d", "m"))),
    "a dimension of one": (lambda x, y: x + y, X, ((8, 1, 32), P("d", None, "m"))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_beside_types_of_jax(name):
    """On explicit axes JAX's types tell where each result lies."""
    function, *arguments = CASES[name]
    on, typed = mesh(), mesh(AxisType.Explicit)
    structs = [
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(on, spec))
        for shape, spec in arguments
    ]
    found = bp.compile(function).trace(*structs).graph.outputs
    with jax.set_mesh(typed):
        told = [
            jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(typed, spec))
            for shape, spec in arguments
        ]
        wanted = jax.tree.leaves(jax.eval_shape(function, *told))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted):
        assert ours.type.spec == spec_of(theirs.sharding, theirs.ndim), name


def lowered(function, *arguments):
    structs = [
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh(), spec))
        for shape, spec in arguments
    ]
    return bp.compile(function).lower(*structs).stages[0].graph


def test_text_of_divided_dimensions():
    graph = lowered(lambda x: jnp.sin(x), X)
    assert "f32[8/d:2,16,32/m:4] args[0]" in str(graph)
    again = bp.ir.parse(str(graph))
    assert again == graph and str(again) == str(graph)
    assert again.inputs[0].type.nbytes == 4 * 8 * 16 * 32 // 8
    with pytest.raises(bp.ParseError):
        bp.ir.parse(str(graph).replace("/d:2", "/d:0"))


def test_bytes_are_those_of_one_device():
    spec = ((("d", 2), ("m", 4)), ())
    kind = ArrayType((20, 3), np.dtype(np.float32), spec=spec)
    assert kind.local == (3, 3) and kind.nbytes == 36 and kind.parts == 8
    assert kind == ArrayType((20, 3), np.dtype(np.float32))


def test_arithmetic_is_that_of_one_device():
    text = (
        "%1: f32[8/d:2,16] = neg(%0)\n%2: f32[8,16] = neg(%1)\noptimization_barrier(%0)\nreturn %2"
    )
    graph = bp.ir.parse(f"backpass.ir 1\ngraph f(%0: f32[8/d:2,16]) {{\n{text}\n}}\n")
    half, whole = 4 * 16 * 4, 8 * 16 * 4
    assert [node_cost(node) for node in graph.nodes] == [
        Work(1, 4 * 16, half, half),
        Work(1, 4 * 16, half, whole),
        Work(1),
    ]


def test_results_of_a_region_lie_as_it_says():
    text = "%1: f32[8,16] = jit(%0)\ngraph g(%0: f32[8/d:2,16]) {\n%1: f32[8,16] = neg(%0)\nreturn %1\n}\n"
    graph = bp.ir.parse(f"backpass.ir 1\ngraph f(%0: f32[8/d:2,16]) {{\n{text}return %1\n}}\n")
    (node,), b = graph.nodes, bp.ir.Builder(bp.ir.OPS)
    (found,) = b.emit(node.op, node.inputs, node.attrs, node.regions)
    assert str(found.type) == str(b.clone(node, node.inputs).output.type) == "f32[8,16]"
    assert str(b.emit("neg", node.inputs)[0].type) == "f32[8/d:2,16]"


def test_an_axis_divides_one_dimension_and_evenly():
    d, m = (("d", 2),), (("m", 4),)
    assert fitted([d, d], (4, 4)) == (d, ())
    assert fitted([d, m], (4, 6)) == (d, ())
    assert fitted([d, m], (3, 6)) == ()
    assert fitted([d, d], (0, 4)) == ((), d)


def test_a_graph_without_a_mesh_stays():
    graph = bp.compile(lambda x: jnp.sin(x)).trace(jnp.ones(3)).graph
    assert spread(graph) is graph
    whole = spread(lowered(lambda x: jnp.sin(x), X))
    assert spread(whole) is whole


def test_products_of_divided_heads_are_not_merged():
    """[D,3,H,K] with H divided: as [D,3HK] it would be gathered."""
    w = ((32, 3, 4, 8), P(None, None, "m"))
    structs = [
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh(), spec))
        for shape, spec in (((8, 16, 32), P("d")), w)
    ]
    graph = bp.compile(lambda x, w: jnp.einsum("btd,dshk->btshk", x, w)).lower(*structs).graph
    (dot,) = (node for node in graph.nodes if node.op.name == "dot_general")
    assert dot.inputs[1].shape == (32, 3, 4, 8) and dot.inputs[0].shape == (128, 32)


TRAFFIC = {
    "partial sums": (lambda x, w: x @ w, ((8, 32), P("d", "m")), W, 4 * 8 * 64 // 2, 0),
    "gathered parameter": (lambda x, w: x @ w, ((8, 32), P("m")), W, 0, 4 * 32 * 64),
    "nothing": (lambda x, w: x @ w, ((8, 32), P("d")), ((32, 64), P(None, "m")), 0, 0),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic_of_products(name):
    function, *arguments, reduced, moved = TRAFFIC[name]
    (node,) = lowered(function, *arguments).nodes
    found = traffic(node)
    assert (found.reduced, found.moved) == (reduced, moved)


PRODUCT = "dot_general(%0, %1) {dimension_numbers=(((1,),(0,)),((),()))}"


@pytest.mark.parametrize("types, line, reduced, moved", [
    (["8/d:2,16"], "%2: f32[16] = reduce_sum(%0) {axes=(0,)}", 4 * 16, 0),
    (["8/d:2,16"], "%2: f32[8/d:2] = reduce_sum(%0) {axes=(1,)}", 0, 0),
    (["8/d:2,16/m:4"], "%2: f32[8/d:2] = reduce_max(%0) {axes=(1,)}", 4 * 4, 0),
    (["8/d:2,16"], "%2: f32[8/d:2,16] = neg(%0)", 0, 0),
    (["8,16"], "%2: f32[8] = reduce_sum(%0) {axes=(1,)}", 0, 0),
    (["8/d:2,32", "32,64/d:2"], f"%2: f32[8/d:2,64] = {PRODUCT}", 0, 4 * 32 * 64),
    (["8/d:2,32/m:4", "32/m:4,64"], f"%2: f32[8/d:2,64] = {PRODUCT}", 4 * 4 * 64, 0),
    (["8/d:2,32", "32,64"], f"%2: f32[8/d:2,64] = {PRODUCT}", 0, 0),
    (["8,32/m:4", "32/m:4,64"], f"%2: f32[8,64/m:4] = {PRODUCT}", 0, 4 * 8 * 32 + 4 * 32 * 64),
    (["8,16"], "%2: f32[8,16] = psum(%0) {axes=(), axis_index_groups=None}", 0, 0),
    (["8,16"], '%2: f32[8,16] = psum(%0) {axes=("i",), axis_index_groups=None}', 4 * 8 * 16, 0),
])  # fmt: skip
def test_traffic_of_one_node(types, line, reduced, moved):
    """Sums over what is divided are reduced, operands that lie otherwise are gathered."""
    inputs = ", ".join(f"%{i}: f32[{dims}]" for i, dims in enumerate(types))
    (node,) = bp.ir.parse(f"backpass.ir 1\ngraph f({inputs}) {{\n{line}\nreturn\n}}\n").nodes
    found = traffic(node)
    assert (found.reduced, found.moved) == (reduced, moved)
    assert found.bytes == reduced + moved and found.on_link == 2 * reduced + moved


def test_collectives_of_a_map_have_a_price():
    def body(x):
        y = lax.psum(x, "m")
        z = lax.ppermute(y, "d", [(0, 1), (1, 0)])
        return lax.all_gather(z, "d", axis=0, tiled=True).sum()

    graph = (
        bp.compile(
            jax.shard_map(body, mesh=mesh(), in_specs=P("d", "m"), out_specs=P(), check_vma=False)
        )
        .trace(jnp.ones((8, 16)))
        .graph
    )
    part = 4 * 4 * 4
    cost = bp.ir.cost(graph)
    assert cost.by_op["psum"].bytes_linked == part
    assert cost.by_op["ppermute"].bytes_linked == part
    assert cost.by_op["all_gather"].bytes_linked == 2 * part
    assert cost.bytes_linked == 4 * part and "between devices" in str(cost)
    slow, fast = (bp.DeviceSpec(1 << 30, 1e12, 1e12, link_bytes_per_s=x) for x in (1e6, 1e12))
    (node,) = graph.nodes
    assert slow.seconds(node) - fast.seconds(node) == pytest.approx(5 * part / 1e6, rel=1e-3)


def test_whole_slices_of_a_gather_lie_as_they_did():
    """What is picked along a dimension lies in one piece; the dimensions beside it stay divided."""
    on = mesh()
    x = jax.ShapeDtypeStruct((8, 16, 32), np.float32, sharding=NamedSharding(on, P("d", None, "m")))
    rows = np.array([3, 1, 1])

    def picked(x):
        return jnp.take(x, rows, axis=1), x[rows]

    along, across = bp.compile(picked).trace(x).graph.outputs
    assert str(along.type) == "f32[8/d:2,3,32/m:4]"
    assert str(across.type) == "f32[3,16,32/m:4]"


RULES = {
    "cond": (
        lambda x: lax.cond(x[0, 0, 0] > 0, lambda: x, lambda: 2 * x),
        "f32[8/d:2,16,32/m:4]",
    ),
    "cond, told by one branch": (
        lambda x: lax.cond(x[0, 0, 0] > 0, lambda: x, lambda: jnp.ones(x.shape)),
        "f32[8/d:2,16,32/m:4]",
    ),
    "while": (
        lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, x)),
        "i32[]* f32[8/d:2,16,32/m:4]",
    ),
    "while, told by its body": (
        lambda x: lax.while_loop(lambda c: c.sum() < 3, lambda c: c + x, jnp.zeros(x.shape)),
        "f32[8/d:2,16,32/m:4]",
    ),
    "while, told by its test": (
        lambda x: lax.while_loop(lambda c: c + x.sum() < 3, lambda c: c + 1, 0.0),
        "f32[]*",
    ),
    "scan, told by its body": (
        lambda x: lax.scan(lambda c, t: (c + t, c), jnp.zeros((16, 32)), x),
        "f32[16,32/m:4] f32[8,16,32/m:4]",
    ),
    "top_k": (lambda x: lax.top_k(x, 4)[1], "i32[8/d:2,16,4]"),
    "convolution": (
        lambda x: lax.conv_general_dilated(x, jnp.ones((4, 16, 3)), (1,), "SAME"),
        "f32[8/d:2,4,32]",
    ),
    "convolution of channels last": (
        lambda x: lax.conv_general_dilated(
            x, jnp.ones((3, 32, 4)), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        ),
        "f32[8/d:2,16,4]",
    ),
    "convolution by divided filters": (
        lambda x: lax.conv_general_dilated(jnp.ones((2, 16, 40)), x, (1,), "VALID"),
        "f32[2,8/d:2,9]",
    ),
    "a map that makes more": (
        lambda x: jax.shard_map(
            lambda x: x, mesh=mesh(), in_specs=P(), out_specs=P("d"), check_vma=False
        )(x),
        "f32[16/d:2,16,32]",
    ),
    "fft": (lambda x: lax.fft_p.bind(x + 0j, fft_type=lax.FftType.FFT, fft_lengths=(16, 32)), "c64[8,16,32]"),
    "update": (lambda x: lax.dynamic_update_slice(x, x[:, :3], (0, 1, 0)), "f32[8/d:2,16,32/m:4]"),
    "some of it": (lambda x: lax.dynamic_slice(x, (0, 1, 0), (4, 16, 32)), "f32[4,16,32/m:4]"),
    "scatter": (lambda x: x.at[:, 3].add(1.0), "f32[8/d:2,16,32/m:4]"),
    "window": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2), (1, 1, 2), "SAME"),
        "f32[8/d:2,16,16]",
    ),
    "reduced by a function": (
        lambda x: lax.reduce(x, np.float32(0), lambda a, b: 1.0 * a + b, (1,)),
        "f32[8/d:2,32/m:4]",
    ),
    "window by a function": (
        lambda x: lax.reduce_window(
            x, np.float32(0), lambda a, b: 1.0 * a + b, (1, 2, 1), (1, 1, 1), "VALID"
        ),
        "f32[8/d:2,15,32/m:4]",
    ),
    "constrained": (
        lambda x: lax.with_sharding_constraint(x, NamedSharding(mesh(), P("m"))),
        "f32[8/m:4,16,32]",
    ),
    "constrained in part": (
        lambda x: lax.with_sharding_constraint(
            x, NamedSharding(mesh(), P(None, "d", P.UNCONSTRAINED))
        ),
        "f32[8,16/d:2,32/m:4]",
    ),
    "by a rule of the user's": (lambda x: jax.nn.relu(x) + 1, "f32[8/d:2,16,32/m:4]"),
    "derived": (lambda x: bp.grad(lambda x: jnp.sin(x).sum())(x), "f32[8/d:2,16,32/m:4]"),
    "split": (lambda x: lax.split(x, [8, 24], 2)[1], "f32[8/d:2,16,24]"),
    "parts of equal size": (lambda x: lax.split(x, [4, 4], 0), " ".join(["f32[4,16,32/m:4]"] * 2)),
    "sorted": (lambda x: lax.sort(x, dimension=2), "f32[8/d:2,16,32]"),
    "joined along it": (lambda x: lax.concatenate([x, x], 0), "f32[16/d:2,16,32/m:4]"),
    "joined with a whole": (
        lambda x: lax.concatenate([jnp.ones((8, 1, 32)), x], 1),
        "f32[8/d:2,17,32/m:4]",
    ),
    "barrier": (
        lambda x: lax.optimization_barrier((jnp.ones(x.shape), x)),
        "f32[8,16,32] f32[8/d:2,16,32/m:4]",
    ),
    "nothing left": (lambda x: x[:, :0].reshape(0, 7), "f32[0,7]"),
    "another one in the middle": (lambda x: x.transpose(1, 0, 2).reshape(32, 8, 16), "f32[32,8,16]"),
    "two dimensions in two others": (
        lambda x: x[:, 0].T.reshape(16, 16),
        "f32[16,16]",
    ),
    "two that change places of a size": (
        lambda x: jnp.transpose(x, (1, 0, 2)).reshape(16, 8, 1, 32),
        "f32[16,8/d:2,1,32/m:4]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_how_results_lie(name):
    function, wanted = RULES[name]
    on = NamedSharding(mesh(), X[1])
    x = jax.ShapeDtypeStruct(X[0], np.float32, sharding=on)
    found = bp.compile(function).trace(x).graph
    assert " ".join(str(v.type) for v in found.outputs) == wanted
    assert spread(found) is found


@pytest.mark.parametrize("rows, columns", [(64, 32), (32, 64), (64, 64), (8, 256), (256, 8)])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_larger_operand_of_a_product_stays_where_it_is(rows, columns, swapped):
    """Where one axis divides both, as rows of a batch and columns of a weight; as XLA has it."""
    on = mesh()
    x, w = (
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(on, spec))
        for shape, spec in [((rows, 16), P("m")), ((16, columns), P(None, "m"))]
    )

    def product(x, w):
        return lax.dot_general(w, x, (((0,), (1,)), ((), ()))) if swapped else x @ w

    (found,) = bp.compile(product).trace(x, w).graph.outputs
    wanted = jax.jit(product).lower(x, w).compile().output_shardings
    assert found.type.spec == spec_of(wanted, 2) != ()


def test_what_a_written_scan_stacks_lies_as_in_its_body():
    (node,) = lowered(*CASES["scan"]).nodes[-1:]
    again = bp.ir.Builder(bp.ir.OPS).emit(node.op, node.inputs, node.attrs, node.regions)
    assert node.op.name == "scan"
    assert [str(v.type) for v in again] == [str(v.type) for v in node.outputs]
    assert "/d:2" in str(again[-1].type)


def told(function, *arguments):
    """The types of a function's nodes with what readers tell, by the names of their ops."""
    graph = lowered(function, *arguments)
    found = spread(graph, back=True)
    assert spread(found, back=True) is found
    assert [str(v.type) for v in found.inputs] == [str(v.type) for v in graph.inputs]
    return {node.op.name: str(node.outputs[-1].type) for node in found.walk()}


ROWS, COLUMNS = ((8, 16), P("d")), ((32, 16), P(None, "m"))

BACK = {
    "a mask": (lambda x: jnp.where(jnp.broadcast_to(x[0] > 0, x.shape), x, 1 + x), (ROWS,), "broadcast_in_dim", "bool[8/d:2,16]"),
    "turned": (lambda x: x * jnp.exp(jnp.full((16, 8), x[0, 0])).T, (ROWS,), "exp", "f32[16,8/d:2]"),
    "in another shape": (lambda x: x * jnp.exp(jnp.full((8, 2, 8), x[0, 0])).reshape(8, 16), (ROWS,), "exp", "f32[8/d:2,2,8]"),
    "made larger": (lambda x: x * jnp.exp(jnp.full(8, x[0, 0]))[:, None], (ROWS,), "exp", "f32[8/d:2]"),
    "a gradient": (lambda p, x, y: p - x.T @ y, (COLUMNS, ((8, 32), P("d")), ((8, 16), P("d"))), "dot_general", "f32[32,16/m:4]"),
    "gradients in a loop": (
        lambda p, x, y: p - lax.scan(lambda c, t: (c, t[0].T @ t[1]), 0.0, (x, y))[1],
        (((3, 32, 16), P(None, None, "m")), ((3, 8, 32), P(None, "d")), ((3, 8, 16), P(None, "d"))),
        "dot_general",
        "f32[32,16/m:4]",
    ),
    "a sum in a loop": (
        lambda p, x, y: p - lax.scan(lambda c, t: (c + t[0].T @ t[1], None), jnp.zeros((32, 16)), (x, y))[0],
        (COLUMNS, ((3, 8, 32), P(None, "d")), ((3, 8, 16), P(None, "d"))),
        "dot_general",
        "f32[32,16/m:4]",
    ),
    "through a fence": (
        lambda p, x: p - lax.optimization_barrier((jnp.exp(jnp.full((32, 16), x[0, 0])), x))[0],
        (COLUMNS, ROWS),
        "exp",
        "f32[32,16/m:4]",
    ),
    "readers that disagree": (
        lambda p, x: (lambda e: (p - e, x * e[:8]))(jnp.exp(jnp.full((32, 16), x[0, 0]))),
        (COLUMNS, ROWS),
        "exp",
        "f32[32,16]",
    ),
    "a result": (
        lambda p, x: (lambda e: (p - e, e))(jnp.exp(jnp.full((32, 16), x[0, 0]))),
        (COLUMNS, ROWS),
        "exp",
        "f32[32,16]",
    ),
    "a carry that starts otherwise": (
        lambda p, x: p - lax.scan(lambda c, t: (jnp.exp(c).sum() + p * 0, None), jnp.full((32, 16), x[0, 0]), x)[0],
        (COLUMNS, ROWS),
        "exp",
        "f32[32,16/m:4]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BACK)
def test_how_operands_lie_for_their_readers(name):
    function, arguments, op, wanted = BACK[name]
    assert told(function, *arguments)[op] == wanted
