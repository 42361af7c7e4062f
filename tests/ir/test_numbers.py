"""Every bit pattern of every dtype comes back."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpass.ir.numbers import format_number, read_number
from backpass.ir.types import _BY_NAME

WIDE = sorted(name for name, dtype in _BY_NAME.items() if dtype.itemsize > 1)
NARROW = sorted(set(_BY_NAME) - set(WIDE) - {"bool"})


def comes_back(raw: bytes, dtype) -> bool:
    x = np.frombuffer(raw, dtype)[0]
    return read_number(format_number(x), dtype).tobytes() == raw


@pytest.mark.parametrize("name", NARROW)
def test_all_bytes(name):
    dtype = _BY_NAME[name]
    patterns = [np.frombuffer(bytes([i]), dtype)[0] for i in range(256)]
    found = [read_number(format_number(x), dtype) for x in patterns]
    if jnp.issubdtype(dtype, np.integer):
        assert [int(x) for x in found] == [int(x) for x in patterns]
    else:
        assert [x.tobytes() for x in found] == [x.tobytes() for x in patterns]


@pytest.mark.parametrize("name", WIDE)
@given(data=st.data())
def test_drawn_bits(name, data):
    dtype = _BY_NAME[name]
    assert comes_back(data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)), dtype)


@given(st.floats(width=32))
def test_drawn_floats(x):
    assert comes_back(np.float32(x).tobytes(), np.dtype("float32"))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.float32(1), "1.0"),
        (np.float32(-0.0), "-0.0"),
        (np.float32(1e-5), "1e-05"),
        (np.float32(7.038531e-26), "7.0385313e-26"),
        (np.float64(0.1), "0.1"),
        (np.float32("inf"), "inf"),
        (np.float16("-inf"), "-inf"),
        (np.float64("nan"), "nan"),
        (np.uint32(0xFFC00000).view(np.float32), "-nan"),
        (np.uint32(0x7FC00001).view(np.float32), "0x7fc00001"),
        (jnp.bfloat16(0.1), "0.1"),
        (jnp.float8_e4m3fn(448), "448.0"),
        (jnp.bfloat16(0.15625), "0.156"),
        (jnp.finfo(jnp.bfloat16).max, "3.39e+38"),
        (np.complex64(complex(-0.0, float("inf"))), "-0.0+infj"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "True"),
    ],
)
def test_texts(x, text):
    assert format_number(np.asarray(x)[()]) == text


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("300", "int8"),
        ("-1", "uint8"),
        ("1.5", "int32"),
        ("8", "int4"),
        ("99999999999999999999999", "int64"),
        ("1e39", "float32"),
        ("inf", "float8_e4m3fn"),
        ("nan", "float4_e2m1fn"),
        ("0x1ffffffff", "float32"),
        ("0x0", "int32"),
        ("1j", "float32"),
        ("1.0", "complex64"),
        ("True", "int32"),
        ("1", "bool"),
        ("", "float32"),
        ("1_0", "int32"),
        ("٣", "int32"),
    ],
)
def test_what_does_not_fit_is_refused(text, dtype):
    with pytest.raises(ValueError, match="not|fit"):
        read_number(text, jnp.dtype(dtype))
