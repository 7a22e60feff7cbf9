"""Checkpoints under every fault: damaged files, full disks, other devices, other models."""

import asyncio
import functools
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults.hostile import JSON

from jaxablate.config import MeshConfig, OptimizerConfig
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.runs import checkpoint
from jaxablate.runs.checkpoint import Checkpoints, read_seal, restore_params, saved_steps, write_seal
from jaxablate.sharding import make_mesh, param_shardings
from jaxablate.training.optimizer import make_optimizer
from jaxablate.training.program import Learner, compile_program


def init_params(key, width=64):
    """A small tree with names that the partition rules know; nothing is trained here."""
    return {
        "embed": {"embedding": jax.random.normal(key, (64, width))},
        "ln_f": {"bias": jnp.zeros(width), "scale": jnp.ones(width)},
    }


def program(width=64, **mesh):
    """Functions that make a state on a mesh; the loss is not used."""
    learner = Learner(init_params=lambda key: init_params(key, width), train_loss=None, eval_loss=None, counted="mask")
    return compile_program(learner, make_optimizer(OptimizerConfig(), 10), lambda step: 1.0,
                           make_mesh(MeshConfig(**mesh)))


def abstract(width=64, **mesh):
    """Target of a restore on a mesh."""
    return program(width, **mesh).abstract


@pytest.fixture(scope="module")
def fresh():
    """States of step 0 by mesh, made once."""
    return functools.cache(lambda **mesh: program(**mesh).init(3))


def at_step(state, step):
    """The state as of a step, with parameters that tell the step."""
    sharding = state.step.sharding
    params = jax.tree.map(lambda x: x + step, state.params)
    return state.replace(step=jax.device_put(np.int32(step), sharding), params=params)


def write(workdir, state, losses, keep_last=3):
    """Saves steps with validation losses."""
    checkpoints = Checkpoints(workdir, keep_last)
    for step, loss in losses.items():
        checkpoints.save(at_step(state, step), {"data": {"step": step}}, loss)
    checkpoints.close()


def restore(workdir, target):
    checkpoints = Checkpoints(workdir, 3)
    try:
        return checkpoints.restore(target)
    finally:
        checkpoints.close()


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


MESHES = {"data": 1}, {"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 2, "tensor": 2}


def test_a_fresh_state_is_the_same_on_every_mesh_and_its_optimizers_part_lives_where_its_parameter_does(fresh):
    alone, *others = (fresh(**mesh) for mesh in MESHES)
    for state in others:
        assert_same(state, alone)
        for moments in (optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")):
            for moment, parameter in zip(jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True):
                assert moment.sharding.is_equivalent_to(parameter.sharding, moment.ndim)


@pytest.mark.parametrize("there", MESHES)
@pytest.mark.parametrize("here", [{"data": 1}, {"data": 8}, {"data": 1, "fsdp": 2, "tensor": 4}])
def test_any_mesh_restores_on_any_other(tmp_path, fresh, there, here):
    write(tmp_path, fresh(**there), {5: None})
    target = abstract(**here)
    state, progress = restore(tmp_path, target)
    assert progress == {"data": {"step": 5}}
    assert_same(state, at_step(fresh(**there), 5))
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True):
        assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


def test_the_last_ones_and_the_best_one_are_kept(tmp_path, fresh):
    write(tmp_path, fresh(data=1), {1: 3.0, 2: 1.0, 3: 1.0, 4: None, 5: 2.0, 6: float("nan")}, keep_last=2)
    assert saved_steps(tmp_path / "checkpoints") == [3, 5, 6]  # of equal losses the later one
    assert restore_params(tmp_path, step="best")[1] == 3
    assert restore_params(tmp_path)[1] == 6
    params, step = restore_params(tmp_path, step=5)
    assert step == 5
    assert_same(params, at_step(fresh(data=1), 5).params)


def test_params_restore_with_shardings_of_their_own(tmp_path, fresh):
    write(tmp_path, fresh(data=1), {1: None})
    shardings = param_shardings(make_mesh(MeshConfig(data=1, fsdp=8)), abstract(data=1).params)
    params, _ = restore_params(tmp_path, shardings=shardings)
    assert_same(params, at_step(fresh(data=1), 1).params)
    assert params["embed"]["embedding"].sharding == shardings["embed"]["embedding"]


def damage(path, how):
    content = path.read_bytes()
    match how:
        case "delete":
            path.unlink()
        case "truncate":
            path.write_bytes(content[: len(content) // 2])
        case "flip":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_any_damaged_file_falls_back_to_the_one_before_and_says_so(tmp_path, fresh, how, caplog):
    write(tmp_path / "good", fresh(data=1), {1: 2.0, 2: 1.0})
    files = [p.relative_to(tmp_path / "good") for p in (tmp_path / "good/checkpoints/2").rglob("*") if p.is_file()]
    assert len(files) > 10
    chosen = {p for p in files if p.name == "seal.json"} | set(random.Random(how).sample(files, 6))
    for file in sorted(chosen):
        shutil.copytree(tmp_path / "good", tmp_path / "run", dirs_exist_ok=True)
        damage(tmp_path / "run" / file, how)
        caplog.clear()
        state, _ = restore(tmp_path / "run", abstract(data=1))
        assert int(state.step) == 1, file
        assert "falling back to the one before" in caplog.text and file.name in caplog.text
        assert restore_params(tmp_path / "run")[1] == 1
        assert restore_params(tmp_path / "run", step="best")[1] == 1
        with pytest.raises(CheckpointError, match="checkpoint 2 in .* is damaged; there are also 1, 2"):
            restore_params(tmp_path / "run", step=2)
        shutil.rmtree(tmp_path / "run")


def test_a_save_that_never_finished_is_no_checkpoint(tmp_path, fresh, caplog):
    write(tmp_path, fresh(data=1), {1: None, 2: None})
    (tmp_path / "checkpoints/2/seal.json").unlink()  # killed after Orbax's commit
    left = tmp_path / "checkpoints/3.orbax-checkpoint-tmp"  # killed before it
    left.mkdir()
    state, _ = restore(tmp_path, abstract(data=1))
    assert int(state.step) == 1
    assert not left.exists()
    write(tmp_path, fresh(data=1), {2: None})  # the run goes on and saves step 2 again
    assert int(restore(tmp_path, abstract(data=1))[0].step) == 2


def test_a_run_killed_before_its_first_seal_starts_again(tmp_path, fresh, caplog):
    """Killed between the rename of its first checkpoint and the seal, a run was refused for ever."""
    write(tmp_path, fresh(data=1), {1: None})
    (tmp_path / "checkpoints/1/seal.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole yet; train on with the command"):
        restore_params(tmp_path)
    assert restore(tmp_path, abstract(data=1)) is None
    assert "its seal.json is missing" in caplog.text
    write(tmp_path, fresh(data=1), {1: None})
    assert int(restore(tmp_path, abstract(data=1))[0].step) == 1


@pytest.mark.parametrize("name", ["02", "\u0662"])
def test_a_folder_that_is_not_named_as_its_step_is_no_checkpoint(tmp_path, fresh, name):
    """One renamed from 35 to 035 counted as step 35, whose folder was not there: the next save ended the training."""
    write(tmp_path, fresh(data=1), {1: None, 2: None})
    (tmp_path / "checkpoints/2").rename(tmp_path / "checkpoints" / name)
    assert saved_steps(tmp_path / "checkpoints") == [1]
    assert int(restore(tmp_path, abstract(data=1))[0].step) == 1
    write(tmp_path, fresh(data=1), {3: None}, keep_last=1)
    assert saved_steps(tmp_path / "checkpoints") == [3]


def test_a_checkpoint_under_another_steps_name_is_not_taken_for_it(tmp_path, fresh, caplog):
    write(tmp_path, fresh(data=1), {1: 1.0, 2: None})
    (tmp_path / "checkpoints/1").rename(tmp_path / "checkpoints/7")
    assert restore_params(tmp_path)[1] == 2
    assert "or its file or name was changed" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint 7 in .* is damaged"):
        restore_params(tmp_path, step=7)


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(tmp_path, fresh, caplog, monkeypatch):
    write(tmp_path, fresh(data=1), {1: None})
    (tmp_path / "checkpoints/1").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints/1").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, fresh(data=1), {2: None}, keep_last=1)
    assert saved_steps(tmp_path / "checkpoints") == [2] and (tmp_path / "elsewhere/seal.json").exists()

    def busy(path, **_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("jaxablate.runs.checkpoint.shutil.rmtree", busy)
    write(tmp_path, fresh(data=1), {3: None}, keep_last=1)
    assert "2 cannot be removed (Device or resource busy)" in caplog.text
    assert restore_params(tmp_path)[1] == 3


@pytest.mark.parametrize("content", JSON, ids=range(len(JSON)))
def test_a_seal_that_is_other_json_is_a_damaged_one(tmp_path, content):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/seal.json").write_bytes(content)
    assert read_seal(tmp_path / "1") is None


def test_a_folder_without_its_arrays_is_not_sealed(tmp_path, fresh):
    """TensorStore had written the arrays into another folder, and the seal covered nothing."""
    write(tmp_path, fresh(data=1), {1: None})
    (tmp_path / "checkpoints/1/params/manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match="params holds no arrays"):
        write_seal(tmp_path / "checkpoints/1", 1, None, {"params/x": "float32[1]"})


@pytest.mark.parametrize("name", ["a\\b", "", "a\0b", "b\udcff"])
def test_a_name_that_orbax_reads_as_another_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for use in (lambda: Checkpoints(name, 1), lambda: restore_params(name)):
        with pytest.raises(ConfigError, match="workdir="):
            use()
    assert not list(tmp_path.iterdir())


def test_a_path_that_goes_up_behind_a_link_is_the_folder_that_it_is(tmp_path, fresh):
    """Orbax cuts `..` out of the text of a path, so the arrays went beside the link and the seal covered nothing."""
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    write(tmp_path / "link/../run", fresh(data=1), {1: None})
    assert int(restore(tmp_path / "real/run", abstract(data=1))[0].step) == 1
    assert restore_params(tmp_path / "link/../run")[1] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_damaged_checkpoint_never_counts_among_the_last(tmp_path, fresh):
    write(tmp_path, fresh(data=1), {1: None, 2: None})
    (tmp_path / "checkpoints/2/seal.json").unlink()
    write(tmp_path, fresh(data=1), {3: None}, keep_last=2)
    assert saved_steps(tmp_path / "checkpoints") == [1, 3]


def test_a_damaged_later_checkpoint_does_not_displace_a_good_one(tmp_path, fresh):
    write(tmp_path, fresh(data=1), {1: 2.0, 4: 1.0})
    damage(tmp_path / "checkpoints/4/params/manifest.ocdbt", "flip")  # its seal is as it was
    assert int(restore(tmp_path, abstract(data=1))[0].step) == 1
    write(tmp_path, fresh(data=1), {2: 3.0}, keep_last=1)  # the run went on from step 1 and was interrupted
    assert saved_steps(tmp_path / "checkpoints") == [1, 2]  # the best and the last
    assert restore_params(tmp_path)[1] == 2


def test_no_good_checkpoint_left_is_an_error(tmp_path, fresh):
    assert restore(tmp_path, abstract(data=1)) is None
    write(tmp_path, fresh(data=1), {1: None})
    damage(tmp_path / "checkpoints/1/seal.json", "truncate")
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read; move it away"):
        restore(tmp_path, abstract(data=1))
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read"):
        restore_params(tmp_path)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (None, "holds no checkpoint; train first"),
        (7, "no checkpoint of step 7; choose one of 1"),
        ("best", "no checkpoint in .* has a validation loss yet"),
    ],
)
def test_a_checkpoint_that_is_not_there(tmp_path, fresh, step, message):
    if step is not None:
        write(tmp_path, fresh(data=1), {1: None})
    with pytest.raises(CheckpointError, match=message):
        restore_params(tmp_path, step=step)


def test_another_shape_is_one_clear_line(tmp_path, fresh):
    write(tmp_path, fresh(data=1), {1: None})
    message = r"does not fit the model: optimizer/\S+ is float32\[64,64\] there and float32\[64,32\] here \(8 more"
    with pytest.raises(CheckpointError, match=message) as caught:
        restore(tmp_path, abstract(width=32, data=1))
    assert "\n" not in str(caught.value)


def test_a_failed_save_keeps_and_names_the_last_good_one(tmp_path, fresh, monkeypatch):
    write(tmp_path, fresh(data=1), {1: None})
    checkpoints = Checkpoints(tmp_path, 2)
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxablate.runs.checkpoint.write_seal", full)
    checkpoints.save(at_step(fresh(data=1), 2), {})
    with pytest.raises(CheckpointError, match=r"no space left .* the last good checkpoint is .*/checkpoints/1$"):
        checkpoints.wait()
    checkpoints.close()
    assert int(restore(tmp_path, abstract(data=1))[0].step) == 1


@pytest.mark.parametrize("seen", ["before", "while saving"])
def test_a_full_disk_is_one_clear_line(tmp_path, fresh, seen, monkeypatch, capfd):
    """Orbax's threads go on in an event loop that the failed save has closed; they printed up to 40 tracebacks."""
    if seen == "while saving":
        monkeypatch.setattr(Checkpoints, "_require_space", lambda self, arrays: None)
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        write(small, fresh(data=1), {1: None})
        checkpoints = Checkpoints(small, 3)

        def fill():
            for step in range(2, 40):
                checkpoints.save(at_step(fresh(data=1), step), {})

        with pytest.raises(CheckpointError, match=r"no space left on the device.*the last good") as caught:
            fill()
        checkpoints.close()
        assert "\n" not in str(caught.value)
        assert not list((small / "checkpoints").glob("*tmp*")), "half a checkpoint was left"
        state, _ = restore(small, abstract(data=1))
        assert str(caught.value).endswith(f"checkpoints/{int(state.step)}")
        gc.collect()
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err and "loop" not in printed.err and not printed.out
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_array_that_could_not_be_written_and_that_nobody_asked_for_prints_nothing(tmp_path, caplog, recwarn):
    """Such errors of TensorStore have no traceback, by which they were known: asyncio told of them in three lines."""

    async def async_serialize_from_host():
        pass

    async_serialize_from_host.__qualname__ = "async_serialize_from_host.<locals>.write_fragment"
    Checkpoints(tmp_path, 1).close()
    loop = asyncio.new_event_loop()
    where = tmp_path / "checkpoints/1.orbax-checkpoint-tmp"
    for text in (f'RESOURCE_EXHAUSTED: Error writing "0.0" in OCDBT database at local file "{where}/params/"',
                 f'RESOURCE_EXHAUSTED: Failed writing "{where}/d/be": No space left on device [os_error_code=\'28\']',
                 "an error of somebody else"):
        loop.create_future().set_exception(ValueError(text))
    async_serialize_from_host()
    gc.collect()
    loop.close()
    assert not recwarn.list
    assert [record.exc_info[1].args[0] for record in caplog.records] == ["an error of somebody else"]


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_the_end_of_another_process_is_no_damage_of_a_checkpoint(tmp_path, fresh, kind, monkeypatch, caplog):
    """One of two ran out of disk, and the other called its only checkpoint unreadable: move it away, it said."""
    write(tmp_path, fresh(data=1), {1: None})

    def lost(*_args, **_kwargs):
        raise ValueError("Failed to restore") from kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    checkpoints = Checkpoints(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_uninterrupted", lost)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for use in (lambda: checkpoints.restore(abstract(data=1)), lambda: checkpoints.save(at_step(fresh(data=1), 2), {})):
        with pytest.raises(ValueError, match="Failed to restore"):
            use()
    assert not caplog.records
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read"):
        checkpoints.restore(abstract(data=1))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoint folder .*: .*File exists"):
        Checkpoints(tmp_path, 2)


def test_seals_list_every_file_and_array(tmp_path, fresh):
    write(tmp_path, fresh(data=2, fsdp=4), {1: 2.5})
    seal = json.loads((tmp_path / "checkpoints/1/seal.json").read_text())["seal"]
    folder = tmp_path / "checkpoints/1"
    assert set(seal["files"]) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"seal.json"}
    assert seal["arrays"]["params/embed/embedding"] == "float32[64,64]"
    assert seal["valid_loss"] == 2.5


def test_orbax_is_never_interrupted_within_its_event_loop():
    """It closed the loop, and every thread of TensorStore that reported to it printed a traceback."""
    done = []

    def work():
        time.sleep(0.3)
        done.append((threading.current_thread() is threading.main_thread(), jax.config.jax_enable_x64))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt), jax.enable_x64(True):
            checkpoint._uninterrupted(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == [(False, True)]
