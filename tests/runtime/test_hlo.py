"""Collectives in XLA's text, in the notations of its versions."""

import pytest

from backpass.runtime.hlo import messages

TEXT = """HloModule jit_step, num_partitions=8

FileNames
1 "/lib/jax.py"
2 "/home/me/model.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=41 end_line=41 column=1 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=1}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = f32[4,8]{1,0} all-gather(%x), replica_groups=GROUPS, dimensions={0}, metadata={op_name="jit(step)/while/body/up/dot_general" stack_frame_id=2}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, metadata={op_name="jit(step)/backward/add" source_file="/home/me/model.py" source_line=7}
  %s = f32[2]{0} reduce-scatter(%a), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
  %p = f32[16]{0} collective-permute(%a), source_target_pairs={{0,1},{1,2}}
}
"""

ROWS = {frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})}
COLUMNS = {frozenset({i, i + 4}) for i in range(4)}
NOTATIONS = {
    "{{0,1,2,3},{4,5,6,7}}": ROWS,
    "[2,4]<=[8]": ROWS,
    "[4,2]<=[2,4]T(1,0)": COLUMNS,
    "mesh['a'=2,'b'=4] {'b'}": ROWS,
    "mesh['a'=2,'b'=4] {'a'}": COLUMNS,
    "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}": ROWS,
    "{}": {frozenset(range(8))},
}


@pytest.mark.parametrize("groups", NOTATIONS)
def test_groups(groups):
    gathered = messages(TEXT.replace("GROUPS", groups))[0]
    assert gathered.groups == NOTATIONS[groups]


def test_kinds_bytes_runs_and_lines():
    gather, reduce, scatter, permute = messages(TEXT.replace("GROUPS", "{}"))
    assert (gather.kind, gather.bytes, gather.count) == ("all-gather", 128, 3)
    assert gather.lines == (("/lib/jax.py", 3), ("/home/me/model.py", 41))
    assert (reduce.kind, reduce.bytes, reduce.count) == ("all-reduce", 16 + 12, 1)
    assert reduce.lines == (("/home/me/model.py", 7),) and "backward" in reduce.name
    assert (scatter.bytes, len(scatter.groups)) == (16, 4)
    assert permute.groups == {frozenset({0, 1}), frozenset({1, 2})}
