"""States on disk: whole or not at all, bit for bit, whatever happens to the process or the disk."""

import os
import random
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import backpass as bp
from backpass import dynamic as dyn
from damages import damaged

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4, jnp.bfloat16)}


def every_kind():
    """A state with a leaf of every kind, and names that no file could have."""
    return {
        "params": PARAMS,
        "adam": optax.adamw(1e-3).init(PARAMS),
        "scale": bp.LossScale(),
        "keys": [jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 3)],
        "no keys": jax.random.split(jax.random.key(2), 4)[:0],
        "weak": [jnp.asarray(2.0), jnp.full((3,), 1.0)],
        "empty": jnp.zeros((0, 3)),
        "narrow": [jnp.arange(3).astype(t) for t in (jnp.uint4, jnp.float8_e5m2, bool)],
        "numpy": [np.arange(6).reshape(2, 3).T, np.float16(3.5), np.array(2.5), np.zeros((2, 0))],
        "rare": np.arange(3).astype(ml_dtypes.float8_e4m3),
        "python": [7, 2**200, -0.0, float("nan"), 5e-324, True, 1 - 0j, "hé\ud800\n"],
        "generator": np.random.default_rng(0).bit_generator.state,
        "none": None,
        "a/b.c": jnp.ones(2),
        "": jnp.ones(1),
        "x" * 300: jnp.full(1, -0.0),
    }


def assert_same(got, expected):
    """Kind, dtype, weak type, place and every bit."""
    assert type(got) is type(expected)
    if isinstance(got, jax.Array):
        assert (got.dtype, got.shape, got.committed) == (
            expected.dtype,
            expected.shape,
            expected.committed,
        )
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(got) == jax.random.key_impl(expected)
            return assert_same(jax.random.key_data(got), jax.random.key_data(expected))
        assert got.weak_type == expected.weak_type
    if isinstance(got, jax.Array | np.ndarray | np.generic):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()
    else:
        assert repr(got) == repr(expected)


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path):
    state = every_kind()
    with bp.Saver(tmp_path / "run") as saver:
        assert saver.restore(state) is None
        assert saver.save(3, state)
    step, found = bp.restore(tmp_path / "run", state)
    assert step == 3
    jax.tree.map(assert_same, found, state)
    structs = jax.tree.map(
        lambda x: jax.eval_shape(lambda: x) if isinstance(x, jax.Array) else x, state
    )
    jax.tree.map(assert_same, bp.restore(tmp_path / "run", structs)[1], state)


def test_big_endian_and_strided_arrays_keep_their_values(tmp_path):
    state = [np.arange(3.0, dtype=">f8"), np.arange(12).reshape(3, 4)[::2, ::-1]]
    with bp.Saver(tmp_path) as saver:
        saver.save(0, state)
        _, found = saver.restore(state)
    for got, expected in zip(found, state, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_every_and_keep(tmp_path):
    with bp.Saver(tmp_path, every=2, keep=2) as saver:
        begun = [saver.save(step, {"x": jnp.full(2, step)}) for step in range(1, 8)]
        assert begun == [False, True, False, True, False, True, False]
        assert saver.save(7, {"x": jnp.full(2, 7)}, force=True)
        saver.wait()
        assert saver.steps == (6, 7)
        assert not saver.save(7, {"x": jnp.full(2, 7)}, force=True)
    assert bp.restore(tmp_path, {"x": jnp.zeros(2, int)}, step=6)[1]["x"][0] == 6


def test_a_step_may_take_the_buffers_at_once(tmp_path):
    """What is saved is what was there at `save`, though the step is given its memory."""

    @bp.compile(donate_argnums=0)
    def step(state):
        return jax.tree.map(lambda x: x + 1.0, state)

    state = {"w": jnp.zeros((512, 512)), "many": [jnp.zeros((64, 64)) for _ in range(4)]}
    numbers = np.zeros(1000)
    with bp.Saver(tmp_path, keep=None) as saver:
        for i in range(6):
            saver.save(i, (state, numbers))
            given, state = state, step(state)
            numbers += 1
            assert given["w"].is_deleted()
        with pytest.raises(bp.DonationError, match=r"\['w'\], float32\[512,512\], was donated"):
            saver.save(6, ({**state, "w": given["w"]}, numbers))
    for i in range(6):
        _, found = bp.restore(tmp_path, (state, numbers), step=i)
        assert all((x == i).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"w": jnp.ones((3, 5))}, r"\['w'\]: saved float32\[3,4\], expected float32\[3,5\]"),
        ({"w": jnp.ones((3, 4), jnp.int32)}, r"expected int32\[3,4\]"),
        ({"new": 3}, r"\['new'\]: saved nothing, expected a Python int"),
        ({"n": 3.0}, r"\['n'\]: saved a Python int, expected a Python float"),
        ({"n": jnp.ones(())}, r"saved a Python int, expected float32\[\]"),
    ],
)
def test_another_state_is_refused_by_path(tmp_path, change, told):
    state = {"w": jnp.ones((3, 4)), "n": 3}
    with bp.Saver(tmp_path) as saver:
        saver.save(1, state)
    with pytest.raises(bp.RestoreError, match=told):
        bp.restore(tmp_path, {**state, **change})
    assert bp.restore(tmp_path, {**state, "n": jnp.int32(0)})[1]["n"] == 3
    with pytest.raises(bp.RestoreError, match=r"no save of step 7.*holds steps 1"):
        bp.restore(tmp_path, state, step=7)


@pytest.mark.parametrize(
    ("leaf", "told"),
    [
        (object(), r"\['a'\]\[0\] is object"),
        (np.array(["x"]), r"is ndarray of <U1"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), r"float32\[2\] without values"),
    ],
)
def test_what_cannot_be_saved_is_told_by_path(tmp_path, leaf, told):
    with bp.Saver(tmp_path) as saver:
        saver.save(1, {"x": jnp.ones(2)})
        with pytest.raises(bp.ArgumentError, match=told):
            saver.save(2, {"a": [leaf]})
        with pytest.raises(bp.ArgumentError, match="it is traced"):
            jax.jit(lambda x: saver.save(2, {"x": x}))(1.0)
        for step in (-1, 1.5, "2", True):
            with pytest.raises(bp.ArgumentError, match="step wants a number"):
                saver.save(step, {"x": jnp.ones(2)})
    assert bp.restore(tmp_path, {"x": jnp.ones(2)})[0] == 1


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path):
    state = {"x": jnp.ones(2)}
    with bp.Saver(tmp_path) as saver:
        saver.save(5, state)
    with bp.Saver(tmp_path) as saver:
        for step in (3, 5):
            with pytest.raises(bp.SaveError, match="holds saves up to step 5"):
                saver.save(step, state)
        saver.restore(state)
        assert not saver.save(5, state) and saver.save(6, state)


def test_placed_where_like_is(tmp_path):
    """Sharded states come back sharded, and may be placed in another way, or on one device."""
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    along = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    keys = jax.random.split(jax.random.key(0), 8)
    state = {"x": jax.device_put(x, along("a", "b")), "k": jax.device_put(keys, along("a"))}
    with bp.Saver(tmp_path) as saver:
        saver.save(1, state)
        _, same = saver.restore(state)
        other = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=along("b")), "k": keys}
        _, moved = saver.restore(other)
    jax.tree.map(assert_same, same, state)
    assert same["x"].sharding == state["x"].sharding and same["k"].sharding == along("a")
    assert moved["x"].sharding == along("b") and not moved["k"].committed
    np.testing.assert_array_equal(moved["x"], x)


def test_doubles_want_the_setting_that_they_were_made_under(tmp_path):
    with jax.enable_x64(True):
        state = {"x": jnp.ones(3, jnp.float64)}
        with bp.Saver(tmp_path) as saver:
            saver.save(1, state)
        assert bp.restore(tmp_path, state)[1]["x"].dtype == np.float64
    with pytest.raises(bp.RestoreError, match="jax_enable_x64"):
        bp.restore(tmp_path, {"x": np.ones(3)})


def test_modules_and_optimisers_of_the_dynamic_mode(tmp_path):
    def made(seed):
        dyn.manual_seed(seed)
        model = dyn.nn.Linear(3, 2)
        return model, dyn.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimiser):
        optimiser.zero_grad()
        loss = (model(dyn.tensor(np.ones((4, 3), np.float32))) ** 2).mean()
        loss.backward()
        optimiser.step()
        return float(loss)

    def state_of(model, optimiser):
        return {"model": model.state_dict(), "optimiser": optimiser.state_dict()}

    first, second = made(0), made(1)
    step(*first), step(*second)
    with bp.Saver(tmp_path) as saver:
        saver.save(1, state_of(*first))
        expected = [step(*first) for _ in range(3)]
        _, found = saver.restore(state_of(*second))
    second[0].load_state_dict(found["model"])
    second[1].load_state_dict(found["optimiser"])
    assert [step(*second) for _ in range(3)] == expected


# What goes wrong


@contextmanager
def unprivileged():
    """As a user who may not write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_directory_that_cannot_be_written_to(tmp_path):
    state = {"x": jnp.arange(3)}
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(gettempdir()) and folder != Path(gettempdir()):
            folder.chmod(0o755)
    with bp.Saver(tmp_path / "run") as saver:
        saver.save(1, state)
    (tmp_path / "file").write_text("")
    (tmp_path / "run").chmod(0o555)
    with unprivileged():
        with pytest.raises(bp.SaveError, match=r"cannot begin to save .*Permission denied"):
            bp.Saver(tmp_path / "run")
        assert bp.restore(tmp_path / "run", state)[0] == 1
    (tmp_path / "run").chmod(0o700)
    with unprivileged(), pytest.raises(bp.RestoreError, match="cannot read .*Permission denied"):
        bp.restore(tmp_path / "run", state)
    with pytest.raises(bp.SaveError, match="exists|Not a directory"):
        bp.Saver(tmp_path / "file")


@contextmanager
def largest_file(size):
    """The disk is full for files past a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    """The error comes at the next call, the last save stays, and training can go on."""
    monkeypatch.setattr("backpass.runtime.saver._WAITS", False)
    big = {"x": jax.random.normal(jax.random.key(0), (512, 512))}
    small = {"x": jnp.zeros((512, 512))}
    with bp.Saver(tmp_path, keep=1) as saver:
        saver.save(1, small)
        saver.wait()
        with largest_file(200_000):
            assert saver.save(2, big)
            with pytest.raises(bp.SaveError, match=r"cannot save step 2 .*File too large") as told:
                saver.wait()
        assert "step 1 can be restored" in str(told.value)
        assert bp.restore(tmp_path, big)[0] == 1
        assert saver.save(2, big)
        step, found = saver.restore(small)
        assert step == 2
        assert_same(found["x"], big["x"])
        with largest_file(200_000), pytest.raises(RuntimeError, match="mine") as noted:
            with saver:
                saver.save(3, big)
                raise RuntimeError("mine")
    assert "cannot save step 3" in noted.value.__notes__[0]
    assert bp.restore(tmp_path, big)[0] == 2


def test_damaged_saves_are_refused(tmp_path):
    """No damage, to any file, gives another state; most are told, some files do not matter.

    Of one array: where reading one fails, Orbax leaves the others to a loop that is closed.
    """
    state = {"x": jax.random.normal(jax.random.key(0), (64, 64)), "n": 5, "s": "text"}
    with bp.Saver(tmp_path) as saver:
        saver.save(1, state)
        saver.save(2, state)
    files = [path for path in sorted((tmp_path / "2").rglob("*")) if path.is_file()]
    rng, refused = random.Random(0), 0
    for _ in range(24):
        path = rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(damaged(data, rng))
        try:
            step, found = bp.restore(tmp_path, state)
        except bp.RestoreError as error:
            refused += 1
            assert "step 2 in" in str(error) and "also steps 1" in str(error)
        else:
            assert step in (1, 2)
            jax.tree.map(assert_same, found, state)
        path.write_bytes(data)
    assert refused > 5
    assert bp.restore(tmp_path, state, step=1)[0] == 1


def test_an_old_save_that_is_half_removed(tmp_path):
    """As by a process that was killed while it removed one: the others go on as they are."""
    rng = random.Random(0)
    with bp.Saver(tmp_path, keep=2) as saver:
        for step in (1, 2):
            saver.save(step, {"n": jnp.full(3, step)})
    for step in range(3, 9):
        files = [path for path in sorted((tmp_path / str(step - 2)).rglob("*")) if path.is_file()]
        for path in rng.sample(files, len(files) // 2):
            path.unlink()
        assert bp.restore(tmp_path, {"n": jnp.zeros(3, int)})[0] == step - 1
        with bp.Saver(tmp_path, keep=2) as saver:
            saver.restore({"n": jnp.zeros(3, int)})
            saver.save(step, {"n": jnp.full(3, step)})
            saver.wait()
            assert saver.steps == (step - 1, step)


def test_what_orbax_saved_otherwise_is_refused(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(4, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
    with pytest.raises(bp.RestoreError, match=r"step 4 in .* was not saved by bp\.Saver"):
        bp.restore(tmp_path, {"x": jnp.ones(2)})


CHILD = """
import sys
import jax.numpy as jnp
import backpass as bp
try:
    bp.Saver(sys.argv[1])
except bp.SaveError as error:
    print(error)
saver = bp.Saver(sys.argv[2])
saver.save(1, {"x": jnp.ones((1500, 1500))})
sys.modules["orbax"] = sys.modules["orbax.checkpoint"] = None
try:
    bp.Saver(sys.argv[1])
except bp.ArgumentError as error:
    print(error)
"""


def test_another_process(tmp_path):
    """It may not save where we do; what it saves as it ends is whole; it may lack Orbax."""
    with bp.Saver(tmp_path / "ours") as saver:
        command = [sys.executable, "-P", "-c", CHILD, tmp_path / "ours", tmp_path / "theirs"]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"process {os.getpid()} saves in" in child.stdout
        assert "pip install 'backpass[checkpoints]'" in child.stdout
        assert saver.save(1, {"x": 1})
    step, found = bp.restore(tmp_path / "theirs", {"x": jnp.zeros((1500, 1500))})
    assert step == 1 and (found["x"] == 1).all()
