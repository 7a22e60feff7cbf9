"""A step compiled for a machine that need not be here, and what is read off it."""

import importlib.util
import json
import os
import re

import jax
import jax.numpy as jnp
import pytest
from helpers.commands import error_of, run_command

from benchmarks import compiled, precision
from jaxablate.errors import ConfigError
from jaxablate.ops import normalization
from jaxablate.training import hlo, plan

CONFIG = """
from jaxablate.config import *
def get_config():
    return Config(
        model=ModelConfig(vocab_size=30, context_length=8, d_model=8, n_layers=1, n_heads=2, ablation="none"),
        data=DataConfig(source="text", train_path="/there/is/no/such/file", valid_path="/nor/this"),
        train=TrainConfig(batch_size=8, sequence_length=8))
"""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A config file whose data does not exist, in an empty working directory."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return "train", "--config", path, "--plan"


def test_a_plan_for_here_says_what_is_needed_and_reads_and_writes_nothing(planned, tmp_path, capsys):
    run_command(*planned)
    out = capsys.readouterr().out
    assert all(part in out for part in (
        "tiny on here: 8 x cpu, mesh data=8 fsdp=1 tensor=1", "batch of 8 x 8 tokens", "memory of a device",
        "1,168 numbers in all", "temporaries", "a step of a device", "kernels", "model's arithmetic", "all-reduce",
        "at best", "no data sheet of 8 x cpu")), out
    assert max(map(len, out.splitlines())) <= 80
    assert not list((tmp_path / "empty").iterdir())


def test_a_step_that_does_not_fit_says_what_to_change(planned, capsys, monkeypatch):
    monkeypatch.setattr(plan, "device_memory", lambda devices: 1000)
    line = error_of(capsys, *planned, "--mesh.data", "4")
    assert line.endswith("does not fit a device of here; try --model.remat blocks, "
                         "--train.accumulation-steps 2, --mesh.fsdp 4, --train.batch-size 4, more devices")


@pytest.mark.parametrize(("target", "message"), [
    ("v5f:4x4", "target 'v5f:4x4' is unknown; did you mean v5e:4x4? There are here, v5e:4x4, "),
    ("h10:8", "did you mean h100:8?"),
    ("there", "did you mean here?"),
    ("h100:12", "must be h100:N, with 1 to 8 GPUs or a multiple of 8, such as h100:8"),
    ("h100", "must be h100:N"),
])
def test_a_target_that_is_unknown_is_told_with_the_nearest(planned, capsys, target, message):
    assert message in error_of(capsys, *planned, "--target", target)


@pytest.mark.parametrize(("target", "fix"), [("v5e:4x4", "jax[tpu]=="), ("h100:8", "jax[cuda13]==")])
def test_a_compiler_that_is_missing_is_told_with_how_to_install_it(planned, capsys, monkeypatch, target, fix):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    line = error_of(capsys, *planned, "--target", target)
    assert f"target {target} needs a compiler that is not installed; pip install" in line and fix in line


def test_what_a_plan_cannot_know_or_do_is_refused(planned, capsys):
    assert "give --model.vocab-size" in error_of(capsys, "train", "--config", "sst2", "--plan")
    assert "mesh.fsdp=3 times mesh.tensor=1 must divide the 8 devices" in error_of(capsys, *planned, "--mesh.fsdp", "3")
    assert "give --plan, too" in error_of(capsys, *planned[:3], "--workdir", "w", "--target", "v5e:4x4")


tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
                         reason="the TPU compiler (libtpu, an extra of jax) is not installed")


@tpu
def test_a_plan_for_a_tpu_slice(planned, capsys):
    run_command(*planned, "--target", "v5e:2x2", "--mesh.fsdp", "4")
    out = capsys.readouterr().out
    assert "4 x TPU v5 lite, mesh data=1 fsdp=4 tensor=1" in out and "of 16.9 GB: fits" in out
    assert "all-gather" in out and "819 GB/s a device, the limit" in out
    line = error_of(capsys, *planned, "--target", "v5e:3x3")
    assert "no slice that the TPU compiler knows" in line and "give one such as v5e:4x4" in line


LOOP = """HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%slice.fused (p.0: bf16[5,4,8], p.1: s32[]) -> bf16[4,8] {
  %p.0 = bf16[5,4,8]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = bf16[1,4,8]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %w.1 = bf16[4,8]{1,0} bitcast(%part)
}

%body (state: (s32[], bf16[5,4,8], bf16[2,8])) -> (s32[], bf16[5,4,8], bf16[2,8]) {
  %state = (s32[], bf16[5,4,8]{2,1,0}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %ws = bf16[5,4,8]{2,1,0} get-tuple-element(%state), index=1
  %x.1 = bf16[2,8]{1,0} get-tuple-element(%state), index=2
  %w = bf16[4,8]{1,0} fusion(%ws, %i), kind=kLoop, calls=%slice.fused
  %gathered-start = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%w), channel_id=1, dimensions={0}
  %gathered = bf16[8,8]{1,0} all-gather-done(%gathered-start)
  %out = bf16[2,8]{1,0} dot(%x.1, %gathered), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], bf16[5,4,8]{2,1,0}, bf16[2,8]{1,0}) tuple(%i, %ws, %out)
}

%condition (state.1: (s32[], bf16[5,4,8], bf16[2,8])) -> pred[] {
  %state.1 = (s32[], bf16[5,4,8]{2,1,0}, bf16[2,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i.1, %five), direction=LT
}

ENTRY %main (a: bf16[5,4,8], b: bf16[2,8]) -> f32[] {
  %a = bf16[5,4,8]{2,1,0} parameter(0), sharding={devices=[1,2,1]<=[2]}
  %b = bf16[2,8]{1,0} parameter(1)
  %begin = s32[] constant(0)
  %first = s32[] copy(%begin)
  %init = (s32[], bf16[5,4,8]{2,1,0}, /*index=2*/bf16[2,8]{1,0}) tuple(%first, %a, %b)
  %loop = (s32[], bf16[5,4,8]{2,1,0}, bf16[2,8]{1,0}) while(%init), condition=%condition, body=%bodyKNOWN
  %last = bf16[2,8]{1,0} get-tuple-element(%loop), index=2
  %loss = f32[] custom-call(%last), custom_call_target="__norm"
  ROOT %total = f32[] all-reduce(%loss), channel_id=2, replica_groups={{0,1}}, to_apply=%add
}
"""


@pytest.mark.parametrize("known", ["", ', backend_config={"known_trip_count":{"n":"5"}}'], ids=["counted", "noted"])
def test_a_loop_counts_as_often_as_it_runs(known):
    done = hlo.work(LOOP.replace("KNOWN", known))
    assert done.kernels == 5 * 3 + 3 and done.unknown_loops == 0  # slice, gather, product; copy, norm, reduction
    assert done.flops == 5 * 2 * 2 * 8 * 8
    assert done.collectives == {"all-gather": hlo.Collectives(count=5, bytes=5 * 8 * 8 * 2),
                                "all-reduce": hlo.Collectives(count=1, bytes=4)}
    a_slice, a_gather, a_product = 64 + 4 + 64, 64 + 128, 32 + 128 + 32
    assert done.traffic == 5 * (a_slice + a_gather + a_product) + (4 + 4) + (32 + 4) + (4 + 4)


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    done = hlo.work(LOOP.replace("KNOWN", "").replace("direction=LT", "direction=NE"))
    assert (done.kernels, done.unknown_loops) == (3 + 3, 1)


TPU = """HloModule m

%all-reduce-scatter.1 (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %whole = f32[8,4]{1,0:T(8,128)} all-reduce(%p), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add.clone
  %id = u32[] partition-id()
  ROOT %mine = f32[2,4]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%whole, %id, %id), dynamic_slice_sizes={2,4}
}

%product (a: f32[16,8], b: f32[8,4]) -> f32[16,4] {
  %a = f32[16,8]{1,0} parameter(0)
  %b = f32[8,4]{1,0} parameter(1)
  ROOT %c = f32[16,4]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[16,8], w: f32[8,4]) -> f32[2,4] {
  %x = f32[16,8]{1,0:T(8,128)} parameter(0)
  %w = f32[8,4]{1,0:T(8,128)} parameter(1)
  %near-start = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %near = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%near-start)
  %y = f32[16,4]{1,0:T(8,128)S(1)} fusion(%x, %near), kind=kOutput, calls=%product
  %g = f32[8,4]{1,0:T(8,128)S(1)} custom-call(%y), backend_config={"cost_estimate":{"flops":"7"}}
  ROOT %r = f32[2,4]{1,0:T(8,128)S(1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_tpus_program_keeps_arrays_on_the_chip_and_scatters_by_a_fusion():
    done = hlo.work(TPU)
    assert done.kernels == 4 and done.flops == 2 * 16 * 8 * 4 + 7
    assert done.collectives == {"reduce-scatter": hlo.Collectives(count=1, bytes=8 * 4 * 4)}
    assert done.traffic == 8 * 4 * 4 + 16 * 8 * 4  # w is fetched, x read


def test_padding_of_a_convolution_is_no_arithmetic():
    window = "b01f_01io->b01f, window={size=3x1 pad=1_1x0_0 stride=1x2}"
    text = TPU.replace("bf_io->bf", window).replace("a: f32[16,8]", "a: f32[1,4,5,8]")
    for old, new in (("f32[16,8]{1,0} p", "f32[1,4,5,8]{3,2,1,0} p"), ("f32[8,4]{1,0} p", "f32[3,1,8,4]{3,2,1,0} p"),
                     ("f32[16,4]{1,0} c", "f32[1,4,3,4]{3,2,1,0} c")):
        text = text.replace(old, new)
    assert hlo.work(text).flops == 2 * (2 + 3 + 3 + 2) * 3 * 8 * 4 + 7


def test_a_checked_row_may_grow_by_a_tenth_and_no_more(monkeypatch, capsys):
    row = {"code": 100, "temporaries": 1000, "arguments": 10, "versions": {"libtpu": "1"},
           "collectives": {"all-reduce": {"count": 3, "bytes": 50}}}
    now = row | {"code": 110, "collectives": {"all-reduce": {"count": 3, "bytes": 55}}}
    monkeypatch.setattr(compiled, "measured", lambda *_: now)
    compiled.check(["a"], {"a": row})
    assert "a: at most a tenth over the record; code 110, temporaries 1,000" in capsys.readouterr().out
    now["temporaries"], now["versions"] = 1101, {"libtpu": "2"}
    now["collectives"] = {"all-gather": {"count": 1, "bytes": 8}}
    with pytest.raises(ConfigError, match="a: temporaries 1,000 -> 1,101; all-gather count 0 -> 1; all-gather bytes "
                                          "0 -> 8, more than a tenth over compiled.json .libtpu 2 here.; mend it"):
        compiled.check(["a"], {"a": row})
    with pytest.raises(ConfigError, match="has no row 'b'; python -m benchmarks.compiled --rows 'b' --write"):
        compiled.check(["b"], {"a": row})


@pytest.mark.parametrize("benchmark", [compiled, precision])
def test_the_tables_of_the_docs_are_those_of_the_record(benchmark):
    page = compiled.DOCS.read_text()
    assert benchmark.documented(page, json.loads(benchmark.RECORD.read_text())) == page


def test_a_row_of_precision_lowers_its_part_only_while_it_is_traced():
    x, before = jnp.linspace(0, 1, 8), normalization.at_least_float32
    with precision._lowered(precision.ROWS["and layer norms in bfloat16"]):
        lowered = jax.jit(lambda x: normalization.layer_norm(x, jnp.ones(8), jnp.zeros(8)))(x)
    plain = normalization.layer_norm(x, jnp.ones(8), jnp.zeros(8))
    assert normalization.at_least_float32 is before
    assert 1e-4 < float(jnp.abs(lowered - plain).max()) < 2e-2
    losses = {"float32": {"baseline": {"0": {"loss_clean": 1.0}, "1": {"loss_clean": 2.0}}},
              "and weights in bfloat16": {"baseline": {"0": {"loss_clean": 1.25}, "1": {"loss_clean": 2.25}}}}
    page = precision.documented("<!-- precision: x -->\n<!-- end -->", {"losses": losses})
    assert "| and weights in bfloat16 | +0.2500 [+0.2500, +0.2500] | | |" in page


def test_a_row_is_a_line_of_the_table():
    row = {"rows": 32, "compile_s": 12.3, "code": None, "arguments": 10**8, "outputs": 0, "temporaries": 2 * 10**9,
           "room": 10**10, "refusal": None, "kernels": 1234, "flops": 3, "model_flops": 2,
           "collectives": {"all-reduce": {"count": 3, "bytes": 5 * 10**7}},
           "bounds": {"arithmetic": 1000, "memory": 900}}
    page = compiled.documented("a\n<!-- paper: x -->\nbefore\n<!-- end -->\nb", {
        "H100": row, "v5e 2x2, fsdp 4": row | {"refusal": "no room"}, "nothing": row})
    assert "| H100, batch 32 | 12 s | not told | 0.100 GB | 2.00 GB | 21% | 1,234 | 1.50 |" in re.sub(" +", " ", page)
    assert "3 all-reduce (50 MB)" in page and "900 (memory)" in page and "no room" in page
    assert "before" not in page and "nothing" not in page
    assert page.startswith("a\n<!-- paper") and page.endswith("-->\nb")
