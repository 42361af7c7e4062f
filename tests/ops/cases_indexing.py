"""Cases of gather, scatter, dynamic slices, sorts and windows."""

from collections.abc import Iterator

import numpy as np
from jax import lax

from ops.draws import distinct, ints, positive, real, tied
from ops.harness import Case

Mode = lax.GatherScatterMode
MODES = {"fill": Mode.FILL_OR_DROP, "clip": Mode.CLIP, "promise": Mode.PROMISE_IN_BOUNDS}


def dims(offset=(), collapsed=(), start=(), batch=(), index_batch=()) -> lax.GatherDimensionNumbers:
    return lax.GatherDimensionNumbers(offset, collapsed, start, batch, index_batch)


# label: operand shape, indices, dimension numbers, slice sizes
GATHERS = {
    "rows of a table": ((7, 3), ints(5, 1, high=7), dims((1,), (0,), (0,)), (1, 3)),
    "one row": ((7, 3), ints(1, high=7), dims((0,), (0,), (0,)), (1, 3)),
    "few rows, twice the same": ((7, 3), np.array([[2], [2], [5]]), dims((1,), (0,), (0,)), (1, 3)),
    "one column, kept": ((3, 7), ints(1, high=7), dims((0, 1), (), (1,)), (3, 1)),
    "take along the last axis": (
        (2, 3, 7),
        ints(2, 3, 1, 1, high=7),
        dims((), (2,), (2,), (0, 1), (0, 1)),
        (1, 1, 1),
    ),
    "take two along the last axis": (
        (2, 7),
        ints(2, 2, 1, high=7),
        dims((), (1,), (1,), (0,), (0,)),
        (1, 1),
    ),
    "take six along the last axis": (
        (2, 7),
        ints(2, 6, 1, high=7),
        dims((), (1,), (1,), (0,), (0,)),
        (1, 1),
    ),
    "take along the first axis": (
        (7, 3),
        ints(3, 1, high=7),
        dims((), (0,), (0,), (1,), (0,)),
        (1, 1),
    ),
    "swapped batches": (
        (2, 7, 3),
        ints(3, 2, 1, high=7),
        dims((), (1,), (1,), (0, 2), (1, 0)),
        (1, 1, 1),
    ),
    "vmapped row": ((4, 5), ints(4, 1, high=5), dims((1,), (), (1,), (0,), (0,)), (1, 1)),
    "batch and window": (
        (2, 7, 3),
        ints(2, 1, high=7),
        dims((1,), (1,), (1,), (0,), (0,)),
        (1, 1, 3),
    ),
    "points": ((4, 5), ints(6, 2, high=4), dims((), (0, 1), (0, 1)), (1, 1)),
    "windows": ((8, 5), ints(3, 1, high=5), dims((1, 2), (), (0,)), (3, 5)),
    "half a row": ((4, 5), ints(1, high=3), dims((0,), (0,), (0,)), (1, 3)),
}


def flags(mode: str, unique: bool = False) -> dict:
    return {"mode": MODES[mode], "indices_are_sorted": False, "unique_indices": unique}


def gathers() -> Iterator[Case]:
    for label, (shape, indices, numbers, sizes) in GATHERS.items():
        attrs = {"dimension_numbers": numbers, "slice_sizes": sizes, "fill_value": None}
        attrs |= flags("promise")
        yield Case("gather", (real(*shape), indices), attrs, label)
        outside = (indices + 3).astype(np.int8)
        for mode, fill in (("fill", 0.25), ("clip", None)):
            filled = attrs | flags(mode) | {"fill_value": fill}
            yield Case("gather", (real(*shape), outside), filled, f"{label}, outside, {mode}")
    empty = dims((1,), (0,), (0,))
    attrs = {"dimension_numbers": empty, "slice_sizes": (1, 3), "fill_value": None}
    yield Case("gather", (real(7, 3), ints(0, 1)), attrs | flags("clip"), "nothing")


def scatter_dims(numbers: lax.GatherDimensionNumbers) -> lax.ScatterDimensionNumbers:
    return lax.ScatterDimensionNumbers(
        numbers.offset_dims,
        numbers.collapsed_slice_dims,
        numbers.start_index_map,
        numbers.operand_batching_dims,
        numbers.start_indices_batching_dims,
    )


def scatters() -> Iterator[Case]:
    for op in (
        "scatter",
        "scatter-add",
        "scatter-sub",
        "scatter-mul",
        "scatter-min",
        "scatter-max",
    ):
        for label in ("rows of a table", "few rows, twice the same", "swapped batches", "windows"):
            yield from _scatter(op, label)
    attrs = {"dimension_numbers": scatter_dims(dims((), (0,), (0,)))}
    for op in ("scatter-min", "scatter-max"):
        updates = tied(6), np.array([[0], [0], [1], [2], [2], [3]]), tied(6, seed=1)
        yield Case(op, updates, attrs | flags("clip"), "ties", kinks=True)


def _scatter(op: str, label: str) -> Iterator[Case]:
    shape, indices, numbers, sizes = GATHERS[label]
    updates = lax.gather(np.zeros(shape), indices, numbers, sizes).shape
    operands = distinct(*shape) / 9, indices, distinct(*updates, seed=1) / 9
    attrs = {"dimension_numbers": scatter_dims(numbers)}
    repeats = (0,) if op == "scatter-mul" else None
    yield Case(op, operands, attrs | flags("clip"), f"{label}, clip", wrt=repeats)
    outside = operands[0], indices + 3, operands[2]
    yield Case(op, outside, attrs | flags("fill"), f"{label}, outside, fill", wrt=repeats)
    if label == "rows of a table":
        rows = np.array([[6], [0], [3], [2], [9]])
        unique = operands[0], rows, operands[2]
        yield Case(op, unique, attrs | flags("fill", unique=True), f"{label}, unique")


def dynamic() -> Iterator[Case]:
    x, part = real(5, 4), real(2, 3, seed=1)
    for i, j in ((1, 0), (9, -3)):
        starts = np.int32(i), np.int32(j)
        yield Case("dynamic_slice", (x, *starts), {"slice_sizes": (2, 3)}, f"at {i} {j}")
        yield Case("dynamic_update_slice", (x, part, *starts), {}, f"at {i} {j}")


def sorts() -> Iterator[Case]:
    for shape, axis in (((7,), 0), ((3, 4), 0), ((2, 9), 1), ((0,), 0), ((1, 1), 1)):
        attrs = {"dimension": axis, "is_stable": True, "num_keys": 1}
        yield Case("sort", (distinct(*shape),), attrs)
        yield Case("sort", (distinct(*shape), real(*shape)), attrs)
    attrs = {"dimension": 0, "is_stable": True, "num_keys": 2}
    yield Case("sort", (tied(8), distinct(8), real(8)), attrs, kinks=True)
    yield Case("sort", (ints(8), real(8)), attrs | {"num_keys": 1}, kinks=True)
    for shape, k, axis in (((9,), 3, 0), ((2, 9), 1, 1), ((2, 9), 8, 1), ((9, 2), 3, 0)):
        yield Case("top_k", (distinct(*shape),), {"k": k, "axis": axis}, f"{shape} {k}")
    approximate = {"recall_target": 0.95, "is_max_k": True, "reduction_input_size_override": -1}
    approximate |= {"reduction_dimension": -1, "aggregate_to_topk": True, "k": 2}
    yield Case("approx_top_k", (distinct(3, 9),), approximate)


def window(sizes, strides, padding, base=None, dilation=None) -> dict:
    one = (1,) * len(sizes)
    return {
        "window_dimensions": sizes,
        "window_strides": strides,
        "padding": padding,
        "base_dilation": base or one,
        "window_dilation": dilation or one,
    }


# label: operand shape, windows
WINDOWS = {
    "tiles": ((2, 4, 6, 3), window((1, 2, 2, 1), (1, 2, 2, 1), ((0, 0),) * 4)),
    "tiles with a rest": ((5, 7), window((2, 3), (2, 3), ((0, 0),) * 2)),
    "overlapping": ((7, 6), window((3, 3), (2, 2), ((1, 1), (0, 1)))),
    "sliding": ((6, 5), window((3, 2), (1, 1), ((1, 1), (0, 0)))),
    "gaps": ((8, 7), window((2, 2), (3, 4), ((0, 0), (1, 0)))),
    "global": ((2, 5, 8), window((1, 5, 8), (1, 1, 1), ((0, 0),) * 3)),
    "dilated": ((9, 8), window((2, 3), (2, 1), ((1, 0), (2, 2)), (1, 1), (3, 2))),
    "dilated base": ((4, 3), window((3, 3), (2, 1), ((1, 0), (1, 1)), (2, 3))),
    "empty": ((0, 4), window((1, 2), (1, 2), ((0, 0),) * 2)),
}


def windows() -> Iterator[Case]:
    for label, (shape, attrs) in WINDOWS.items():
        yield Case("reduce_window_sum", (real(*shape),), attrs, label)
        peer = "dilated" not in label
        few = label in ("tiles", "overlapping")
        for op in ("reduce_window_max", *(["reduce_window_min"] if few else [])):
            yield Case(op, (distinct(*shape),), attrs, label, peer=peer)
            # At ties JAX's second derivative reads from another element than its first wrote to.
            ties = f"{label}, ties"
            yield Case(op, (tied(*shape),), attrs, ties, kinks=True, peer=peer, orders=1)
    for label in ("tiles", "overlapping"):
        shape, attrs = WINDOWS[label]
        kept = {k: attrs[k] for k in ("window_dimensions", "window_strides", "padding")}
        yield from _selecting(shape, kept, attrs, label)
    shape, attrs = WINDOWS["dilated"]
    for select in ("ge", "le"):
        operands, name = (real(*shape), distinct(*shape)), {"select_prim": select}
        label = f"dilated, {select}"
        yield Case("select_and_gather_add", operands, attrs | name, label, wrt=(0,), peer=False)


def _selecting(shape, kept, attrs, label) -> Iterator[Case]:
    small = lax.reduce_window(np.zeros(shape), 0.0, lax.add, *list(kept.values())).shape
    for select in ("ge", "le"):
        name = {"select_prim": select}
        operands = positive(*small), distinct(*shape)
        yield Case("select_and_scatter_add", operands, kept | name, f"{label}, {select}", wrt=(0,))
        tangents = real(*shape), distinct(*shape)
        yield Case("select_and_gather_add", tangents, attrs | name, f"{label}, {select}", wrt=(0,))


CASES = (*gathers(), *scatters(), *dynamic(), *sorts(), *windows())
