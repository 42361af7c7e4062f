"""A process of several that save and restore one state: `spread.py save|restore FOLDER RANK PORT`.

`test_spread.py` starts it. Each process holds two of the four devices.
"""

import os
import sys

import ml_dtypes
import numpy as np

PROCESSES, DEVICES = 2, 4
STEPS = 3
SIZE = 1 << 18  # large enough for a save to go on while the next step runs
RARE = ("int4", "float8_e4m3fn", "float8_e3m4", "bfloat16")


def numbers(step):
    """The state's arrays after a step, on the host."""
    grown = np.random.default_rng(step).normal(size=SIZE).astype(np.float32)
    rare = {name: np.arange(-4, 4).astype(getattr(ml_dtypes, name)) for name in RARE}
    return {
        **rare,
        "divided": grown,
        "whole": grown[::-1].copy(),
        "mask": grown[:8] > 0,
        "count": np.int32(step),
        "empty": np.zeros((0, 4), np.float32),
    }


def state_of(step, put):
    """All of the state; `put` lays an array over the devices, in parts or on each."""
    import jax

    arrays = {
        name: put(array, name not in ("whole", "count", "empty"))
        for name, array in numbers(step).items()
    }

    def drawn():
        return jax.random.split(jax.random.key(step), 4)

    here = {name: put(jax.eval_shape(drawn), name == "keys") for name in ("keys", "key")}
    keys = {name: jax.jit(drawn, out_shardings=of)() for name, of in here.items()}
    return {**arrays, **keys, "numpy": np.arange(step), "name": "run", "epoch": step}


def same(found, wanted):
    """Every leaf bit for bit, where it lies as well."""
    import jax

    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        got = found[name]
        assert type(got) is type(want), name
        if not isinstance(want, jax.Array):
            assert np.array_equal(got, want), name
            continue
        assert (got.dtype, got.shape, got.sharding) == (want.dtype, want.shape, want.sharding), name
        if jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        for a, b in zip(got.addressable_shards, want.addressable_shards, strict=True):
            assert np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes(), name


def main(mode, folder, rank, port):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES // PROCESSES}"
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(rank))
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import backpass as bp

    mesh = jax.make_mesh((DEVICES,), ("data",), (AxisType.Auto,))

    def put(array, is_divided):
        place = NamedSharding(mesh, P("data") if is_divided else P())
        if isinstance(array, jax.ShapeDtypeStruct):
            return place
        return jax.make_array_from_callback(array.shape, place, lambda index: array[index])

    if mode == "save":
        spoil = jax.jit(lambda x: -2 * x - 1, donate_argnums=0)
        with bp.Saver(folder, keep=None) as saver:
            for step in range(1, STEPS + 1):
                state = state_of(step, put)
                saver.save(step, state)
                spoil(state["divided"]), spoil(state["whole"])
    for step in range(1, STEPS + 1):
        told, found = bp.restore(folder, state_of(0, put) | {"numpy": np.arange(step)}, step=step)
        assert told == step
        same(found, state_of(step, put))
    print("all came back")


if __name__ == "__main__":
    main(*sys.argv[1:])
