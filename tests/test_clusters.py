"""Several processes as a cluster starts them: the launch files of configs/cluster, and two processes by one of them.

Two processes with four devices each train what one process does with eight devices, or with one.
"""

import collections
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jaxablate.commands.train import load_config, parse
from jaxablate.config import MeshConfig
from jaxablate.data.pipeline import window_offsets
from jaxablate.data.preparation import prepare
from jaxablate.runs.checkpoint import Checkpoints, saved_steps
from jaxablate.sharding import make_mesh
from jaxablate.training.loop import make_program, train
from jaxablate.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
SLURM, JOBSET = ROOT / "configs" / "cluster" / "slurm.sh", ROOT / "configs" / "cluster" / "jobset.yaml"
ROWS, LENGTH, STEPS = 8, 16, 4

CONFIG = f"""
import json, os
from jaxablate.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from jaxablate.data.token_file import TokenFile

RANK = os.environ.get("SLURM_PROCID")
if RANK is not None:  # what this process reads, and what it puts in its place
    read, replace = TokenFile.windows, os.replace

    def note(kind, what):
        with open(f"{{folder}}/{{{{kind}}}}-{{{{RANK}}}}", "a") as file:
            file.write(json.dumps(what) + "\\n")

    def windows(self, offsets, size):
        note("rows", [self.path.name, list(map(int, offsets)), size])
        return read(self, offsets, size)

    def replaced(source, target):
        note("files", str(target))
        return replace(source, target)

    TokenFile.windows, os.replace = windows, replaced


def get_config():
    return Config(
        model=ModelConfig(vocab_size=320, context_length={LENGTH}, d_model=16, n_layers=1, n_heads=2, k_attention=3,
                          k_neurons=5, param_dtype="float64", compute_dtype="float64"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir="{{folder}}/cache", embedded_stories=60,
                        embedded_valid_stories=40),
        train=TrainConfig(steps={STEPS}, batch_size={ROWS}, sequence_length={LENGTH}, accumulation_steps=1, log_every=1,
                          eval_every=2, eval_batches=2, checkpoint_every=2, keep_last=2, tensorboard=False))
"""

SRUN = """
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2"}
tasks = [subprocess.Popen(command, env={**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
         for i in range(2)]
sys.exit(max(task.wait() for task in tasks))
"""
"""SLURM's starter of tasks, for two of them on this machine."""


def sbatch(folder, *arguments):
    """Runs the launch file to its end, as SLURM would; what the two processes print."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (folder / "srun.py").write_text(SRUN)
    executable(programs / "srun", f'exec {sys.executable} {folder / "srun.py"} "$@"')
    executable(programs / "python", f'exec {sys.executable} "$@"')
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7",
        "JAX_COORDINATOR_PORT": str(port), "XLA_FLAGS": " ".join([*flags, "--xla_force_host_platform_device_count=4"])}
    done = subprocess.run(["bash", str(SLURM), *map(str, arguments)], env=environment, cwd=folder, capture_output=True,
                          text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def executable(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def measured(workdir):
    return [{name: value for name, value in line.items() if name != "tokens_per_second"}
            for line in read_metrics(workdir)]


def parameters(config, workdir):
    """Those of the newest checkpoint, read by this one process."""
    program = make_program(config, make_mesh(MeshConfig(data=1), jax.devices()[:1]), STEPS)
    checkpoints = Checkpoints(workdir, 1)
    state, _ = checkpoints.restore(program.stored)
    checkpoints.close()
    assert int(state.step) == STEPS
    return jax.device_get(state.params)


def assert_same(config, workdir, other):
    for one, two in zip(measured(workdir), measured(other), strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parameters(config, workdir),
                 parameters(config, other))


@pytest.mark.system
def test_two_processes_with_four_devices_each_are_one_with_eight_or_one(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    config, mesh = load_config(tmp_path / "config.py"), ["--mesh.fsdp", "2"]
    with jax.enable_x64(True):
        for name, devices in (("one", 1), ("eight", 8)):
            train(config, tmp_path / name, devices=jax.devices()[:devices])
        printed = sbatch(tmp_path, "--config", tmp_path / "config.py", "--workdir", tmp_path / "two", *mesh)
        assert "8 x cpu, mesh data=4 fsdp=2 tensor=1" in printed and printed.count("finished: 4 steps") == 1
        for other in ("one", "eight"):
            assert_same(config, tmp_path / "two", tmp_path / other)
        assert_each_reads_its_rows_and_one_writes(config, tmp_path)
        # What two processes have saved, one goes on with.
        shutil.copytree(tmp_path / "two", tmp_path / "back")
        shutil.rmtree(tmp_path / "back" / "checkpoints" / str(STEPS))
        assert saved_steps(tmp_path / "back" / "checkpoints") == [2]
        train(config, tmp_path / "back", devices=jax.devices()[:1])
        assert_same(config, tmp_path / "back", tmp_path / "one")


def assert_each_reads_its_rows_and_one_writes(config, folder):
    tokens = prepare(config.data).train
    for rank in range(2):
        lines = [json.loads(line) for line in (folder / f"rows-{rank}").read_text().splitlines()]
        read = [offsets for name, offsets, _ in lines if name == tokens.path.name]
        mine = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
        for step in range(STEPS):
            assert read[step] == window_offsets(0, step, ROWS, tokens.n_tokens - LENGTH)[mine].tolist()
        # The other split is read in adjoining rows, half of a batch of eight at a time.
        validation = [offsets[0] for name, offsets, _ in lines if name != tokens.path.name]
        assert set(validation) == {(batch * ROWS + mine.start) * LENGTH for batch in range(2)}
        written = (folder / f"files-{rank}").read_text() if (folder / f"files-{rank}").exists() else ""
        assert (str(folder / "two" / "config.json") in written) == (rank == 0)
        assert rank == 0 or str(folder / "two") not in written
    counts = collections.Counter((line["step"], line["split"]) for line in read_metrics(folder / "two"))
    assert counts == {**{(step, "train"): 1 for step in range(1, STEPS + 1)}, (2, "valid"): 1, (4, "valid"): 1}


def jobset():
    (found,) = [part for part in yaml.safe_load_all(JOBSET.read_text()) if part["kind"] == "JobSet"]
    return found


def container():
    (job,) = jobset()["spec"]["replicatedJobs"]
    (found,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return found


def arguments_of(script):
    """What a launch file gives to `jaxablate train`."""
    words = shlex.split(script.replace("\\\n", " "), comments=True)
    return list(words[words.index("train", words.index("trap")) + 1 : words.index("&")])


@pytest.mark.parametrize("script", [SLURM.read_text(), container()["args"][0]], ids=["SLURM", "JobSet"])
def test_what_launch_files_pass_to_the_program_it_takes(script):
    arguments = arguments_of(script)
    if arguments[-1] == "$@":
        arguments[-1:] = ["--config", "tinystories", "--workdir", "w"]
    settings = parse(arguments)
    assert settings.distributed and settings.join_seconds >= 300


JOBSET_FIELDS = {
    "spec": {"replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator",
             "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies"},
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "replicatedJob": {"name", "template", "replicas", "groupName", "dependsOn"},
    "job": {"parallelism", "completions", "completionMode", "backoffLimit", "activeDeadlineSeconds", "template",
            "podFailurePolicy", "ttlSecondsAfterFinished", "suspend", "podReplacementPolicy", "backoffLimitPerIndex",
            "maxFailedIndexes", "successPolicy", "selector", "manualSelector", "managedBy"},
}
"""Fields of JobSet v1alpha2 and of a Job of batch/v1."""


def test_the_jobset_has_fields_that_there_are_and_what_jax_looks_for():
    found = jobset()
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert found["spec"].keys() <= JOBSET_FIELDS["spec"]
    assert found["spec"]["failurePolicy"].keys() <= JOBSET_FIELDS["failurePolicy"]
    (replicated,) = found["spec"]["replicatedJobs"]
    assert replicated.keys() <= JOBSET_FIELDS["replicatedJob"]
    job = replicated["template"]["spec"]
    assert job.keys() <= JOBSET_FIELDS["job"]
    # JAX takes the number of processes from the parallelism, and a process's own from the index of its pod.
    assert (job["completionMode"], job["parallelism"], replicated["replicas"]) == ("Indexed", job["completions"], 1)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and {mount["name"] for mount in container()["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]}
    others = {part["kind"]: part for part in yaml.safe_load_all(JOBSET.read_text()) if part["kind"] != "JobSet"}
    assert pod["serviceAccountName"] == others["ServiceAccount"]["metadata"]["name"]
    assert others["RoleBinding"]["roleRef"]["name"] == others["Role"]["metadata"]["name"]
    rules = others["Role"]["rules"]
    assert {what for rule in rules for what in rule["resources"]} == {"pods", "services", "jobs"}
    assert all({"get", "list"} == set(rule["verbs"]) for rule in rules)


STUB = """trap 'echo saved; exit 0' TERM; echo started; [ -n "$FAILS" ] && exit 3; i=0
while [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done"""
"""A run that a signal stops, or that fails."""


@pytest.mark.parametrize("kind", ["SLURM", "JobSet"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_stopped_run_is_asked_for_again_and_a_failed_one_keeps_its_code(tmp_path, kind, fails):
    executable(tmp_path / ("srun" if kind == "SLURM" else "jaxablate"), f"echo $$ > {tmp_path}/task; {STUB}")
    executable(tmp_path / "scancel", f'echo scancel "$@"; kill -TERM $(cat {tmp_path}/task)')
    executable(tmp_path / "scontrol", 'echo scontrol "$@"')
    command = ["bash", str(SLURM)] if kind == "SLURM" else ["bash", "-c", container()["args"][0]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "FAILS": "1" if fails else ""}
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "started\n"
    if not fails:
        time.sleep(0.2)  # until `wait` waits
        job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=30)
    assert err == ""
    if fails:
        assert (job.returncode, out) == (3, "")
    elif kind == "SLURM":
        assert (job.returncode, out) == (0, "scancel --signal=TERM 7\nsaved\nscontrol requeue 7\n")
    else:
        assert (job.returncode, out) == (75, "saved\n")
