"""Costs read from compiled programs, against counts by hand: loops, branches, products, collectives, memory."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.steerling.flops import block_causal_pairs
from steerling_jax.objectives.noise import NoiseConfig, two_copy_mask
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.aot.hlo import read_module, read_shapes
from steerling_jax.train.aot.hlo_costs import Costs, Traffic, costs_of
from steerling_jax.train.aot.hlo_groups import between_slices, groups
from steerling_jax.train.aot.programs import kernel_flops, own_flops, tiled_pairs
from steerling_jax.train.run.config_files import load_config

X, W = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
PRODUCT = 2 * 16 * 32 * 32


def compiled(function, *shapes) -> Costs:
    return costs_of(jax.jit(function).lower(*shapes).compile().as_text() or "")


def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    return jax.lax.scan(jax.checkpoint(layer), x, weights)[0].sum()


def test_a_loop_counts_as_often_as_it_runs() -> None:
    found = compiled(layers, X, W)
    assert found.flops == 5 * PRODUCT
    assert found.open_loops == 0


def test_recomputation_counts() -> None:
    """Forward, again in the backward pass, and two products back."""
    assert compiled(jax.grad(layers, (0, 1)), X, W).flops == 4 * 5 * PRODUCT


def test_a_loop_of_unknown_length_counts_once_and_is_told() -> None:
    def power(x: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, a: a @ a, x)

    found = compiled(power, jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    assert (found.flops, found.open_loops) == (2 * 8**3, 1)


def test_a_computation_for_a_sparse_core_ends_where_it_ends() -> None:
    text = """HloModule some

%apart (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %kernel = f32[4]{0} negate(%a), backend_config={"text": {
}}, metadata={op_name="its attributes fill several lines"}
  ROOT %twice = f32[4]{0} add(%a, %kernel)
}, execution_thread="sparsecore"

ENTRY %main (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  ROOT %c = f32[4]{0} negate(%b)
}
"""
    module = read_module(text)
    assert (set(module.computations), module.entry) == ({"apart", "main"}, "main")
    assert module.computations["apart"].root.name == "twice"


def test_the_costly_branch_counts() -> None:
    def either(yes: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.cond(yes, lambda a: a @ a @ a, lambda a: a @ a, x)

    shapes = jax.ShapeDtypeStruct((), jnp.bool_), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert compiled(either, *shapes).flops == 2 * 2 * 8**3


def test_products_with_batch_dimensions_and_convolutions() -> None:
    q = jax.ShapeDtypeStruct((2, 16, 3, 8), jnp.float32)
    assert compiled(lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k), q, q).flops == 2 * 2 * 3 * 16 * 16 * 8

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)
    program = jax.jit(convolve).lower(*shapes).compile()
    assert costs_of(program.as_text() or "").flops == (program.cost_analysis() or {})["flops"]


def entry(*lines: str, before: str = "") -> str:
    """A module whose entry has the parameter %p, bfloat16 (8, 4), and these instructions."""
    body = "\n".join(f"  {line}" for line in ("%p = bf16[8,4]{1,0} parameter(0)", *lines))
    return f"HloModule test\n\n{before}\n\nENTRY %main (p: bf16[8,4]) -> bf16[8,4] {{\n{body}\n}}\n"


COLLECTIVES = {
    "all-gather": ("bf16[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}", 256, 192),
    "start": ("(bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%p), replica_groups=[1,4]<=[4]", 512, 384),
    "all-reduce": ("bf16[8,4]{1,0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0)", 64, 64),
    "tuple": ("(bf16[8,4]{1,0}, bf16[8,4]{1,0}) all-reduce(%p, %p), replica_groups={}", 128, 224),
    "reduce-scatter": ("bf16[2,4]{1,0} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}", 64, 48),
    "all-to-all": ("bf16[8,4]{1,0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'a'}", 64, 32),
    "permute": (
        "(bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
        "source_target_pairs={{0,1},{1,0}}", 64, 64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives(name: str) -> None:
    line, size, sent = COLLECTIVES[name]
    found = costs_of(entry(f"ROOT %c = {line}, channel_id=1"), [0] * 8)
    assert list(found.collectives.values()) == [Traffic(1, size, sent, 0)]


def test_collectives_in_loops_and_between_slices() -> None:
    body = """%body (b: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %b = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = bf16[8,4]{1,0} get-tuple-element(%b), index=1
  %r = bf16[8,4]{1,0} all-reduce(%x), replica_groups={{0,2},{1,3}}, to_apply=%sum
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%next, %r)
}

%condition (c: (s32[], bf16[8,4])) -> pred[] {
  %c = (s32[], bf16[8,4]{1,0}) parameter(0)
  %n = s32[] constant(7)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%j, %n), direction=LT
}"""
    lines = (
        "%zero = s32[] constant(2)",
        "%t0 = (s32[], bf16[8,4]{1,0}) tuple(%zero, %p)",
        "ROOT %loop = (s32[], bf16[8,4]{1,0}) while(%t0), condition=%condition, body=%body",
    )
    found = costs_of(entry(*lines, before=body), [0, 0, 1, 1])
    # From 2 to below 7 in steps of 2, as where rounds were unrolled.
    assert found.collectives == {"all-reduce": Traffic(3, 3 * 64, 3 * 64, 3 * 64)}
    assert found.open_loops == 0
    assert costs_of(entry(*lines, before=body), [0] * 4).sent_between == 0


def test_a_collective_in_a_chain_of_fusions_counts_where_it_starts() -> None:
    def fusion(number: int, target: str) -> str:
        return f"""%part{number} (q: bf16[8,4]) -> bf16[32,4] {{
  %q = bf16[8,4]{{1,0}} parameter(0)
  %g = bf16[32,4]{{1,0}} all-gather(%q), replica_groups={{{{0,1,2,3}}}}, frontend_attributes={{chain_id="7"}}
  ROOT %c = bf16[32,4]{{1,0}} custom-call(%g), custom_call_target="{target}"
}}"""

    before = fusion(1, "AsyncCollectiveStart") + "\n\n" + fusion(2, "AsyncCollectiveDone")
    lines = [f"%f{number} = bf16[32,4]{{1,0}} fusion(%p), kind=kCustom, calls=%part{number}" for number in (1, 2)]
    found = costs_of(entry(*lines, before=before), [0] * 4)
    assert found.collectives == {"all-gather": Traffic(1, 256, 192, 0)}


def test_what_a_collective_gathers_beside_other_work_is_written_once() -> None:
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
    assert costs_of(entry(*lines, before=before), [0] * 4).memory == start + work + 64  # %q is read in both


def test_what_hosts_carry_between_slices() -> None:
    lines = (
        "%t = token[] after-all()",
        "%s = (bf16[8,4]{1,0}, u32[], token[]) send(%p, %t), channel_id=3, is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}',
    )
    found = costs_of(entry(*lines), [0, 0, 1, 1])
    assert found.collectives == {"all-reduce": Traffic(1, 64, 64, 64)}


def test_groups_of_a_part_of_an_axis() -> None:
    line = "ROOT %c = bf16[8,4]{1,0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}"
    one = read_module(entry(line)).computations["main"].root
    np.testing.assert_array_equal(groups(one, 8), [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert between_slices(groups(one, 8), [0, 0, 0, 0, 1, 1, 1, 1])
    assert not between_slices(groups(one, 8), [0] * 8)


def test_a_product_as_the_tpu_compiler_writes_it() -> None:
    """(3, 16, 8) by (3, 8, 5): the batch of 3 is a spatial dimension with holes, where 3 of 9 pairs meet."""
    lines = (
        "%a = bf16[3,16,8]{2,1,0} parameter(1)",
        "%b = bf16[3,5,8]{2,1,0} parameter(2)",
        "ROOT %c = f32[3,16,5]{2,1,0} convolution(%a, %b), window={size=3 stride=2 lhs_dilate=3}, "
        "dim_labels=0bf_0oi->0bf",
    )
    assert costs_of(entry(*lines)).flops == 2 * 3 * 16 * 8 * 5


def test_kernels_with_and_without_an_estimate() -> None:
    known = 'custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"640"}}'
    lines = (
        f"%k = bf16[8,4]{{1,0}} custom-call(%p), {known}",
        'ROOT %u = bf16[8,4]{1,0} custom-call(%k), custom_call_target="tpu_custom_call"',
    )
    found = costs_of(entry(*lines))
    assert (found.flops, found.kernels, found.unknown_kernels) == (640, 2, 1)


@pytest.mark.parametrize(("T", "block", "tile"), [(512, 64, 512), (512, 512, 512), (192, 24, 128), (384, 128, 256)])
def test_kernels_do_the_tiles_in_which_anything_is_seen(T: int, block: int, tile: int) -> None:
    at = jnp.arange(2 * T)
    for two_copies, seen in ((True, two_copy_mask(T, block)), (False, block_causal_mask(at, at, block))):
        tiles = np.asarray(seen).reshape(2 * T // tile, tile, 2 * T // tile, tile).any((1, 3))
        assert tiled_pairs(T if two_copies else 2 * T, block, two_copies) == tile**2 * tiles.sum()


def test_two_copies_in_kernels_are_more_than_twice_one() -> None:
    """Of n tiles a side each copy sees n (n + 1) / 2 of the clean copy, and the noisy one n of its own."""
    run = load_config("steerling_8b")
    assert (run.data.seq_len, run.compute.remat) == (4096, True)
    run = dataclasses.replace(run, objective=ObjectiveConfig(noise=NoiseConfig(clean_context=True)))
    own, pairs = own_flops("train", run, 1), 2 * block_causal_pairs(4096, run.model.diff_block_size)
    products = (2 + 2 + 4 + 3) / 2
    expected = own.attention / 3 * products * (8 * 9 + 8) * 512**2 / pairs
    np.testing.assert_allclose(kernel_flops("train", run, own), expected)


def test_memory_counts_slices_not_what_they_are_cut_from_and_nothing_on_the_chip() -> None:
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
    # The slice and the index; then p in and the sum out. The fusion's result stays on the chip.
    assert costs_of(entry(*lines, before=fused)).memory == (64 + 4) + (64 + 64)


ASYNCHRONOUS = {
    "permute": (
        "(bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)", "bf16[8,4]{1,0}",
        64 + 64,
    ),
    "onto the chip": (
        "(bf16[8,4]{1,0}, bf16[8,4]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)",
        "bf16[8,4]{1,0:S(1)}", 64,
    ),
    "all-gather": ("(bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%p)", "bf16[32,4]{1,0}", 64 + 256),
    "two": (
        "((bf16[8,4]{1,0}, bf16[8,4]{1,0}), (bf16[32,4]{1,0}, bf16[32,4]{1,0})) all-gather-start(%p, %p)",
        "(bf16[32,4]{1,0}, bf16[32,4]{1,0})", 2 * (64 + 256),
    ),
    "all-reduce": ("bf16[8,4]{1,0} all-reduce-start(%p)", "bf16[8,4]{1,0}", 64 + 64),
}  # fmt: skip


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_an_asynchronous_collective_reads_what_it_is_given_and_writes_what_it_makes(name: str) -> None:
    start, result, found = ASYNCHRONOUS[name]
    groups = "source_target_pairs={{0,1},{1,0}}" if "permute" in start else "replica_groups={{0,1,2,3}}"
    done = re.findall(r"[a-z-]+(?=-start)", start)[0] + "-done"
    lines = f"%s = {start}, channel_id=1, {groups}", f"ROOT %d = {result} {done}(%s)"
    assert costs_of(entry(*lines), [0] * 4).memory == found


def test_what_a_host_fetches_is_read_once() -> None:
    lines = (
        "%t = token[] after-all()",
        "%s = (bf16[8,4]{1,0}, u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true",
        "%sd = token[] send-done(%s), channel_id=1, is_host_transfer=true",
    )
    assert costs_of(entry(*lines)).memory == 64


def test_sizes_of_shapes() -> None:
    found = read_shapes("(f32[2,3]{1,0}, (pred[7]{0}, s4[4]{0}), bf16[]{:T(128)S(1)}, token[])")
    assert [array.bytes for array in found] == [24, 7, 2, 2, 0]
    assert [array.space for array in found] == [0, 0, 0, 1, 0]


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no compiled module"):
        costs_of("hello")
