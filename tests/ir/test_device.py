"""What the table of devices says, beside data sheets in the units that they have."""

import numpy as np
import pytest

from backpass.ir import parse
from backpass.ir.device import DEVICES, clock

# Memory in GiB (GB where a star stands), arithmetic in TFLOP/s, then GB/s of the memory, to the
# host, and to other devices.
SHEETS = """
a100     80      312   2000  32  300
h100     80      989   3350  64  450
h200     141*    989   4800  64  450
b200     180*   2250   8000  64  900
tpu-v4   32      275   1200  16  300
tpu-v5e  16      197    820  16  200
tpu-v5p  95      459   2765  32  600
tpu-v6e  32      918   1640  32  450
cpu      16      0.2     10   0    0
"""


@pytest.mark.parametrize("line", SHEETS.strip().splitlines())
def test_devices_are_as_their_data_sheets_say(line):
    name, memory, flops, *rates = line.split()
    spec = DEVICES[name]
    giga = 10**9 if memory.endswith("*") else 2**30
    assert spec.memory_bytes == int(memory.rstrip("*")) * giga
    told = [spec.flops / 1e3, spec.bytes_per_s, spec.host_bytes_per_s, spec.link_bytes_per_s]
    np.testing.assert_allclose(np.array(told) / 1e9, np.array([flops, *rates], float), rtol=1e-12)


def test_every_device_has_a_sheet():
    assert {line.split()[0] for line in SHEETS.strip().splitlines()} == set(DEVICES)


def test_what_a_device_remembers_is_no_part_of_it():
    """It is a key of what is kept for a device."""
    (node,) = parse(
        "backpass.ir 1\ngraph f(%0: f32[8]) {\n%1: f32[8] = sort(%0) {dimension=0, is_stable=True, num_keys=1}\nreturn\n}\n"
    ).nodes
    spec = DEVICES["h100"]
    new, used = clock(spec), clock(spec)
    assert used.seconds(node) == spec.seconds(node) and used.known
    assert clock(used) is used and used == new and hash(used) == hash(new)
