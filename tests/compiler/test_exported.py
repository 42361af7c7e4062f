"""Exported steps: run without the model's code, with its plan, and refused when damaged."""

import dataclasses
import random
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import backpass as bp
from backpass import dynamic as dyn
from damages import damaged

ADAM = optax.adam(1e-2)
KEYS = jax.random.split(jax.random.key(0), 6)
X = jax.random.normal(jax.random.key(1), (512, 32))
BUDGET = 520 * 1024


def loss_fn(params, x, key):
    hidden = x
    for w in params["layers"]:
        hidden = jnp.tanh(hidden @ w)
    noise = jax.random.key_data(key)[-1] % 8  # cheap to compile
    return jnp.mean((hidden + noise) ** 2)


def step(state, factor, x, scale, *, key):
    params, adam = state
    loss, grads = bp.value_and_grad(lambda p: scale.scale(loss_fn(p, x, key)))(params)
    grads, finite = scale.unscale(grads)
    updates, adam = ADAM.update(grads, adam, params)
    return (optax.apply_updates(params, updates), adam), [loss * factor, None], scale.adjust(finite)


def state():
    params = {"layers": [jax.random.normal(key, (32, 32)) / 6 for key in KEYS]}
    return params, ADAM.init(params)


def compiled(budget):
    made = bp.compile(step, static_argnums=1, donate_argnums=0, memory_budget=budget)
    return made.lower(state(), 2.0, X, bp.LossScale(), key=KEYS[0]).compile()


CHILD = """
import sys
from collections import namedtuple
import jax
import numpy as np
import backpass as bp

folder = sys.argv[1]
given = [jax.numpy.asarray(x) for x in np.load(folder + "/given.npz").values()]
Mine = namedtuple("Mine", "count mu nu")
exported = bp.Exported.load(folder + "/planned.bp")
params, mu, nu = ({"layers": given[i : i + 6]} for i in (0, 7, 13))
state = params, (Mine(given[6], mu, nu), ())
for _ in range(2):
    before = state
    state, (loss, none), scale = exported(state, given[19], bp.LossScale(), key=jax.random.key(7))
    assert before[0]["layers"][0].is_deleted() and none is None
assert type(scale) is bp.LossScale and scale.period == 2000
assert type(state[1][0]).__name__ == "ScaleByAdamState" and state[1][0].count == 2
np.savez(folder + "/got.npz", *map(np.asarray, jax.tree.leaves((state, loss, scale))))
print(exported.plan.budget_bytes, exported.plan.measured_bytes)
assert not {"optax", "test_exported"} & set(sys.modules)
"""


def test_another_process_runs_it_bit_for_bit(tmp_path):
    """Without the model, Optax or our working directory; the budget is obeyed there, too."""
    planned = compiled(BUDGET)
    assert planned.plan.measured_bytes <= BUDGET < planned.plan.baseline_bytes
    assert any(each.action == "recompute" for each in planned.plan.decisions)
    folder, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    planned.export().save(folder / "planned.bp")
    np.savez(folder / "given.npz", *map(np.asarray, jax.tree.leaves((state(), X))))
    command = [sys.executable, "-P", "-c", CHILD, folder]
    child = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [str(BUDGET), str(planned.plan.measured_bytes)]
    now = state()
    for _ in range(2):
        now, (loss, _), scale = planned(now, X, bp.LossScale(), key=jax.random.key(7))
    got = np.load(folder / "got.npz").values()
    for found, expected in zip(got, jax.tree.leaves((now, loss, scale)), strict=True):
        assert found.tobytes() == np.asarray(expected).tobytes()


@pytest.fixture(scope="module")
def small():
    """A small program, exported."""

    def double(tree, n, y=1.0):
        return {"doubled": jax.tree.map(lambda x: 2 * x * n, tree), "y": y}

    made = bp.compile(double, static_argnums=1).lower({"a": X[:2]}, 3, y=X[0])
    exported = made.export()
    exported.compile()
    return exported


def test_what_it_tells(small):
    assert small.platforms == ("cpu",) and small.plan is None and small.name == "double"
    assert small.inputs == {"args[0]['a']": "f32[2,32]", "y": "f32[32]"}
    assert small.outputs == {"result['doubled']['a']": "f32[2,32]", "result['y']": "f32[32]"}
    assert small.versions["jax"] == jax.__version__ and "stablehlo" in small.as_text()
    assert "f32[2,32]" in str(small) and small.memory_analysis().argument_size_in_bytes > 0
    found = small.call_by_path({"args[0]['a']": X[:2], "y": np.zeros(32, np.float32)})
    np.testing.assert_array_equal(found["result['doubled']['a']"], 6 * X[:2])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda f: f({"a": X[:2]}), r"y: expected f32\[32\], got nothing"),
        (lambda f: f({"a": X[:2]}, 3, y=X[0]), "takes 1 positional arguments, got 2"),
        (lambda f: f({"b": X[:2]}, y=X[0]), r"args\[0\]\['b'\]: unexpected"),
        (lambda f: f({"a": X[:3]}, y=X[0]), r"expected f32\[2,32\], got f32\[3,32\]"),
        (lambda f: f({"a": X[:2]}, y=X[0].astype(jnp.bfloat16)), r"got bf16\[32\]"),
        (lambda f: f({"a": "text"}, y=X[0]), "got str"),
        (lambda f: f.call_by_path({}), "expected f32"),
    ],
)
def test_other_arguments_are_refused_by_path(small, call, told):
    with pytest.raises(bp.ArgumentError, match=told):
        call(small)


def test_damaged_files_are_refused(small, tmp_path):
    """500 random damages, and files of other kinds: each is refused with our error."""
    path = tmp_path / "step.bp"
    small.save(path)
    data, rng = path.read_bytes(), random.Random(0)
    for _ in range(500):
        path.write_bytes(damaged(data, rng))
        with pytest.raises(bp.ExportError):
            bp.Exported.load(path)
    for other in (b"", b"\x7fELF", rng.randbytes(5000), b"backpass.export 1\n", b"{}"):
        path.write_bytes(other)
        with pytest.raises(bp.ExportError):
            bp.Exported.load(path)
    path.write_bytes(data.replace(b"export 1\n", b"export 9\n", 1))
    with pytest.raises(bp.ExportError, match="expected 'backpass.export 1'"):
        bp.Exported.load(path)
    path.write_bytes(data)
    assert bp.Exported.load(path).inputs == small.inputs


def test_a_program_for_no_platform_is_refused(small, tmp_path):
    nowhere = bp.Exported(small._header, dataclasses.replace(small._program, platforms=()))
    nowhere.save(tmp_path / "step.bp")
    with pytest.raises(bp.ExportError, match="another program than it tells of"):
        bp.Exported.load(tmp_path / "step.bp")


def test_a_place_that_cannot_be_written_to(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(bp.BackpassError, match="cannot write"):
        small.save(tmp_path / "file" / "step.bp")
    with pytest.raises(FileNotFoundError):
        bp.Exported.load(tmp_path / "none.bp")


def test_a_lower_budget_than_its_peak_is_told(small):
    """As on a device, or by an XLA, that needs more memory than where it was exported."""
    from dataclasses import replace

    lowered = bp.compile(jnp.sin, memory_budget="1MiB").lower(X)
    exported = lowered.export()
    exported._header = replace(exported._header, plan=replace(exported.plan, budget_bytes=X.nbytes))
    with pytest.raises(bp.BudgetError, match="its peak here is") as told:
        exported(X)
    assert told.value.minimum_bytes == exported.plan.measured_bytes > X.nbytes


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """A node with a setting."""

    def __init__(self, value, colour):
        self.value, self.colour = value, colour

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], self.colour

    @classmethod
    def tree_unflatten(cls, colour, children):
        return cls(*children, colour)


def test_classes_of_ones_own(tmp_path):
    """Known ones come back as they are; unknown ones as stand-ins, which are taken again."""

    def swap(pair, box):
        return Pair(pair.right, pair.left), {"box": Box(box.value + 1, box.colour)}

    a, b = jnp.zeros(2), jnp.ones(2)
    bp.compile(swap).lower(Pair(a, b), Box(a, "red")).export().save(tmp_path / "swap.bp")
    loaded = bp.Exported.load(tmp_path / "swap.bp")
    pair, out = loaded(Pair(a, b), Box(b, "blue"))
    assert isinstance(pair, Pair) and out["box"].colour == "blue"
    text = (tmp_path / "swap.bp").read_bytes()
    assert b"test_exported:Box" in text

    from backpass.compiler import trees

    spec = loaded._header.result
    told = trees.built(
        {**spec, "of": [{**spec["of"][0], "name": "gone:Pair"}, spec["of"][1]]},
        iter([a, b, a]),
        {},
    )
    assert told[0]._fields == ("left", "right") and told[0].right is b
    assert told[1]["box"].value is a and "Box .value=" in repr(told[1]["box"])
    assert trees.written(told[1]) == spec["of"][1]
    again, _ = loaded(told[0], told[1]["box"])
    assert isinstance(again, Pair)
    with pytest.raises(AttributeError):
        _ = told[1]["box"].colour


def test_what_cannot_be_exported(tmp_path):
    def told(x):
        jax.debug.print("{}", x)
        return x

    def keyed(x):
        return {(1, 2): x}

    for fun, why in ((told, "can't export told"), (keyed, "a file can't hold")):
        with pytest.raises(bp.ExportError, match=why):
            bp.compile(fun).lower(X).export()


def test_sharded_programs():
    """Run on as many devices, with arguments placed as they were."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def step(w, x):
        loss, grad = bp.value_and_grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        return w - 0.1 * grad, loss

    whole = NamedSharding(mesh, PartitionSpec())
    w, x = jax.device_put(jnp.ones((32, 4)), whole), jax.device_put(X, rows)
    made = bp.compile(step, in_shardings=(whole, rows), donate_argnums=0)
    compiled = made.lower(w, x).compile()
    exported = compiled.export()
    expected = compiled(w + 0, x)
    got = exported(w + 0, x)
    assert got[0].sharding.is_equivalent_to(expected[0].sharding, 2)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_imperative_steps(tmp_path):
    """The program of a step that closes over tensors has them as arguments."""
    w = dyn.tensor(np.ones((3, 2), np.float32), requires_grad=True)
    sgd = dyn.optim.SGD([w], lr=0.1)

    @bp.compile
    def step(x):
        sgd.zero_grad()
        loss = ((x @ w) ** 2).mean()
        loss.backward()
        sgd.step()
        return loss

    exported = step.lower(jnp.ones((4, 3))).export()
    types = {"f32[3,2]": np.ones((3, 2), np.float32), "f32[4,3]": np.ones((4, 3), np.float32)}
    given = {path: types.get(t, np.float32(0.1)) for path, t in exported.inputs.items()}
    found = exported.call_by_path(given)
    expected = float(step(jnp.ones((4, 3))))
    assert set(types) <= set(exported.inputs.values())
    assert expected in [float(x) for x in found.values() if x.shape == ()]
    moved = [x for x in found.values() if x.shape == (3, 2)]
    assert any(np.array_equal(x, w.detach().numpy()) for x in moved)
