"""`train --profile`: which steps are recorded, and that the host is ahead of the devices."""

import gzip
import json

import pytest
from helpers.commands import error_of
from helpers.runs import language_config, shared_folder

from jaxablate.commands.train import parse
from jaxablate.errors import ConfigError
from jaxablate.training import loop, profiling
from jaxablate.training.loop import train
from jaxablate.training.metrics import Recorder
from jaxablate.training.profiling import Profile


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shared_folder(tmp_path_factory.getbasetemp())


def test_steps_after_the_first_three_are_recorded_each_dispatched_before_the_last_one_is_read(tmp_path, data,
                                                                                               monkeypatch):
    order, to_devices, read = [], loop._to_devices, Recorder.train
    monkeypatch.setattr(loop, "_to_devices", lambda *a: (order.append("dispatch"), to_devices(*a))[1])
    monkeypatch.setattr(Recorder, "train", lambda self, step, x: (order.append(step), read(self, step, x))[1])
    train(language_config(data, eval_every=6, checkpoint_every=6), tmp_path / "w", profile=2)
    # The last two are an evaluation's batch and, before it, the step that it waits for.
    assert order == ["dispatch", "dispatch", 1, "dispatch", 2, "dispatch", 3, "dispatch", 4, "dispatch", 5, 6,
                     "dispatch"]
    (file,) = (tmp_path / "w" / profiling.FOLDER / "plugins" / "profile").glob("*/*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    events = [event for event in events if event.get("ph") == "X"]
    steps = {event["args"]["step_num"]: event for event in events if event["name"] == "train"}
    assert sorted(steps) == ["4", "5"]
    ends = {number: event["ts"] + event["dur"] for number, event in steps.items()}
    inside = {event["name"] for event in events if steps["5"]["ts"] <= event["ts"] <= ends["5"]}
    assert {"PrefetchDatasetIterator.__next__", "PjitFunction(step)"} <= inside


def test_a_profile_of_more_steps_than_there_are_is_refused_before_anything_is_written(tmp_path, data):
    with pytest.raises(ConfigError, match="--profile 4 begins after 3 steps, and 6 are left of 6; profile 3 at most"):
        train(language_config(data), tmp_path / "w", profile=4)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("flags", "message"), [
    (["--plan", "--profile", "3"], "--profile 3 records steps, and --plan makes none; give one of the two"),
    (["--workdir", "w", "--profile", "-1"], "profile=-1 must not be negative"),
])
def test_what_cannot_be_profiled_is_one_line(capsys, flags, message):
    assert message in error_of(capsys, "train", "--config", "quickstart", *flags)
    assert parse(["--config", "quickstart", "--workdir", "w", "--profile", "3"]).profile == 3


def test_a_profile_that_cannot_be_written_is_warned_of_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def fails(*_, **__):
        raise RuntimeError("INTERNAL: disk full\nmore")

    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", fails)
    profile = Profile(tmp_path, 1, 1)
    for number in range(1, 7):
        with profile.step(number):
            pass
        profile.done(number - 1)
    profile.close()
    (record,) = caplog.records
    assert record.message == f"the profile cannot be written to {tmp_path / 'profile'} (INTERNAL: disk full)"
