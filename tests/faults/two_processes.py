"""Two processes that train together: one or both of them killed, signalled, failing or out of disk, then both resumed.

Whatever happens to one, the other one ends within `LIMIT` seconds with one line; started again, both go on, and in the
end metrics and checkpoint are those of a pair that was left alone, bit for bit.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from faults.launcher import Launcher, Moment, Outcome

LIMIT = 30.0
"""Seconds in which all have ended after the first one has."""
JOIN_SECONDS = 15
"""Seconds in which one that starts must find the other."""
WHOLE_SECONDS = 240.0
"""Seconds of a pair that is left alone, at most: a busy machine is slow."""
STEPS, EVERY = 24, 5
Kind = Literal["SIGKILL", "SIGTERM", "SIGINT", "error", "disk"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to one process, or to both."""

    kind: Kind
    """A signal; an error of its own between two steps; or files that may not grow beyond `size` bytes."""
    who: tuple[int, ...]
    step: int | None = None
    """After so many steps of this start; None: `seconds` after the start."""
    seconds: float = 0.0
    size: int = 0
    unwinding: float | None = None
    """Seconds that either process has to close its files after an error; None: as many as users have."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Faults one after another in one working directory, each in a start of its own."""

    faults: tuple[Fault, ...]


def cases(seed: int, n: int) -> Iterator[Case]:
    """`n` cases, the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(n):
        yield Case(tuple(_fault(rng) for _ in range(rng.choice((1, 1, 2)))))


def _fault(rng: random.Random) -> Fault:
    kind: Kind = rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "error", "error", "disk"))
    who = rng.choice(((0,), (1,), (0, 1)))
    if kind == "disk":
        return Fault(kind, who, size=rng.choice((0, 512, 1024, 4096, rng.randrange(20_000))))
    if kind == "error" or rng.random() < 0.6:
        return Fault(kind, who, step=rng.randrange(1, STEPS))
    return Fault(kind, who, seconds=rng.uniform(0.5, 15))


def run(case: Case, folder: Path) -> str | None:
    """Plays a case in an empty folder; None, or what broke. The undisturbed pair is beside it, made where missing."""
    whole = folder.parent / "whole"
    with launchers() as pair:
        if not whole.exists() and (broken := _left_alone(pair, whole)):
            return broken
        for fault in case.faults:
            if broken := _play(pair, fault, folder / "run"):
                return f"{fault}: {broken}"
        return _left_alone(pair, folder / "run") or difference(folder / "run", whole)


def _left_alone(pair: tuple[Launcher, Launcher], workdir: Path) -> str | None:
    ends = _start(pair, workdir)
    wrong = [end for end in ends if end.hung or end.code != 0 or end.err.strip()]
    return f"left alone, {workdir} ended with {wrong}" if wrong else None


def _play(pair: tuple[Launcher, Launcher], fault: Fault, workdir: Path) -> str | None:
    ends = _start(pair, workdir, fault)
    finished = any(f"finished: {STEPS} steps" in end.out for end in ends)
    late = min(end.seconds for end in ends) + max(LIMIT, JOIN_SECONDS + 10.0)
    for who, end in enumerate(ends):
        if fault.kind == "SIGKILL" and who in fault.who and end.code in (0, -signal.SIGKILL) and not end.hung:
            continue
        # Without a line a signal may end it while the interpreter ends, all work being done.
        if finished and who in fault.who and fault.kind in ("SIGTERM", "SIGINT") and not end.err.strip() and (
                end.code == -getattr(signal, fault.kind)):
            continue
        if end.hung or end.seconds > late:
            return f"process {who} did not end in time: {ends}"
        lines = [line for line in end.err.splitlines() if line.strip()]
        if end.code not in (0, 2, 130, 143) or any("Traceback" in line for line in lines):
            return f"process {who}: {ends}"
        told = [line for line in lines if line.startswith(("error: ", "stopped by "))]
        if len(lines) != (1 if end.code else 0) or told != lines:
            return f"process {who} is not to end with {len(lines)} lines: {ends}"
    return None


# Starting and ending -------------------------------------------------------------------------------------------------

PRELOADED = ("jaxablate.commands.train", "jaxablate.training.loop", "jaxablate.training.processes")

CONFIG = """
from jaxablate.config import Config, DataConfig, ModelConfig, TrainConfig

def get_config():
    return Config(
        model=ModelConfig(vocab_size=320, context_length=16, d_model=16, n_layers=1, n_heads=2, ablation="none"),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir={cache!r}, embedded_stories=200,
                        embedded_valid_stories=20),
        train=TrainConfig(steps={steps}, batch_size=8, sequence_length=16, accumulation_steps=1, log_every=1,
                          eval_every={every}, eval_batches=2, checkpoint_every={every}, keep_last=1,
                          tensorboard=False))
"""


def write_config(folder: Path) -> Path:
    """Writes the pair's settings; its data comes into the folder, too."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.py"
    config.write_text(CONFIG.format(cache=str(folder / "cache"), steps=STEPS, every=EVERY))
    return config


@contextlib.contextmanager
def launchers() -> Iterator[tuple[Launcher, Launcher]]:
    """One launcher for each process of a pair."""
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": _one_device(), "OPENBLAS_NUM_THREADS": "1"}
    with Launcher(environment, PRELOADED) as one, Launcher(environment, PRELOADED) as other:
        yield one, other


def _start(pair: tuple[Launcher, Launcher], workdir: Path, fault: Fault | None = None) -> list[Outcome]:
    """Runs a pair to its end, started as Open MPI would."""
    config = write_config(workdir.parent)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = ["faults.two_processes", json.dumps(dataclasses.asdict(fault) if fault else None), "train", "--config",
            str(config), "--workdir", str(workdir), "--distributed", "--join-seconds",
            str(JOIN_SECONDS if fault else 120)]

    def play(rank: int) -> Outcome:
        mine, moments = fault is not None and rank in fault.who, []
        if mine and fault.step is None and fault.kind != "disk":
            moments = [Moment(after=fault.seconds, signal=getattr(signal, fault.kind))]
        environment = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "JAX_COORDINATOR_PORT": str(port),
                       "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank),
                       "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
        return pair[rank].run(line, workdir.parent, moments=moments, limit=WHOLE_SECONDS, environment=environment,
                              file_size=fault.size if mine and fault.kind == "disk" else None)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        return list(threads.map(play, range(2)))


def main(arguments: Sequence[str]) -> int:
    """One process of a pair: prepares what is to happen to it, and runs the program."""
    fault = json.loads(arguments[0])
    if fault and fault["kind"] == "disk":  # JAX would warn of a cache that it cannot write
        import jax

        jax.config.update("jax_compilation_cache_dir", None)
    if fault and fault["unwinding"] is not None:
        from jaxablate.training import processes

        processes.UNWINDING_SECONDS = fault["unwinding"]
    if fault and fault["step"] is not None and int(os.environ["OMPI_COMM_WORLD_RANK"]) in fault["who"]:
        from jaxablate.training import loop

        real, left = loop._to_devices, [fault["step"]]

        def to_devices(batch: Any, program: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and fault["kind"] == "error":
                raise OSError(28, "No space left on device")
            if left[0] == 0:
                os.kill(os.getpid(), getattr(signal, fault["kind"]))
            return real(batch, program)

        loop._to_devices = to_devices
    from jaxablate.commands.main import main as program

    return program(list(arguments[1:]), ends=True)


def _one_device() -> str:
    """Flags of XLA without those that make several devices of one, and with more patience than 30 s for a busy machine.

    XLA ends the process at a flag that it does not know.
    """
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_collective_timeout_seconds=120")
    return " ".join(flags)


# Comparison ----------------------------------------------------------------------------------------------------------


def difference(one: Path, other: Path) -> str | None:
    """Where two finished runs differ: in metrics, parameters, optimiser or cursor; None where nowhere."""
    import jax
    import numpy as np

    from jaxablate.config import MeshConfig
    from jaxablate.runs.checkpoint import Checkpoints
    from jaxablate.runs.workdir import read_config
    from jaxablate.sharding import make_mesh
    from jaxablate.training.loop import make_program
    from jaxablate.training.metrics import read_metrics

    logs = [[{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_metrics(run)]
            for run in (one, other)]
    if logs[0] != logs[1]:
        return f"the logs of {one} and {other} differ"
    ends = []
    for run in (one, other):
        program = make_program(read_config(run), make_mesh(MeshConfig(data=1), jax.devices()[:1]), STEPS)
        checkpoints = Checkpoints(run, 1)
        ends.append(checkpoints.restore(program.stored))
        checkpoints.close()
    (a, cursor_a), (b, cursor_b) = ends
    # The log's checksum is of speeds, too; that its lines are the same was seen above.
    cursors = [{name: value for name, value in cursor.items() if name not in ("config", "log")}
               for cursor in (cursor_a, cursor_b)]
    if int(a.step) != STEPS or cursors[0] != cursors[1]:
        return f"the cursors of {one} and {other} differ: {cursors}"
    pairs = zip(jax.tree_util.tree_leaves_with_path(_plain(a)), jax.tree.leaves(_plain(b)), strict=True)
    differ = [jax.tree_util.keystr(path) for (path, x), y in pairs if not np.array_equal(x, y)]
    return f"{differ} differ between {one} and {other}" if differ else None


def _plain(state: Any) -> Any:
    """Arrays of a state as they are compared."""
    import jax

    return state.params, state.opt_state, jax.random.key_data(state.key)


if __name__ == "__main__":  # python -m faults.two_processes SEED N FOLDER, in tests/
    for number, case in enumerate(cases(int(sys.argv[1]), int(sys.argv[2]))):
        print(number, case, run(case, Path(sys.argv[3]).absolute() / str(number)) or "holds", flush=True)
