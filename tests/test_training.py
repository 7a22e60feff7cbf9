"""Optimiser, schedule, arithmetic counts, logs, progress and signals, each on its own."""

import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxablate.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from jaxablate.errors import ConfigError, FileError, TrainingError
from jaxablate.runs.interruption import Interruption
from jaxablate.training.metrics import MetricsLog, Recorder, read_metrics
from jaxablate.training.optimizer import (
    keep_largest,
    learning_rate_schedule,
    make_optimizer,
    nonzero_schedule,
)
from jaxablate.training.program import TrainState, step_key
from jaxablate.training.progress import ProgressLine, Seldom
from jaxablate.training.task import Pace
from jaxablate.training.throughput import ACCELERATORS, Throughput, peak_flops, train_flops_per_token

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_steps": 2}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ({}, [(1 + np.cos(np.pi * s / 8)) / 2 for s in range(8)]),
        ({"final_fraction": 0.1}, [0.1 + 0.9 * (1 + np.cos(np.pi * s / 8)) / 2 for s in range(8)]),
        ({"warmup_steps": 16}, [(s + 1) / 16 for s in range(8)]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1] + [(1 + np.cos(np.pi * s / 4)) / 2 for s in range(4)]),
        ({"warmup_steps": 1}, [1] + [(1 + np.cos(np.pi * s / 7)) / 2 for s in range(7)]),
    ],
)
def test_schedule(settings, expected):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, **settings), 8)
    np.testing.assert_allclose([float(schedule(s)) for s in range(8)], 2 * np.array(expected), rtol=1e-6, atol=1e-6)


def adamw_by_hand(w, grads, *, lr, b1, b2, eps, decay, clip):
    """Loshchilov and Hutter (2019), algorithm 2, after clipping by global norm."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        g = g * min(1.0, clip / np.linalg.norm(g))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
    return w


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_optimizer_is_clipped_adamw(clip):
    rng = np.random.default_rng(0)
    w, grads = rng.normal(size=5).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    settings = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1, "clip_norm": clip}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, schedule="constant", **settings), 4)

    @jax.jit
    def trained(params, grads):
        state = optimizer.init(params)
        for g in grads:
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    params = trained(w, grads)
    expected = adamw_by_hand(w, grads, lr=0.1, b1=0.8, b2=0.9, eps=1e-3, decay=0.1, clip=clip)
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_no_clip_norm_never_clips():
    optimizer = make_optimizer(OptimizerConfig(clip_norm=None, eps=1.0, schedule="constant", learning_rate=1.0), 4)
    gradient = np.float32([1e4])
    updates, _ = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g))(gradient)
    np.testing.assert_allclose(updates, -1e4 / (1e4 + 1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_largest_weights_of_each_matrix_stay(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.random.default_rng(0).permutation(60).reshape(3, 4, 5) - 30.25, dtype)
        params = {"kernel": x, "bias": jnp.arange(3.0), "zeros": jnp.zeros((2, 2)), "one": x[0, :1, :1]}
        for fraction in (0.001, 0.3, 1.0):
            kept = keep_largest(params, jnp.float32(fraction))
            k = max(round(fraction * 60), 1)
            largest = np.sort(abs(np.asarray(x, float)).ravel())[-k]
            np.testing.assert_array_equal(kept["kernel"], np.where(abs(x) >= largest, x, 0))
            assert (kept["kernel"] != 0).sum() == k and (kept["bias"] == params["bias"]).all()
            assert not kept["zeros"].any() and kept["one"] == params["one"] and kept["kernel"].dtype == dtype


def test_the_part_that_is_not_zero_falls_linearly():
    settings = {"nonzero_fraction": 0.2}
    assert nonzero_schedule(OptimizerConfig(), 8) is None
    for anneal, expected in ((0.5, [0.8, 0.6, 0.4, 0.2, 0.2]), (0, [0.2] * 5)):
        part = nonzero_schedule(OptimizerConfig(**settings, nonzero_anneal=anneal), 8)
        np.testing.assert_allclose([float(part(s)) for s in range(5)], expected, rtol=1e-6)


def test_step_key_is_a_function_of_seed_and_step():
    @jax.jit
    def data(seed, step):
        return jax.random.key_data(step_key(TrainState(step, {}, (), jax.random.key(seed))))

    def key(seed, step):
        return np.asarray(data(np.int32(seed), np.int32(step)))

    assert (key(0, 3) == key(0, 3)).all()
    assert (key(0, 3) != key(0, 4)).any() and (key(0, 3) != key(1, 3)).any()


def test_flops_by_hand():
    shape = {"d_model": 4, "d_mlp": 6, "n_layers": 2, "n_heads": 2, "vocab_size": 10, "k_attention": 1, "k_neurons": 1}
    layer = 4 * 4 * 4 + 2 * 4 * 6  # q, k, v, out; up, down
    causal = 2 * 4 * (1 + 2 + 3) / 3  # scores and values over 1, 2 and 3 keys
    one = 2 * (layer + causal) + 4 * 10
    heads = 2 * (4 * 4 + 4 * 6)
    expected = {"none": one, "local": 2 * one + heads, "global": 2 * one + heads, "both": 2 * one + 2 * heads}
    for ablation, weights in expected.items():
        assert train_flops_per_token(ModelConfig(**shape, ablation=ablation), 3) == pytest.approx(6 * weights), ablation
    windowed = ModelConfig(**shape, ablation="none", attention_layers=("local",), window_size=2)
    assert train_flops_per_token(windowed, 3) == pytest.approx(6 * (one - 2 * 2 * 4 / 3))


class Device:
    def __init__(self, device_kind):
        self.device_kind = device_kind


def test_peak_is_known_by_the_longest_name():
    assert peak_flops([Device("TPU v5 lite")]) == ACCELERATORS["TPU v5 lite"].flops
    assert peak_flops([Device("NVIDIA H100 80GB HBM3")] * 8) == 8 * ACCELERATORS["NVIDIA H100"].flops
    assert peak_flops([Device("NVIDIA H100 PCIe"), Device("cpu")]) is None


def log_of(path, step, **settings):
    return MetricsLog(path, Config(train=TrainConfig(**settings)), step)


def test_a_continued_log_keeps_what_was_before_and_nothing_else(tmp_path):
    log = log_of(tmp_path, 0, tensorboard=False)
    for step in range(1, 6):
        log.write(step, "train", {"loss": 1 / step})
    log.write(3, "valid", {"loss": 7.0})
    log.close()
    log = log_of(tmp_path, 3, tensorboard=False)
    log.write(4, "train", {"loss": 0.5})
    log.close()
    kept = [(m["step"], m["loss"]) for m in read_metrics(tmp_path, "train")]
    assert kept == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.5)]
    assert read_metrics(tmp_path, "valid") == [{"step": 3, "split": "valid", "loss": 7.0}]


def test_every_float_survives_the_log_and_tensorboard_gets_them(tmp_path):
    values = {str(i): float(x) for i, x in enumerate(np.random.default_rng(0).normal(size=50).astype(np.float32))}
    log = log_of(tmp_path, 0)
    log.write(1, "train", values)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "split": "train", **values}
    event_file = next((tmp_path / "tensorboard").iterdir())
    assert b"train/49" in event_file.read_bytes()


def test_a_continued_run_goes_on_with_its_own_wandb_page(tmp_path, monkeypatch):
    calls = []
    wandb = types.SimpleNamespace(init=lambda **settings: calls.append(settings) or wandb, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        log_of(tmp_path / folder, 0, tensorboard=False, wandb_project="p").close()
    first, again, other = (call["id"] for call in calls)
    assert first == again != other
    assert all(call["resume"] == "allow" and call["project"] == "p" for call in calls)


def test_wandb_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxablate\[wandb\]'"):
        log_of(tmp_path, 0, tensorboard=False, wandb_project="p")


def test_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    def init(**settings):
        raise KeyError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match="Weights & Biases did not start"):
        log_of(tmp_path, 0, tensorboard=False, wandb_project="p")
    (tmp_path / "wandb_id").write_bytes(b"\xff")
    with pytest.raises(FileError, match="wandb_id holds no id"):
        log_of(tmp_path, 0, tensorboard=False, wandb_project="p")


@pytest.mark.parametrize("room", [0, 4000])
def test_a_disk_that_is_full_for_tensorboard_ends_training_in_one_line(tmp_path, monkeypatch, room):
    """The thread of tensorboardX's writer died of the full disk, and who filled its queue waited for ever."""
    monkeypatch.setattr("jaxablate.files.JsonLines.add", lambda log, value: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        log = log_of(tmp_path, 0)
        with contextlib.closing(log):
            for step in range(1, 1000):
                log.write(step, "train", {"loss": 1.0})

    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(FileError, match=r"disk full .*tensorboard/events.* or train without TensorBoard"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_working_directory_that_reads_like_a_place_in_the_network_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    log_of(Path("s3:"), 0).close()
    assert len(list((tmp_path / "s3:/tensorboard").iterdir())) == 1


def test_tensorboard_is_told_where_a_continued_run_begins_and_keeps_all_files(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for first in (0, 3):
        log = log_of(tmp_path, first)
        log.write(first + 1, "train", {"loss": 0.5, "my term": 2.0})
        log.close()
    _, last = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: int(path.name.split(".")[-1]))
    content, events = last.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    version, start, scalars = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, SessionLog.START)
    assert scalars.step == 4 and scalars.wall_time > 1e9
    assert [(value.tag, value.simple_value) for value in scalars.summary.value] == [
        ("train/loss", 0.5), ("train/my_term", 2.0)]


def progress_text(terminal=False, peak=None, steps=200, width=200):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, highlight=False, soft_wrap=True, width=width)
    return stream, ProgressLine(steps, 1000, 5e6, peak, console)


def test_plain_progress_lines(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream, line = progress_text(peak=1e8)
    with line:
        line.update(1, {"loss": 3.0}, None)
        line.validated(50, {"loss_clean": 2.25})
        line.update(99, {"loss": 2.5}, None)  # half a minute is not over
        now[0] = 31
        speed = line.update(100, {"loss": 2.0, "loss_clean": 1.5, "loss_ablated": 2.5}, 10.0)
    assert speed == {"tokens_per_second": 10_000.0, "peak_fraction": 0.5}
    assert stream.getvalue().splitlines() == [
        "step 1/200  loss 3.0000",
        "step 50/200  valid clean 2.2500",
        "step 100/200  loss 2.0000  clean 1.5000  ablated 2.5000  10,000 tokens/s  50.0% of peak  0:10 left",
    ]


def test_lines_that_stay_are_seldom(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def lines(steps, seconds):
        seldom, count = Seldom(steps), 0
        for step in range(1, steps + 1):
            now[0] += seconds
            count += seldom.due(step)
        return count

    assert 5 <= lines(4500, 0.04) <= 8  # three minutes: two lines a minute
    assert 100 <= lines(40_000, 0.3) <= 102  # three hours: each hundredth
    assert 4000 <= lines(4000, 604) <= 4001  # a step in ten minutes
    assert lines(1, 1) == 1
    last = Seldom(4)
    assert [last.due(step) for step in (1, 2, 4, 4, 4)] == [True, False, True, False, False]


def test_a_terminal_of_80_columns_shows_everything_and_nothing_is_left():
    stream, line = progress_text(terminal=True, width=80, peak=1e8)
    with line:
        line.validated(10, {"loss_clean": 2.25})
        losses = {"loss": 3.0, "loss_clean": 1.5, "loss_ablated": 2.5, "importance": 1.0, "interaction": 2.0}
        line.update(20, losses, 0.01)
        line.say("finished")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    text = "".join(line.rstrip("\n") for line in shown.splitlines())
    for part in ("step 20/200  10 tokens/s  0.1% of peak  5:00:00 left", "valid clean 2.2500 (step 10)",
                 "ablated 2.5000  importance 1.0000  interaction 2.0000"):
        assert part in text
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "finished" in shown and stream.getvalue().endswith("\x1b[2K")  # the picture is erased at last


def test_throughput_counts_from_the_restart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Throughput()
    assert clock.rate() is None
    clock.restart()
    now[0] = 2.0
    clock.count()
    assert clock.rate() == 0.5
    clock.restart()
    assert clock.rate() is None


def test_recorder_logs_what_is_due_and_refuses_nan(tmp_path):
    _, line = progress_text()
    log = log_of(tmp_path, 0, tensorboard=False)
    recorder = Recorder(Pace(steps=7, log_every=3, eval_every=7, checkpoint_every=7), log, line)
    recorder.restart_clock()
    for step in range(1, 8):
        recorder.train(step, {"loss": jnp.float32(step)})
    with pytest.raises(TrainingError, match="step 8 gave grad_norm=inf, loss=nan"):
        recorder.train(8, {"grad_norm": jnp.float32("inf"), "loss": jnp.float32("nan"), "x": jnp.float32(1)})
    with pytest.raises(TrainingError, match="validation at step 8 gave loss=inf"):
        recorder.valid(8, {"loss": float("inf")})
    log.close()
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 3, 6, 7]


def test_a_first_signal_asks_and_a_second_one_insists():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with Interruption() as interruption:
            assert not interruption.requested(1)
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.requested(2) and interruption.name == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


ONE_OF_TWO = """
import os, signal, sys, time
import jax
from jaxablate.runs.interruption import Interruption

address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
with Interruption() as interruption:
    for step in range(600):
        if step == 3 and index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if interruption.requested(step):
            print("stops after", step, interruption.name)
            break
        time.sleep(0.05)
"""


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    commands = [[sys.executable, "-c", ONE_OF_TWO, address, str(index)] for index in range(2)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": ROOT}
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(subprocess.Popen(command, **options)) for command in commands]
        for process in both:
            stack.callback(process.kill)
        told = [process.communicate(timeout=100)[0] for process in both]
    assert re.fullmatch(r"stops after \d+ SIGTERM\n", told[0]) and told[0] == told[1]
