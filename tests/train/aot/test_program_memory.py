"""HBM traffic of compiled programs, compared with counts by hand."""

from __future__ import annotations

import re

import pytest

from steerling_jax.train.aot.hlo import program_costs
from tests.worlds.hlo_text import hlo


def test_a_sliced_operand_counts_as_its_slices_and_on_chip_memory_does_not_count() -> None:
    fused = """%fused (q: bf16[100,4], i: s32[]) -> bf16[8,4] {
  %q = bf16[100,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = bf16[8,4]{1,0} dynamic-slice(%q, %i, %z), dynamic_slice_sizes={8,4}
  ROOT %n = bf16[8,4]{1,0} negate(%s)
}"""
    lines = (
        "%big = bf16[100,4]{1,0} parameter(1)",
        "%at = s32[] parameter(2)",
        "%f = bf16[8,4]{1,0:T(8,128)S(1)} fusion(%big, %at), kind=kLoop, calls=%fused",
        "ROOT %out = bf16[8,4]{1,0} add(%f, %p)",
    )
    # Read: the slice, the index and p; written: the sum. The result of the fusion is in on-chip memory.
    assert program_costs(hlo(*lines, before=fused)).memory == (64 + 4) + (64 + 64)


ASYNCHRONOUS = {
    "permute": (
        "(bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)",
        "bf16[8,4]{1,0}",
        64 + 64,
    ),
    "onto the chip": (
        "(bf16[8,4]{1,0}, bf16[8,4]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)",
        "bf16[8,4]{1,0:S(1)}",
        64,
    ),
    "all-gather": ("(bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%p)", "bf16[32,4]{1,0}", 64 + 256),
    "two": (
        "((bf16[8,4]{1,0}, bf16[8,4]{1,0}), (bf16[32,4]{1,0}, bf16[32,4]{1,0})) all-gather-start(%p, %p)",
        "(bf16[32,4]{1,0}, bf16[32,4]{1,0})",
        2 * (64 + 256),
    ),
    "all-reduce": ("bf16[8,4]{1,0} all-reduce-start(%p)", "bf16[8,4]{1,0}", 64 + 64),
}


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_an_asynchronous_collective_reads_its_operands_and_writes_its_results(name: str) -> None:
    start, result, expected = ASYNCHRONOUS[name]
    groups = "source_target_pairs={{0,1},{1,0}}" if "permute" in start else "replica_groups={{0,1,2,3}}"
    done = re.findall(r"[a-z-]+(?=-start)", start)[0] + "-done"
    lines = f"%s = {start}, channel_id=1, {groups}", f"ROOT %d = {result} {done}(%s)"
    assert program_costs(hlo(*lines), [0] * 4).memory == expected


def test_a_transfer_to_the_host_reads_its_operand_once() -> None:
    lines = (
        "%t = token[] after-all()",
        "%s = (bf16[8,4]{1,0}, u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true",
        "%sd = token[] send-done(%s), channel_id=1, is_host_transfer=true",
    )
    assert program_costs(hlo(*lines)).memory == 64


def test_the_buffer_of_an_overlapped_collective_is_written_once() -> None:
    gather = """%g = bf16[32,4]{1,0} all-gather(%q), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="7"}"""
    before = f"""%starts (q: bf16[8,4]) -> bf16[32,4] {{
  %q = bf16[8,4]{{1,0}} parameter(0)
  {gather}
  ROOT %c = bf16[32,4]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%beside (q: bf16[8,4], r: bf16[32,4], x: f32[16]) -> (f32[16], bf16[32,4]) {{
  %q = bf16[8,4]{{1,0}} parameter(0)
  %r = bf16[32,4]{{1,0}} parameter(1)
  {gather}
  %x = f32[16]{{0}} parameter(2)
  %y = f32[16]{{0}} add(%x, %x)
  ROOT %both = (f32[16]{{0}}, bf16[32,4]{{1,0}}) tuple(%y, %r)
}}"""
    lines = (
        "%s = bf16[32,4]{1,0} fusion(%p), kind=kCustom, calls=%starts",
        "%x = f32[16]{0} parameter(1)",
        "%b = (f32[16]{0}, bf16[32,4]{1,0}) fusion(%p, %s, %x), kind=kOutput, calls=%beside, "
        "output_to_operand_aliasing={{1}: (1, {})}",
    )
    start, work = 64 + 256, 64 + 64
    assert program_costs(hlo(*lines, before=before), [0] * 4).memory == start + work + 64  # %q is read in both


def test_sizes_of_arrays() -> None:
    """f32 (2, 3), pred (7,) and packed s4 (4,) in HBM; a bfloat16 number in memory space 1, on the chip; a token."""
    shape = "(f32[2,3]{1,0}, (pred[7]{0}, s4[4]{0}), bf16[]{:T(128)S(1)}, token[])"
    lines = f"%all = {shape} parameter(1)", "ROOT %out = bf16[8,4]{1,0} custom-call(%all)"
    assert program_costs(hlo(*lines)).memory == (24 + 7 + 2) + 64
