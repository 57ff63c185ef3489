"""The step compiled without data, weights or TPUs, and the figures read from its program."""

import dataclasses
import gc
import importlib.util
import math
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from support.toy_run import MODEL, load_train
from unix_jax.data.config import DataConfig
from unix_jax.dry_run import dry_run, hlo, topology
from unix_jax.dry_run.dry_run import Memory, Report, compile_step, full_row
from unix_jax.dry_run.topology import check_arguments, parse_topology, topology_devices
from unix_jax.errors import ConfigError
from unix_jax.models.unix import param_shapes
from unix_jax.sharding import make_mesh
from unix_jax.training import flops
from unix_jax.training.accumulation import check_rows
from unix_jax.training.config import ModelConfig, TrainConfig, parse_arguments
from unix_jax.training.flops import peak_flops
from unix_jax.training.start import make_run_mesh

DATA = DataConfig(source="nowhere", rows=8, und_tokens=64, vit_images=2)
CONFIG = TrainConfig(stage="understanding", data=DATA, total_steps=2)
GENERATION = DataConfig(
    source="nowhere", task="generation", rows=8, und_tokens=64, vit_images=0, vae_images=2,
    vae_height=8, vae_width=8,
)  # fmt: skip

# What a program for TPUs looks like: a loop from 1 to 7 in steps of 2; in it a batched product (3
# of [4, 6] x [6, 5]) as a convolution full of gaps, a gather that two fusions name, a slice of a
# stack, and values on the chip, S(1).
PROGRAM = """HloModule jit_step
%gather_start (p.1: f32[2,8]) -> f32[8,8] {
  %p.1 = f32[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[8,8]{1,0} all-gather(%p.1), channel_id=3, GROUPS, dimensions={0}
}
%gather_done (p.2: f32[2,8]) -> f32[8,8] {
  %p.2 = f32[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[8,8]{1,0} all-gather(%p.2), channel_id=3, GROUPS, dimensions={0}
}
%slice (p.3: f32[10,2,8], p.4: s32[]) -> f32[1,2,8] {
  %p.3 = f32[10,2,8]{2,1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,2,8]{2,1,0} dynamic-slice(%p.3, %p.4, %zero, %zero)
}
%body (state: STATE) -> STATE {
  %state = STATE parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %stack = f32[10,2,8]{2,1,0} get-tuple-element(%state), index=1
  %left = bf16[3,4,6]{2,1,0:T(8,128)S(1)} get-tuple-element(%state), index=2
  %right = bf16[3,6,5]{2,1,0:T(8,128)S(1)} get-tuple-element(%state), index=3
  %two = s32[] constant(2)
  %next = s32[] add(%counter, %two)
  %part.1 = f32[1,2,8]{2,1,0:S(1)} fusion(%stack, %counter), kind=kLoop, calls=%slice
  %row = f32[2,8]{1,0:S(1)} bitcast(%part.1)
  %start = f32[8,8]{1,0:S(1)} fusion(%row), kind=kCustom, calls=%gather_start
  %product = bf16[3,4,5]{2,1,0} convolution(%left, %right), WINDOW, dim_labels=0bf_0io->0bf
  %done = f32[8,8]{1,0:S(1)} fusion(%row), kind=kCustom, calls=%gather_done
  ROOT %new = STATE tuple(%next, %stack, %left, %right)
}
%condition (state.1: STATE) -> pred[] {
  %bound = s32[] constant(7)
  %state.1 = STATE parameter(0)
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%counter.1, %bound), direction=LT
}
ENTRY %main (x: f32[10,2,8], y: bf16[3,4,6], z: bf16[3,6,5]) -> f32[10,2,8] {
  %x = f32[10,2,8]{2,1,0} parameter(0)
  %y = bf16[3,4,6]{2,1,0:T(8,128)S(1)} parameter(1)
  %z = bf16[3,6,5]{2,1,0:T(8,128)S(1)} parameter(2)
  %one = s32[] constant(1)
  %initial = STATE tuple(%one, %x, %y, %z)
  %loop = STATE while(%initial), condition=%condition, body=%body
  ROOT %out = f32[10,2,8]{2,1,0} get-tuple-element(%loop), index=1
}
"""
PROGRAM = PROGRAM.replace("WINDOW", "window={size=3 stride=2 lhs_dilate=3}").replace(
    "STATE",
    "(s32[], f32[10,2,8]{2,1,0}, /*index=2*/bf16[3,4,6]{2,1,0:T(8,128)S(1)}, "
    "bf16[3,6,5]{2,1,0:T(8,128)S(1)})",
)


def work_of_program(groups="replica_groups=mesh['a'=2,'b'=4] {'b'}"):
    return hlo.analyse(PROGRAM.replace("GROUPS", groups), 8)


def test_work_of_a_tpu_program():
    work = work_of_program()
    assert work.flops == 3 * (2 * 3 * 4 * 6 * 5)
    # One gather an iteration, though two fusions name it: the others of four send 64 bytes on.
    assert work.collectives == {"all-gather": (3, 3 * 3 * 64)}
    # The product is written to memory; of the stack one slice is read, of which 4 bytes say which.
    assert work.hbm_bytes == 3 * (3 * 4 * 5 * 2 + 64 + 4 + 12)


def test_arguments_are_checked_for_a_topology():
    for arguments in ([], ["config.py"], ["--topology"], ["--topology", "v5e:4x4", "--dry-run"]):
        check_arguments(arguments)
    for arguments in (["--topology", "v5e:3x"], ["config.py", "--topology=v5e:3x"]):
        with pytest.raises(ConfigError, match="v5e:3x"):
            check_arguments(arguments)


def test_permutes_of_one_channel_are_counted_one_by_one():
    shape = "(f32[8]{0}, f32[8]{0}, u32[], u32[])"
    permute = "channel_id=1, source_target_pairs={{0,1},{1,0}}"
    work = hlo.analyse(
        f"""HloModule jit_step
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %start = {shape} collective-permute-start(%x), {permute}
  %done = f32[8]{{0}} collective-permute-done(%start)
  %start.1 = {shape} collective-permute-start(%done), {permute}
  ROOT %done.1 = f32[8]{{0}} collective-permute-done(%start.1)
}}
""",
        2,
    )
    assert work.collectives == {"collective-permute": (2, 2 * 32)}


def test_what_a_collective_hands_through_a_fusion_does_not_move():
    """The shard and the gathered array pass through a product that runs beside the gather."""
    beside = """HloModule beside
%both (p.1: f32[4,4], p.2: f32[1,100], p.3: f32[8,100]) -> ALL {
  %p.1 = f32[4,4]{1,0} parameter(0)
  %p.2 = f32[1,100]{1,0} parameter(1)
  %p.3 = f32[8,100]{1,0} parameter(2)
  %twice = f32[4,4]{1,0} add(%p.1, %p.1)
  %gather = f32[8,100]{1,0} all-gather(%p.2), channel_id=1, replica_groups={}, dimensions={0}
  ROOT %all = ALL tuple(%twice, %p.2, %gather)
}
ENTRY %main (x: f32[4,4], y: f32[1,100], z: f32[8,100]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %y = f32[1,100]{1,0} parameter(1)
  %z = f32[8,100]{1,0} parameter(2)
  %fused = ALL fusion(%x, %y, %z), kind=kOutput, calls=%both
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%fused), index=0
}
""".replace("ALL", "(f32[4,4]{1,0}, f32[1,100]{1,0}, f32[8,100]{1,0})")
    work = hlo.analyse(beside, 8)
    assert work.hbm_bytes == 2 * 4 * 4 * 4
    assert work.collectives == {"all-gather": (1, 7 * 400)}


def test_the_longest_branch_counts():
    """Of a conditional, whose branches are named in a list or by truth."""
    program = """HloModule branches
%short (a: f32[4,4]) -> f32[4,4] {
  ROOT %a = f32[4,4]{1,0} parameter(0)
}
%long (b: f32[4,4]) -> f32[4,4] {
  %b = f32[4,4]{1,0} parameter(0)
  ROOT %product = f32[4,4]{1,0} dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (x: f32[4,4], which: TYPE) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %which = TYPE[] parameter(1)
  ROOT %out = f32[4,4]{1,0} conditional(%which, %x, %x), BRANCHES
}
"""
    for kind, branches in (
        ("s32", "branch_computations={%short, %long, %long}"),
        ("pred", "true_computation=%long, false_computation=%short"),
    ):
        text = program.replace("TYPE", kind).replace("BRANCHES", branches)
        assert hlo.analyse(text, 1).flops == 2 * 4 * 4 * 4


def test_work_of_a_kernel():
    """A kernel is counted as it says itself, and one that says nothing is not."""
    kernel = """HloModule kernels
ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %a = f32[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={COST}
  ROOT %b = f32[8,8]{1,0} custom-call(%a), custom_call_target="other"
}
"""
    cost = '"body":"x","cost_estimate":{"flops":"34","transcendentals":"6","bytes_accessed":"25"}'
    work = hlo.analyse(kernel.replace("COST", cost), 1)
    assert (work.flops, work.hbm_bytes) == (34, 25)


# Cut from a program of libtpu 0.0.42 for v5e:4x4 (a loop of 24 layers): a product, one of splash
# attention's kernels, a kernel of somebody else, a sum that everything waits for, and a gather that
# runs beside the product.
SCHEDULED = """HloModule scheduled
%product (p.1: bf16[64,128], p.2: bf16[128,128]) -> bf16[64,128] {
  %p.1 = bf16[64,128]{1,0} parameter(0)
  %p.2 = bf16[128,128]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,128]{1,0} convolution(%p.1, %p.2), dim_labels=bf_io->bf
}
%gather (p.3: bf16[8,128]) -> bf16[128,128] {
  %p.3 = bf16[8,128]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[128,128]{1,0} all-gather(%p.3), channel_id=3, replica_groups={}
}
%body (state: STATE) -> STATE {
  %state = STATE parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %part = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %query = bf16[4,16,640,128]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=3
  %mask = s8[1,1,1]{2,1,0:T(8,128)(4,1)} constant({...})
  %next_mask = s8[1,1,1]{2,1,0:T(8,128)(4,1)} constant({...})
  %one = s32[] constant(1)
  %next = s32[] add(%counter, %one)
  %start = ((bf16[8,128]{1,0}), bf16[128,128]{1,0}) async-start(%part), calls=%gather
  %kernel = bf16[128,128]{1,0} async-done(%start), calls=%gather
  %fusion.1 = bf16[64,128]{1,0} fusion(%x, %kernel), kind=kOutput, calls=%product, CYCLES
  %splash_mha_dkv_segmented_no_residuals.3 = bf16[4,16,640,128] custom-call(QUERIES), KERNEL
  %their_kernel.7 = f32[8]{0} custom-call(%query), KERNEL
  %no_kernel = s32[8]{0} custom-call(%x), custom_call_target="AssumeGatherIndicesInBound"
  %summed = bf16[64,128]{1,0} all-reduce(%fusion.1), channel_id=4, replica_groups={}, to_apply=%add
  ROOT %new = STATE tuple(%next, %summed, %part, %query)
}
%condition (state.1: STATE) -> pred[] {
  %bound = s32[] constant(24)
  %state.1 = STATE parameter(0)
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%counter.1, %bound), direction=LT
}
ENTRY %main (x.1: bf16[64,128], y: bf16[8,128], z: bf16[4,16,640,128]) -> bf16[64,128] {
  %x.1 = bf16[64,128]{1,0} parameter(0)
  %y = bf16[8,128]{1,0} parameter(1)
  %z = bf16[4,16,640,128]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %copy.1 = bf16[64,128]{1,0} copy(%x.1), FEWER
  %zero = s32[] constant(0)
  %initial = STATE tuple(%zero, %copy.1, %y, %z)
  %loop = STATE while(%initial), condition=%condition, body=%body
  ROOT %out = bf16[64,128]{1,0} get-tuple-element(%loop), index=1
}
"""
SCHEDULED = SCHEDULED.replace("QUERIES", "%mask, %next_mask, %query, %query, %query")
SCHEDULED = SCHEDULED.replace("KERNEL", 'custom_call_target="tpu_custom_call"')
SCHEDULED = SCHEDULED.replace(
    "FEWER", 'backend_config={"window_config":{"estimated_cycles":"500"}}'
)
SCHEDULED = SCHEDULED.replace(
    "CYCLES",
    'backend_config={"flag_configs":[],"window_config":{"kernel_window_bounds":["16","1"],'
    '"estimated_cycles":"1238500","iteration_bounds":["1","24"]},"retry_config":{}}',
).replace("STATE", "(s32[], bf16[64,128]{1,0}, bf16[8,128]{1,0}, bf16[4,16,640,128]{3,2,1,0})")


def test_cycles_of_a_program():
    """XLA's own estimate with its loops multiplied out, and what it has none of."""
    work = hlo.analyse(SCHEDULED, 16)
    assert work.cycles == 500 + 24 * 1_238_500
    # Four products of [640, 128] x [128, 640] for each of 4 x 16 heads.
    assert work.kernel_flops == 24 * 4 * (4 * 16) * (2 * 640 * 640 * 128)
    assert work.flops == work.kernel_flops + 24 * 2 * 64 * 128 * 128
    assert work.silent == {"their_kernel": 24}
    # The sum alone is waited for: of 16 devices each sends 15/16 of it twice.
    assert work.waiting_bytes == 24 * (2 * 15 / 16) * 64 * 128 * 2
    assert set(work.collectives) == {"all-reduce", "all-gather"}


def test_products_of_attention_kernels():
    """One that gives the gradients of queries, too, has a product more."""
    alone = "%splash_mha_dkv_segmented_no_residuals.3 = bf16[4,16,640,128]"
    shape = "bf16[4,16,640,128]"
    fused = alone.replace(shape, f"(bf16[4,1,16,640,128], {shape}, {shape})")
    assert alone in SCHEDULED
    together = hlo.analyse(SCHEDULED.replace(alone, fused), 16)
    assert together.kernel_flops / hlo.analyse(SCHEDULED, 16).kernel_flops == 5 / 4
    # One row on each device has no axis of rows.
    for text in (SCHEDULED, SCHEDULED.replace(alone, fused)):
        one = text.replace("[4,16,640,128]{3,2,1,0", "[16,640,128]{2,1,0")
        one = one.replace("[4,16,640,128]", "[16,640,128]").replace("[4,1,16,", "[1,16,")
        ratio = hlo.analyse(text, 16).kernel_flops / hlo.analyse(one, 16).kernel_flops
        assert ratio == 4


def test_a_program_without_cycles():
    assert work_of_program().cycles == 0


def test_work_of_a_compiled_program():
    """Loops count as often as they run, forward and backward."""
    mesh = make_mesh(data=8)
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def loss(weights, x):
        y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
        return jnp.square(y).sum()

    with jax.set_mesh(mesh):
        weights = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
        x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=rows)
        compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile()
    work = hlo.analyse(compiled.as_text(), 8)
    # Of each layer: forward, and backward the weights' gradient and the rows'.
    assert work.flops == 5 * 3 * (2 * 4 * 16 * 16)
    count, sent = work.collectives["all-reduce"]
    assert count in (1, 5)
    assert sent == 2 * 7 / 8 * 5 * 16 * 16 * 4
    assert work.hbm_bytes > 0


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", 8),
        ("replica_groups=mesh['x'=8] {'x':(2)4}", 4),
        ("replica_groups={}", 8),
    ],
)
def test_group_sizes(groups, size):
    assert work_of_program(groups).sent_bytes == 3 * (size - 1) * 64


def test_full_rows():
    """As many images as fit, with text around them, all of it predicted."""
    row = full_row(DATA, MODEL)
    counts = flops.count(row, MODEL)
    assert (counts.vit_images, counts.und_tokens) == (2, 64)
    assert row.vit_pixels.shape == (1, 2, 16, 16, 3)
    assert counts.text_losses > 0

    row = full_row(GENERATION, MODEL)
    counts = flops.count(row, MODEL)
    assert (counts.vae_images, counts.gen_tokens) == (2, GENERATION.gen_tokens(MODEL))
    assert row.mse_weights.all()
    assert row.noised.all()

    for data in (DATA, GENERATION):
        gray = full_row(dataclasses.replace(data, grayscale=True), MODEL)
        pixels = gray.vit_pixels if gray.vae_pixels is None else gray.vae_pixels
        assert (pixels.shape[-1], pixels.dtype) == (1, np.uint8)

    few = dataclasses.replace(DATA, und_tokens=9)
    assert flops.count(full_row(few, MODEL), MODEL).vit_images == 1
    with pytest.raises(ConfigError, match="und_tokens"):
        full_row(dataclasses.replace(DATA, und_tokens=5), MODEL)
    precomputed = dataclasses.replace(GENERATION, moments="nowhere")
    assert full_row(precomputed, MODEL).vae_moments.shape[-1] == 2 * MODEL.vae.embed_dim


@pytest.mark.extended
def test_step_on_local_devices():
    """The report of fsdp=8: sharded arguments, the collectives of it, and nothing allocated."""
    gc.collect()
    before = len(jax.live_arrays())
    report = compile_step(CONFIG, MODEL, make_mesh(fsdp=8))
    gc.collect()
    assert len(jax.live_arrays()) == before
    assert report.devices == 8
    assert "all-gather" in report.work.collectives
    # Master, mean and two moments of a weight, of which each device has its part.
    whole = 4 * 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(param_shapes(MODEL)))
    assert report.memory.arguments < 0.5 * whole
    assert report.memory.aliased > 0
    # The model's products are all in the program, with those that remat repeats.
    assert report.model_flops < report.work.flops < 3 * report.model_flops
    assert report.fits is None
    assert report.bounds() == {}
    assert "mesh data=1,fsdp=8,tensor=1" in "\n".join(report.lines())


@pytest.mark.extended
def test_autoencoder_step():
    """A step of another kind than the model's."""
    data = dataclasses.replace(GENERATION, und_tokens=2, vae_images=1)
    config = dataclasses.replace(CONFIG, stage="autoencoder", data=data)
    report = compile_step(config, MODEL, make_mesh(devices=jax.devices()[:1]))
    assert report.work.collectives == {}
    assert report.model_flops > 0
    assert report.memory.total > 0


@pytest.mark.extended
@pytest.mark.parametrize(
    "accumulation", [*(pytest.param(n, marks=pytest.mark.extended) for n in (1, 2)), 8]
)
@pytest.mark.parametrize("stage", ["understanding", "generation"])
def test_validation_takes_no_more_memory_than_training(stage, accumulation):
    data = DATA if stage == "understanding" else GENERATION
    config = TrainConfig(
        stage=stage, data=data, total_steps=2, accumulation=accumulation, validate_every=1
    )
    report = compile_step(config, MODEL, make_mesh(devices=jax.devices()[:1]))
    assert report.validation.total <= report.memory.total
    assert report.peak == report.memory.total
    assert report.validation.arguments >= report.memory.arguments
    assert "validation " in "\n".join(report.lines())


def test_the_larger_step_is_reported():
    device = type("Device", (), {"device_kind": "TPU v5 lite"})()
    small, large = Memory(2**30, 0, 0, 0, 0), Memory(2**34, 0, 0, 0, 0)
    report = Report(1, device, {"fsdp": 1}, 1.0, small, hlo.Work(1, 1, {}), 1.0, 0.0)
    assert report.fits
    assert "validation   none: validate_every is 0" in report.lines()
    report = dataclasses.replace(report, validation=large)
    assert not report.fits
    assert "memory       16.00 GiB of 15.75 GiB: DOES NOT FIT" in report.lines()


def test_rows_that_do_not_divide():
    with pytest.raises(ConfigError, match="multiple of 16 rows"):
        compile_step(dataclasses.replace(CONFIG, accumulation=2), MODEL, make_mesh(fsdp=8))


@pytest.mark.parametrize(
    ("rows", "accumulation", "mesh", "advice"),
    [
        # Accumulation alone.
        (16, 4, {"fsdp": 8}, ["--accumulation 2: the same batch"]),
        (24, 4, {"data": 8}, ["--accumulation 3: the same batch"]),
        # Fewer parts, or more rows.
        (
            4,
            4,
            {"data": 2, "fsdp": 4},
            [
                "--accumulation 1 --mesh data=2,fsdp=2,tensor=2: the same batch",
                "--accumulation 1 --data.rows 8: a batch of 8 rows instead of 4; adjust",
            ],
        ),
        (3, 1, {"fsdp": 8}, ["--accumulation 1 --data.rows 8: a batch of 8 rows instead of 3"]),
    ],
)
def test_options_that_fit(rows, accumulation, mesh, advice):
    with pytest.raises(ConfigError) as caught:
        check_rows(rows, accumulation, make_mesh(**mesh), heads=2)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith(f"found {rows}. Options that fit:")
    assert len(lines) == len(advice)
    for line, expected in zip(lines, advice, strict=True):
        assert line.startswith(f"  {expected}")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 600), k=st.integers(1, 9), fsdp=st.integers(1, 8), heads=st.integers(1, 8)
)
def test_the_options_do_fit(rows, k, fsdp, heads):
    """Every line is a command line that would not be refused."""
    mesh = jax.sharding.AbstractMesh((2, fsdp, 1), ("data", "fsdp", "tensor"))
    try:
        check_rows(rows, k, mesh, heads=heads)
    except ConfigError as error:
        lines = str(error).splitlines()[1:]
        assert lines
        for line in lines:
            words = line.split(":")[0].split()
            options = dict(zip(words[::2], words[1::2], strict=True))
            axes = dict(part.split("=") for part in options.get("--mesh", "").split(",") if part)
            sizes = [int(axes.get(name, size)) for name, size in mesh.shape.items()]
            assert math.prod(sizes) == mesh.size
            assert heads % sizes[2] == 0
            changed = jax.sharding.AbstractMesh(tuple(sizes), mesh.axis_names)
            asked = int(options.get("--data.rows", rows))
            assert asked >= rows
            check_rows(asked, int(options["--accumulation"]), changed, heads=heads)


def test_a_kernel_that_the_devices_do_not_have():
    config = dataclasses.replace(CONFIG, model=ModelConfig(attention="cudnn"))
    with pytest.raises(ConfigError, match=r"expected an NVIDIA GPU .* found cpu, float32 and"):
        compile_step(config, MODEL, make_mesh(devices=jax.devices()[:1]))


def test_report_of_a_chip():
    """Bounds and verdict from the table."""
    device = type("Device", (), {"device_kind": "TPU v5 lite"})()
    work = hlo.Work(197e12, 819e9 / 2, {"all-reduce": (3, 180e9 / 4)})
    memory = Memory(8 * 2**30, 4 * 2**30, 4 * 2**30, 7 * 2**30, 0)
    report = Report(16, device, {"fsdp": 16}, 1.0, memory, work, 197e12 / 2, 0.0)
    assert report.bounds() == pytest.approx({"compute": 1.0, "HBM": 0.5, "ICI": 0.25})
    assert report.fits
    text = "\n".join(report.lines())
    assert "15.00 GiB of 15.75 GiB: fits" in text
    assert "below 50.0%" in text
    assert "no estimate: XLA states no cycles" in text
    larger = dataclasses.replace(report, memory=dataclasses.replace(memory, temporaries=2**33))
    assert not larger.fits
    assert "DOES NOT FIT" in "\n".join(larger.lines())


def test_report_with_an_estimate():
    """A second by XLA, half a second of kernels at half of the peak, a quarter of waiting."""
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    work = hlo.Work(
        197e12, cycles=1.5e9, kernel_flops=197e12 / 4, waiting_bytes=180e9 / 4, silent={"mine": 3}
    )
    memory = Memory(0, 0, 0, 2**30, 0)
    report = Report(16, device, {"fsdp": 16}, 1.0, memory, work, 197e12 / 2, 0.0)
    assert report.estimate() == pytest.approx({"XLA": 1.0, "kernels": 0.5, "waiting": 0.25})
    text = "\n".join(report.lines())
    assert "estimated 1750 ms (XLA 1000 ms, kernels 500 ms, waiting 250 ms)" in text
    assert "at least 1000 ms" in text
    assert "MFU          estimated 28.6%; below 50.0%" in text
    assert "not included: kernels that state no cost (3 x mine)" in text


def test_clocks_and_peaks_agree():
    """A cycle of a matrix unit of n x n is 2 n^2 FLOPs."""
    per_cycle = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2}
    for name, chip in topology.CHIPS.items():
        products = per_cycle.get(name, 4 * 256**2)
        assert chip.flops == pytest.approx(chip.clock * products * 2, rel=0.01)


def write_config(path):
    path.write_text(
        "from unix_jax.data.config import DataConfig\n"
        "from unix_jax.training.config import ModelConfig, TrainConfig\n"
        "config = TrainConfig(stage='generation', total_steps=2, mesh='data=1',\n"
        "    model=ModelConfig(preset='tiny'), data=DataConfig(source='nowhere', rows=2,\n"
        "    task='generation', und_tokens=64, vit_images=0, vae_images=2, vae_height=32,\n"
        "    vae_width=32, moments='nowhere'))\n"
    )
    return path


@pytest.mark.slow
def test_script(tmp_path, capsys):
    """Needs neither data, tokenizer nor a directory, and writes nothing."""
    path = write_config(tmp_path / "config.py")
    assert load_train().main([str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "compiled for 1 x cpu" in out
    assert "no bounds" in out
    assert list(tmp_path.iterdir()) == [path]


def test_arguments(tmp_path):
    path = str(write_config(tmp_path / "config.py"))
    assert parse_arguments([path, "--dry-run", "--topology", "v5e:4x4"]).topology == "v5e:4x4"
    with pytest.raises(ConfigError, match="expected --dry-run"):
        parse_arguments([path, "--out", "x", "--topology", "v5e:4x4"])
    with pytest.raises(SystemExit):
        parse_arguments([path])


@pytest.mark.parametrize(
    ("text", "chip", "sizes", "count"),
    [
        ("v4:2x2x1", "v4", (2, 2, 1), 1),
        ("v5e:4x4", "v5e", (4, 4), 1),
        ("v5e:16x16", "v5e", (16, 16), 1),
        ("v5p:2x2x2", "v5p", (2, 2, 2), 1),
        ("v5p:16x20x28", "v5p", (16, 20, 28), 1),
        ("v6e:8x8", "v6e", (8, 8), 1),
        ("trillium:8x8", "v6e", (8, 8), 1),
        ("Trillium:8x8", "v6e", (8, 8), 1),
        ("v5litepod:1x1", "v5e", (1, 1), 1),
        ("v7x:2x2x1", "v7x", (2, 2, 1), 1),
        ("tpu7x:4x4x4", "v7x", (4, 4, 4), 1),
        ("ironwood:2x2x2", "v7x", (2, 2, 2), 1),
        ("2xv5e:4x4", "v5e", (4, 4), 2),
        ("16xtrillium:16x16", "v6e", (16, 16), 16),
    ],
)
def test_topologies(text, chip, sizes, count):
    found = parse_topology(text)
    assert (found.chip.name, found.sizes, found.count) == (chip, sizes, count)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "another form"),
        ("v5e", "another form"),
        ("v5e-16", "another form"),
        ("v5e:4x", "another form"),
        ("xv5e:4x4", "the chip 'xv5e'"),
        ("v3:2x2", "the chip 'v3'"),
        ("v5e:4", "1 dimensions"),
        ("v5e:4x4x4", "3 dimensions"),
        ("v5p:2x2", "2 dimensions"),
        ("v5e:0x4", "a slice of 0x4 chips"),
        ("v5e:3x4", "a slice of 3x4 chips"),
        ("v5e:32x32", "a slice of 32x32 chips"),
        ("v4:20x4x4", "a slice of 20x4x4 chips"),
        ("0xv5e:4x4", "0 slices"),
        ("1000xv5e:4x4", "1000 slices"),
    ],
)
def test_unknown_topologies(text, found):
    with pytest.raises(ConfigError) as caught:
        parse_topology(text)
    message = str(caught.value)
    assert f"found {found} in {text!r}" in message
    for known in (*topology.CHIPS, *topology.ALIASES):
        assert known in message


@pytest.mark.parametrize("argument", [["--topology", "v9:2x2"], ["--topology=v9:2x2"]])
def test_a_topology_is_checked_before_jax_is_loaded(argument):
    """By the command itself: JAX takes seconds to load."""
    code = (
        "import sys\n"
        "from unix_jax import cli\n"
        "code = cli.main(['train', 'nowhere.py', '--dry-run', *sys.argv[1:]])\n"
        "sys.exit(code if 'jax' not in sys.modules else 3)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *argument], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert ran.stderr.startswith("error: topology: expected a TPU slice such as v5e:4x4")
    assert "Traceback" not in ran.stderr


def test_every_chip_is_known_by_its_devices():
    for chip in topology.CHIPS.values():
        for kind in chip.kinds:
            device = types.SimpleNamespace(device_kind=kind)
            assert topology.chip_of(device) is chip
            assert peak_flops(device) == chip.flops


class UnreadableProgram:
    """A compiled program of which a compiler returns memory and no usable text."""

    def __init__(self, program, text):
        self.program, self.text = program, text

    def as_text(self):
        if isinstance(self.text, Exception):
            raise self.text
        return self.text

    def memory_analysis(self):
        return self.program.memory_analysis()

    def cost_analysis(self):
        return self.program.cost_analysis()


@pytest.fixture(scope="module")
def compiled_once():
    """Compiles the training and the validation step at its first two calls alone."""
    compiled: dict = {}

    def compile_(name, *given):
        if name not in compiled:
            compiled[name] = original(name, *given)
        return compiled[name]

    original = dry_run._compile
    return compile_


@pytest.mark.parametrize(
    "text",
    [
        None,
        "ENTRY %main () -> f32[] {\n  %a = f32[] dot(%b, %c)\n}\n",
        *(
            pytest.param(text, marks=pytest.mark.extended)
            for text in (
                "",
                jax.errors.JaxRuntimeError("UNIMPLEMENTED: no text"),
                RuntimeError("no text"),
                "HloModule x\n",
                "ENTRY %main () -> f32[] {\n  %a = f32[]\n}\n",
                "ENTRY %main () -> f32[] {\n  %a = f32[] fusion(), calls=%unknown\n}\n",
            )
        ),
    ],
)
def test_a_program_that_cannot_be_read_reports_its_memory(text, monkeypatch, compiled_once):
    monkeypatch.setattr(
        dry_run, "_compile", lambda *given: UnreadableProgram(compiled_once(*given), text)
    )
    report = compile_step(CONFIG, MODEL, make_mesh(devices=jax.devices()[:1]))
    assert isinstance(report.work, str)
    assert report.bounds() == {}
    lines = report.lines()
    assert any(line.startswith("memory ") for line in lines)
    assert lines[-1].startswith("no traffic and no bounds: the program cannot be read (")
    assert report.memory.total > 0


def test_what_leaves_a_slice_is_counted_apart():
    """A sum over two slices: the device hands its part to the host, which exchanges it."""
    program = """HloModule slices
ENTRY %main (x: f32[64,8]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[64,8]{1,0}, u32[], token[]) send(%x, %after-all), channel_id=2, FRONTEND
  %recv = (f32[64,8]{1,0}, u32[], token[]) recv(%after-all), channel_id=1, FRONTEND
  %recv-done = (f32[64,8]{1,0}, token[]) recv-done(%recv), channel_id=1
  ROOT %sum = f32[64,8]{1,0} get-tuple-element(%recv-done), index=0
}
""".replace(
        "FRONTEND",
        'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
    )
    work = hlo.analyse(program, 32, 4)
    assert work.collectives == {}
    assert work.between_slices == {"all-reduce": (1, 2 * 3 / 4 * 64 * 8 * 4)}
    assert work.slice_bytes == 2 * 3 / 4 * 64 * 8 * 4
    device = type("Device", (), {"device_kind": "TPU v5 lite"})()
    memory = Memory(2**30, 0, 0, 0, 0)
    report = Report(32, device, {"data": 4}, 1.0, memory, work, 1.0, 0.0, slices=4)
    assert report.bounds()["DCN"] == pytest.approx(work.slice_bytes / 3.125e9)
    text = "\n".join(report.lines())
    assert "32 x TPU v5 lite in 4 slices" in text
    assert "to slices " in text


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install unix-jax\[tpu\]"):
        topology_devices("v5e:4x4")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)"
)


@needs_libtpu
@pytest.mark.parametrize(
    ("text", "devices", "mesh"),
    [
        ("v4:2x2x4", 16, {"data": 1, "fsdp": 16}),
        ("v5e:4x4", 16, {"data": 1, "fsdp": 16}),
        ("v5p:2x2x2", 8, {"data": 1, "fsdp": 8}),
        ("trillium:8x8", 64, {"data": 1, "fsdp": 64}),
        ("v7x:2x2x2", 16, {"data": 1, "fsdp": 16}),
        ("2xv5e:4x4", 32, {"data": 2, "fsdp": 16}),
        ("4xv4:2x2x1", 16, {"data": 4, "fsdp": 4}),
    ],
)
def test_devices_of_topologies(text, devices, mesh):
    found = topology_devices(text)
    assert len(found) == devices
    assert topology.chip_of(found[0]) is parse_topology(text).chip
    made = make_run_mesh(None, MODEL, found)
    assert {axis: made.shape[axis] for axis in mesh} == mesh
    # Only the data axis leaves a slice.
    for one in made.devices.reshape(mesh["data"], -1):
        assert len({getattr(device, "slice_index", 0) for device in one}) == 1
    assert make_run_mesh(f"data={devices // 4},fsdp=2,tensor=2", MODEL, found).size == devices


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("text", ["v5e:2x2", "2xv5e:2x2"])
def test_step_for_a_topology(text):
    """A TPU's program: bfloat16, and attention as a TPU takes it."""
    slices = parse_topology(text).count
    mesh = make_run_mesh(None, MODEL, topology_devices(text))
    config = dataclasses.replace(CONFIG, model=ModelConfig(preset="tiny"))
    report = compile_step(config, MODEL, mesh)
    assert report.fits
    assert set(report.bounds()) == {"compute", "HBM", "ICI", *(["DCN"] if slices > 1 else [])}
    assert (report.work.slice_bytes > 0) == (slices > 1)
    assert report.work.collectives
    assert report.model_flops < 4 * report.work.flops
    assert np.isfinite(report.memory.total)
    text = "\n".join(report.lines())
    assert f"{4 * slices} x TPU v5 lite" in text
    assert "MFU" in text
