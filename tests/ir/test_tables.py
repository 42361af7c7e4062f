"""Numbers and columns as people read them."""

import pytest

from backpass.ir.tables import bytes_text, count_text, table


@pytest.mark.parametrize("number, text", [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (-2048, "-2.0 KiB"),
    (2**20 - 1, "1024.0 KiB"), (2**20, "1.0 MiB"), (3 * 2**30, "3.0 GiB"), (2**40, "1.0 TiB"), (2**50, "1024.0 TiB"),
])  # fmt: skip
def test_bytes(number, text):
    assert bytes_text(number) == text


def test_counts():
    assert [count_text(n) for n in (0, 999, 1000, -1234567)] == ["0", "999", "1,000", "-1,234,567"]


def test_columns():
    """The first to the left, others to the right; a group without rows has no rule."""
    found = table(
        ("op", "n", "size"), [("sin", "10", ""), ("\x1b", "1", "2 B")], [], [("all", "11", "2 B")]
    )
    assert found == (
        "op       n  size\n"
        "------  --  ----\n"
        "sin     10\n"
        "\\u{1b}   1   2 B\n"
        "------  --  ----\n"
        "all     11   2 B"
    )
