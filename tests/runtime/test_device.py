"""What the device at hand can do: measured once, kept in a file, and never taken on trust."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.cli.main import main
from backpass.ir.device import DEVICES, DeviceSpec
from backpass.runtime import device as live
from backpass.runtime.probes import memory_bytes, probes, quickest, rates

SPEC = DeviceSpec(1 << 34, 3e11, 2e10, 0.0, {"sin": 7.0})


@pytest.fixture
def measurements(monkeypatch, tmp_path):
    """An empty cache; a device that is always the same; how often it was measured."""
    monkeypatch.delenv(live.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def measure(device):
        made.append(device)
        return SPEC

    monkeypatch.setattr(live, "measure", measure)
    monkeypatch.setattr(live, "busy", lambda: False)
    return made


def here():
    return jax.devices()[0]


def test_tests_plan_for_a_fixed_device():
    assert live.live_spec() is DEVICES["cpu"]


def test_a_wrong_name_is_told(monkeypatch):
    monkeypatch.setenv(live.VARIABLE, "h9")
    with pytest.raises(bp.ArgumentError, match="there is no device 'h9'"):
        live.live_spec()


def test_it_is_measured_once(measurements, tmp_path):
    assert live.cached(here()) is None
    assert live.live_spec() == live.live_spec(here()) == live.measured(here()) == SPEC
    assert measurements == [here()]
    (file,) = (tmp_path / "backpass").iterdir()
    assert file == live.cache_path(here())
    assert json.loads(file.read_text())["costs"] == {"sin": 7.0}


@pytest.mark.parametrize(
    ("rates", "anew"),
    [
        ((1.2 * SPEC.flops, 1.2 * SPEC.bytes_per_s), False),
        ((0.3 * SPEC.flops, 0.3 * SPEC.bytes_per_s), False),  # slower: plans stay
        ((1.3 * SPEC.flops, SPEC.bytes_per_s), True),
        ((0.5 * SPEC.flops, 1.3 * SPEC.bytes_per_s), True),
    ],
)
def test_it_is_measured_anew_where_it_has_become_faster(measurements, monkeypatch, rates, anew):
    monkeypatch.setattr(live, "rates", lambda device: rates)
    assert not live.renew()  # nothing is kept
    assert live.live_spec() == SPEC
    assert live.renew() is anew
    assert len(measurements) == 1 + anew


def test_a_device_that_is_named_is_not_measured_anew(measurements, monkeypatch):
    assert live.live_spec() == SPEC
    monkeypatch.setenv(live.VARIABLE, "h100")
    monkeypatch.setattr(live, "rates", lambda device: (math.inf, math.inf))
    assert not live.renew()


def test_rates_are_what_is_measured():
    flops, bytes_per_s = rates(here())
    assert 0 < flops < math.inf and 0 < bytes_per_s < math.inf


@pytest.mark.parametrize(
    "text",
    ["", "null", "[1]", "{}", '{"memory_bytes": 1}', "[" * 10**5]
    + [
        json.dumps(
            {"busy": False, "memory_bytes": 1, "flops": flops, "bytes_per_s": 1.0, "costs": costs}
        )
        for flops, costs in [
            (0.0, {}),
            (math.nan, {}),
            (math.inf, {}),
            ("1", {}),
            (1.0, {"sin": -1}),
            (1.0, 3),
        ]
    ],
)
def test_a_file_that_makes_no_sense_is_made_anew(measurements, text):
    path = live.cache_path(here())
    path.parent.mkdir()
    path.write_text(text)
    assert live.live_spec() == SPEC and measurements == [here()]
    assert live.cached(here()) == SPEC


def test_what_a_busy_machine_gave_holds_while_it_is_busy(measurements, monkeypatch):
    for busy, count in [(True, 1), (True, 1), (False, 2), (False, 2), (True, 2)]:
        monkeypatch.setattr(live, "busy", lambda busy=busy: busy)
        assert live.live_spec() == SPEC and len(measurements) == count


def test_load_tells_who_is_busy(monkeypatch):
    monkeypatch.setattr(live.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert live.busy()
    monkeypatch.setattr(live.os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert not live.busy()


def test_without_a_folder_to_write_to(measurements, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert live.live_spec() == SPEC == live.live_spec()
    assert len(measurements) == 2


def test_other_versions_have_their_own_file(measurements, monkeypatch):
    before = live.cache_path(here())
    monkeypatch.setattr(jax, "__version__", "9.9")
    assert live.cache_path(here()) != before


def test_a_known_accelerator_has_its_vendors_figures_until_it_is_measured(measurements):
    class Memory:
        kind = "pinned_host"

    class Device:
        platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"
        memories = ()

        def addressable_memories(self):
            return self.memories

    device = Device()
    assert live.live_spec(device) == replace(DEVICES["h100"], host_bytes_per_s=0.0)
    device.memories = (Memory(),)
    assert live.live_spec(device) == DEVICES["h100"]
    assert live.measured(device) == SPEC == live.live_spec(device)


def test_inside_a_trace(measurements, monkeypatch):
    """A step that is planned while the user's own `jax.jit` traces it."""

    def measure(device):
        assert float(jnp.ones(3).sum()) == 3.0
        return SPEC

    monkeypatch.setattr(live, "measure", measure)
    assert jax.jit(lambda x: x * live.live_spec().costs["sin"])(2.0) == 14.0


def test_doctor_tells_the_figures(measurements, capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "FLOP/s 3e+11" in told and "roofline of sin x 7" in told and "no link" in told
    assert str(live.cache_path(here())) in told
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["bytes/s"] == "2e+10"


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_every_kernel_runs(dtype):
    """Also in the type of accelerators; its result takes the place of its first argument."""
    kernels = probes(scale=1)
    seconds = quickest(kernels, dtype, here())
    assert seconds.keys() == kernels.keys() and min(seconds.values()) > 0
    assert all(probe.flops or probe.bytes for probe in kernels.values())


def test_memory_is_told():
    assert memory_bytes(here()) > 1 << 28
