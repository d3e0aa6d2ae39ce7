"""What is read off a compiled program, on one small enough to count by hand."""

from memorizing_jax import program_costs

PROGRAM = """\
HloModule step, is_scheduled=true

%fused (param_0: f32[8,4], param_1: s32[]) -> f32[1,4] {
  %param_0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = f32[1,4]{1,0} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,4}
}

%condition (arg: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8), metadata={op_name="while/cond"}
  %arg = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (arg.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %stacked = f32[8,4]{1,0:T(8,128)} get-tuple-element(%arg.1), index=1
  %row = f32[1,4]{1,0:T(8,128)S(1)} fusion(%stacked, %i.1), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  %gathered = f32[2,4]{1,0:T(8,128)S(1)} all-gather(%row), dimensions={0}
  ROOT %next = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%i.1, %stacked)
}

ENTRY %main (given: f32[8,4]) -> bf16[8,4] {
  %given = f32[8,4]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%zero, %given)
  %loop = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%begin), condition=%condition, body=%body
  %last = f32[8,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %start = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)}) all-reduce-start(%last), to_apply=%condition
  %done = f32[8,4]{1,0:T(8,128)} all-reduce-done(%start)
  ROOT %rounded = bf16[8,4]{1,0:T(8,128)(2,1)} convert(%done)
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_turn():
    found = program_costs.costs(PROGRAM)
    # Eight turns of 100 cycles.
    assert found.cycles == 800
    assert found.open_loops == 0
    assert found.collectives == {"all-gather": (8, 8 * 32), "all-reduce": (1, 128)}
    # A turn reads one row of four and the counter; what it makes stays in fast memory.
    # The conversion at the end reads 128 bytes and writes 64.
    assert found.bytes_moved == 8 * (16 + 4) + 128 + 64


def test_a_loop_without_a_limit_is_told():
    unknown = PROGRAM.replace("direction=LT", "direction=NE")
    found = program_costs.costs(unknown)
    assert (found.open_loops, found.cycles) == (1, 100)


def test_sizes_of_shapes():
    shapes = "(bf16[3,5]{1,0:T(8,128)(2,1)}, pred[7], f32[], u32[2]{0:S(1)})"
    assert program_costs.num_bytes(shapes) == 30 + 7 + 4 + 8
    assert program_costs.num_bytes(shapes, large_memory_only=True) == 30 + 7 + 4
