"""FLOPs and collectives of compiled programs, compared with counts by hand; text that cannot be parsed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from steerling_jax.errors import UserError
from steerling_jax.train.aot.hlo import Costs, Traffic, program_costs
from tests.worlds.hlo_text import hlo

X, W = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
PRODUCT = 2 * 16 * 32 * 32


def compiled(function, *shapes) -> Costs:
    return program_costs(jax.jit(function).lower(*shapes).compile().as_text() or "")


def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    return jax.lax.scan(jax.checkpoint(layer), x, weights)[0].sum()


def test_the_body_of_a_loop_counts_as_often_as_it_runs() -> None:
    costs = compiled(layers, X, W)
    assert costs.flops == 5 * PRODUCT
    assert costs.open_loops == 0


def test_recomputation_is_counted() -> None:
    """One product in the forward pass, and in the backward pass the same again and two more."""
    assert compiled(jax.grad(layers, (0, 1)), X, W).flops == 4 * 5 * PRODUCT


def test_a_loop_whose_length_depends_on_data_counts_once_and_is_reported() -> None:
    def power(x: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, a: a @ a, x)

    costs = compiled(power, jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    assert (costs.flops, costs.open_loops) == (2 * 8**3, 1)


def test_the_costliest_branch_of_a_conditional_counts() -> None:
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
    assert program_costs(program.as_text() or "").flops == (program.cost_analysis() or {})["flops"]


COLLECTIVES = {
    "all-gather": ("bf16[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}", 256, 192),
    "start": ("(bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%p), replica_groups=[1,4]<=[4]", 512, 384),
    "all-reduce": ("bf16[8,4]{1,0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0)", 64, 64),
    "tuple": ("(bf16[8,4]{1,0}, bf16[8,4]{1,0}) all-reduce(%p, %p), replica_groups={}", 128, 224),
    "reduce-scatter": ("bf16[2,4]{1,0} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}", 64, 48),
    "part of an axis": ("bf16[8,4]{1,0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}", 64, 96),
    "all-to-all": ("bf16[8,4]{1,0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'a'}", 64, 32),
    "permute": (
        "(bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
        "source_target_pairs={{0,1},{1,0}}",
        64,
        64,
    ),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives(name: str) -> None:
    line, size, sent = COLLECTIVES[name]
    costs = program_costs(hlo(f"ROOT %c = {line}, channel_id=1"), [0] * 8)
    assert list(costs.collectives.values()) == [Traffic(1, size, sent, 0)]


def test_only_groups_with_members_in_several_slices_send_between_slices() -> None:
    line = "ROOT %c = bf16[8,4]{1,0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {AXES}"
    along = {axes: program_costs(hlo(line.replace("AXES", axes)), [0] * 4 + [1] * 4) for axes in ("'a'", "'b'")}
    assert (along["'a'"].sent_between, along["'b'"].sent_between) == (64, 0)


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
    costs = program_costs(hlo(*lines, before=body), [0, 0, 1, 1])
    # From 2 to below 7 in steps of 2, as in a loop that was unrolled.
    assert costs.collectives == {"all-reduce": Traffic(3, 3 * 64, 3 * 64, 3 * 64)}
    assert costs.open_loops == 0
    assert program_costs(hlo(*lines, before=body), [0] * 4).sent_between == 0


def test_a_collective_in_a_chain_of_fusions_counts_where_it_starts() -> None:
    def fusion(number: int, target: str) -> str:
        return f"""%part{number} (q: bf16[8,4]) -> bf16[32,4] {{
  %q = bf16[8,4]{{1,0}} parameter(0)
  %g = bf16[32,4]{{1,0}} all-gather(%q), replica_groups={{{{0,1,2,3}}}}, frontend_attributes={{chain_id="7"}}
  ROOT %c = bf16[32,4]{{1,0}} custom-call(%g), custom_call_target="{target}"
}}"""

    before = fusion(1, "AsyncCollectiveStart") + "\n\n" + fusion(2, "AsyncCollectiveDone")
    lines = [f"%f{number} = bf16[32,4]{{1,0}} fusion(%p), kind=kCustom, calls=%part{number}" for number in (1, 2)]
    costs = program_costs(hlo(*lines, before=before), [0] * 4)
    assert costs.collectives == {"all-gather": Traffic(1, 256, 192, 0)}


def test_collectives_between_slices_through_the_hosts() -> None:
    lines = (
        "%t = token[] after-all()",
        "%s = (bf16[8,4]{1,0}, u32[], token[]) send(%p, %t), channel_id=3, is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}',
    )
    costs = program_costs(hlo(*lines), [0, 0, 1, 1])
    assert costs.collectives == {"all-reduce": Traffic(1, 64, 64, 64)}


def test_a_product_as_the_tpu_compiler_writes_it() -> None:
    """(3, 16, 8) by (3, 8, 5): the batch of 3 is a dilated spatial dimension, where 3 of 9 pairs meet."""
    lines = (
        "%a = bf16[3,16,8]{2,1,0} parameter(1)",
        "%b = bf16[3,5,8]{2,1,0} parameter(2)",
        "ROOT %c = f32[3,16,5]{2,1,0} convolution(%a, %b), window={size=3 stride=2 lhs_dilate=3}, "
        "dim_labels=0bf_0oi->0bf",
    )
    assert program_costs(hlo(*lines)).flops == 2 * 3 * 16 * 8 * 5


def test_kernels_with_and_without_an_estimate() -> None:
    known = 'custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"640"}}'
    lines = (
        f"%k = bf16[8,4]{{1,0}} custom-call(%p), {known}",
        'ROOT %u = bf16[8,4]{1,0} custom-call(%k), custom_call_target="tpu_custom_call"',
    )
    costs = program_costs(hlo(*lines))
    assert (costs.flops, costs.kernels, costs.unknown_kernels) == (640, 2, 1)


def test_a_computation_for_a_sparse_core_ends_where_its_attributes_follow() -> None:
    text = """HloModule some

%apart (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %kernel = f32[4,4]{1,0} negate(%a), backend_config={"text": {
}}, metadata={op_name="its attributes fill several lines"}
  ROOT %product = f32[4,4]{1,0} dot(%a, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}, execution_thread="sparsecore"

ENTRY %main (b: f32[4,4]) -> f32[4,4] {
  %b = f32[4,4]{1,0} parameter(0)
  ROOT %c = f32[4,4]{1,0} call(%b), to_apply=%apart
}
"""
    assert program_costs(text).flops == 2 * 4**3


UNREADABLE = {
    "no program": ("hello", "no ENTRY computation"),
    "another form of instruction": (hlo("ROOT %c = negate %p as bf16[8,4]"), "parenthesis is not closed"),
    "an unknown computation": (hlo("ROOT %c = bf16[8,4]{1,0} fusion(%p), calls=%absent"), "KeyError: 'absent'"),
    "an unknown dtype": (hlo("%q = x9[8] parameter(1)", "ROOT %c = bf16[8,4]{1,0} negate(%q)"), "unknown dtype 'x9'"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_text_that_cannot_be_parsed_is_reported_with_what_to_do(name: str, monkeypatch, tmp_path: Path) -> None:
    """The message names the versions that the parser is for, and a file to report."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    text, reason = UNREADABLE[name]
    with pytest.raises(UserError, match=r"written for JAX .* and libtpu .*report it as a bug") as error:
        program_costs(text)
    assert reason in str(error.value)
    assert f"this is JAX {jax.__version__}" in str(error.value)
    (saved,) = tmp_path.iterdir()
    assert str(saved) in str(error.value)
    assert saved.read_text() == text
