"""A run's own step, compiled for a machine that need not be here: what it needs, what it does, how fast it is at best.

The compilers for TPUs and NVIDIA GPUs run on any machine. No data is read, nothing is written and no array is made:
the step is lowered for shapes. What no compiler tells is time; the bounds are arithmetic over data sheets.
"""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxablate.config import Config, RunConfig
from jaxablate.config.checks import divisors
from jaxablate.errors import ConfigError
from jaxablate.provenance import device_names
from jaxablate.sharding import batch_sharding, device_memory, make_mesh
from jaxablate.training.hlo import Work, work
from jaxablate.training.language import accumulation_steps
from jaxablate.training.loop import make_program
from jaxablate.training.throughput import accelerator, train_flops_per_token

HERE = "here"
"""The target that is this machine."""
TPUS = {"v5e": ("v5e:4x4", 15.75), "v5p": ("v5p:2x2x1", 95.74), "v6e": ("v6e:4x4", 31.25)}
"""Kinds of TPU: a topology for example, and GiB that libtpu 0.0.42 gives a program on one device."""
GPUS = {
    # name, compute capability, cores, shared memory of a core, bytes a second, L2 cache, GHz, memory
    "a100": ("NVIDIA A100-SXM4-80GB", "major: 8", 108, 167936, 2039040000000, 41943040, 1.41, 85100068864),
    "h100": ("NVIDIA H100 80GB HBM3", "major: 9", 132, 233472, 3352320000000, 52428800, 1.98, 84942979072),
    "h200": ("NVIDIA H200 141GB HBM3e", "major: 9", 132, 233472, 4800000000000, 52428800, 1.98, 151397597184),
    "b200": ("NVIDIA B200", "major: 10", 148, 233472, 7672320000000, 132644864, 1.965, 191514411008),
}
"""Kinds of GPU as XLA's own target configurations describe them, with NVLink between the eight of a host."""
_GPUS_OF_A_HOST = 8
_TPU_SETTINGS = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
                 "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""What libtpu is told where no TPU is: to look for none, and that several processes may compile at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A compiled step; memory in bytes and work are those of one device."""

    target: str
    devices: str
    """Their number and kind."""
    mesh: Mapping[str, int]
    rows: int
    """Rows of a batch, over all devices."""
    length: int
    """Tokens of a row."""
    n_parameters: int
    parts: int
    """Parts of a batch that are taken one after another."""
    parameters: int
    """Bytes of parameters as they are stored between steps, with the padding of the vocabulary."""
    optimizer: int
    batch: int
    arguments: int
    """Parameters, optimiser and batch as the compiler lays them out."""
    outputs: int
    """Results that do not take the place of arguments."""
    temporaries: int
    """Activations, gradients and all else that lives within the step."""
    code: int | None
    """The program itself; None where the compiler does not tell, as for GPUs."""
    room: int
    """What a program may use."""
    room_from: str
    """Where that figure comes from."""
    refusal: str | None
    """The compiler's own words where it refuses the program for its memory; then it made none, and `work` is empty."""
    work: Work
    compiler_flops: float | None
    """Operations by the compiler's cost analysis, which counts a loop's body once; None where it does not tell."""
    model_flops: float | None
    """Operations by `train_flops_per_token`; None for text classifiers."""
    flops_limit: float | None
    """Operations a second of matrix products of this type, by the data sheet; None where the kind is unknown."""
    bandwidth_limit: float | None
    """Bytes a second of memory, likewise."""
    trace_seconds: float
    compile_seconds: float

    @property
    def total(self) -> int:
        """Bytes that a device needs."""
        return self.arguments + self.outputs + self.temporaries + (self.code or 0)

    @property
    def fits(self) -> bool:
        """Whether a device has as many."""
        return self.refusal is None and self.total <= self.room

    def bounds(self) -> dict[str, float]:
        """Tokens a second of all devices that arithmetic and memory allow at most, each alone, where they are known."""
        tokens = self.rows * self.length
        pairs = {"arithmetic": (self.work.flops, self.flops_limit), "memory": (self.work.traffic, self.bandwidth_limit)}
        return {name: tokens * limit / needed for name, (needed, limit) in pairs.items() if needed and limit}


def plan(config: RunConfig, target: str = HERE) -> Plan:
    """Compiles the step of a run for a machine.

    Args:
      config: all settings of the run.
      target: ``here``, a TPU slice such as ``v5e:4x4`` or ``v5p:2x2x1``, or GPUs such as ``h100:8``.

    Raises:
      ConfigError: the target is unknown, its compiler is not installed, the mesh or the batch does not fit it, or a
        classifier's vocabulary size is left to the data.
    """
    devices = target_devices(target)
    platform = None if target == HERE else "tpu" if target.partition(":")[0] in TPUS else "cuda"
    if not isinstance(config, Config) and config.model.vocab_size == 0:
        raise ConfigError("model.vocab_size=0 takes the size of the data's vocabulary, and a plan reads no data; give "
                          "--model.vocab-size, for example 16000")
    mesh = make_mesh(config.mesh, devices)
    devices = list(mesh.devices.flat)
    program = make_program(config, mesh, config.train.steps if isinstance(config, Config) else 1000)
    batch = abstract_batch(config)
    rows, length = next(x.shape for x in batch.values() if x.ndim == 2)
    state, kind = program.abstract, accelerator(devices[0].device_kind)
    room, room_from = _room(target, devices)
    start = time.perf_counter()
    lowered = program.step.trace(state, batch).lower(
        lowering_platforms=None if platform is None else (platform,))
    traced = time.perf_counter()
    # Autotuning would need the GPU.
    options: dict[str, Any] = {"xla_gpu_autotune_level": 0} if platform == "cuda" else {}
    compiled, refusal = None, None
    with _without_cache():
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            words = " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())
            refusal = re.sub(r"^.*?(?=Ran out of memory)", "", words).split(". ")[0].removesuffix(".")
    done = time.perf_counter()
    parameters, optimizer = _bytes(state.params), _bytes(state.opt_state)
    batch_bytes = sum(math.prod(batch_sharding(mesh).shard_shape(x.shape)) * x.dtype.itemsize for x in batch.values())
    memory = compiled.memory_analysis() if compiled else None
    costs = compiled.cost_analysis() if compiled else None
    tokens = rows * length
    return Plan(
        target=target, devices=device_names(devices), mesh=dict(mesh.shape), rows=rows, length=length,
        n_parameters=program.n_parameters, parts=accumulation_steps(config, mesh) if isinstance(config, Config) else 1,
        parameters=parameters, optimizer=optimizer, batch=batch_bytes,
        arguments=memory.argument_size_in_bytes if memory else parameters + optimizer + batch_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes if memory else 0,
        temporaries=memory.temp_size_in_bytes if memory else 0,
        code=memory.generated_code_size_in_bytes or None if memory else None,
        room=room, room_from=room_from, refusal=refusal, work=work(compiled.as_text()) if compiled else Work(),
        compiler_flops=costs.get("flops") if costs else None,
        model_flops=(tokens * train_flops_per_token(config.model, length) / len(devices)
                     if isinstance(config, Config) else None),
        flops_limit=_flops_limit(config, kind), bandwidth_limit=kind.bandwidth if kind else None,
        trace_seconds=traced - start, compile_seconds=done - traced,
    )


def target_devices(target: str) -> list[Any]:
    """Devices of a target, for which can be compiled, and on which nothing runs unless it is ``here``.

    Raises:
      ConfigError: the target is unknown, or its compiler is not installed.
    """
    if target == HERE:
        return jax.devices()
    kind, _, shape = target.partition(":")
    if kind in TPUS:
        return _tpus(target, kind, shape)
    if kind in GPUS:
        return _gpus(target, kind, shape)
    examples = [HERE, *(example for example, _ in TPUS.values()), *(f"{kind}:8" for kind in GPUS)]
    near = difflib.get_close_matches(target, examples, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"target {target!r:.80} is unknown; {hint}There are {', '.join(examples)} and other sizes")


def _tpus(target: str, kind: str, shape: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise _no_compiler(target, "tpu")
    for name, value in _TPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    alone: dict[str, Any] = {"chips_per_host_bounds": [1, 1, 1]} if set(shape) <= set("1x") else {}
    try:
        return list(topologies.get_topology_desc(topology_name=target, platform="tpu", **alone).devices)
    except jax.errors.JaxRuntimeError as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"target {target!r:.80} is no slice that the TPU compiler knows ({words:.200}); give one "
                          f"such as {TPUS[kind][0]}") from None


def _gpus(target: str, kind: str, shape: str) -> list[Any]:
    number = int(shape) if re.fullmatch(r"[1-9]\d{0,4}", shape) else 0
    hosts = -(-number // _GPUS_OF_A_HOST)
    if number == 0 or number % hosts or number // hosts > _GPUS_OF_A_HOST or (hosts > 1 and number % _GPUS_OF_A_HOST):
        raise ConfigError(f"target {target!r:.80} must be {kind}:N, with 1 to {_GPUS_OF_A_HOST} GPUs or a multiple of "
                          f"{_GPUS_OF_A_HOST}, such as {kind}:8")
    if all(importlib.util.find_spec(f"jax_cuda{version}_plugin") is None for version in (12, 13)):
        raise _no_compiler(target, "cuda13")
    shape = f"1x{hosts}x{number // hosts}"
    return list(topologies.get_topology_desc(platform="cuda", topology_name=kind, topology=shape,
                                             target_config=_gpu_target(kind)).devices)


def _no_compiler(target: str, extra: str) -> ConfigError:
    version = importlib.metadata.version("jax")
    return ConfigError(f'target {target} needs a compiler that is not installed; pip install "jax[{extra}]=={version}" '
                       "(no such device is needed)")


def _gpu_target(kind: str) -> str:
    """A GpuTargetConfigProto in text form."""
    name, capability, cores, shared, bandwidth, cache, clock, memory = GPUS[kind]
    return f"""
      gpu_device_info {{
        threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: {cores}
        fpus_per_core: 128 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
        shared_memory_per_block_optin: {shared - 1024} registers_per_core_limit: 65536 registers_per_block_limit: 65536
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
        memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
        cuda_compute_capability {{ {capability} }} name: "{name}" device_vendor: "NVIDIA Corporation"
        driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
        dnn_version: "9.10.0"
      }}
      platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}" """


def _room(target: str, devices: Sequence[Any]) -> tuple[int, str]:
    """Bytes that a program may use of a device, and who says so."""
    kind = target.partition(":")[0]
    if kind in TPUS:
        return int(TPUS[kind][1] * 2**30), "what libtpu gives a program"
    if kind in GPUS:
        share, memory = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75)), GPUS[kind][-1]
        return int(share * memory), f"{share:.0%} of {_size(memory)}, JAX's share"
    has_own = (devices[0].memory_stats() or {}).get("bytes_limit")
    return device_memory(devices), "what the device says" if has_own else "a share of this machine's memory"


def _flops_limit(config: RunConfig, kind: Any) -> float | None:
    limits = {"bfloat16": kind.flops, "float32": kind.float32_flops} if kind else {}
    return limits.get(config.model.compute_dtype)


def abstract_batch(config: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch; of a classifier's the longest."""
    if isinstance(config, Config):
        tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.train.sequence_length), jnp.int32)
        return {"inputs": tokens, "targets": tokens}
    rows, length = config.train.batch_size, config.model.max_length
    shapes = {"tokens": ((rows, length), jnp.int32), "mask": ((rows, length), jnp.float32),
              "labels": ((rows,), jnp.int32), "weight": ((rows,), jnp.float32)}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


def _bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Compiles anew: a program for a device that is not here can be stored but not read, and the time is told."""
    setting = "jax_enable_compilation_cache"
    before = getattr(jax.config, setting)
    jax.config.update(setting, False)
    try:
        yield
    finally:
        jax.config.update(setting, before)


def advice(config: RunConfig, needs: Plan) -> str:
    """What to change where a plan does not fit, as flags, the most promising first."""
    train, mesh = config.train, needs.mesh
    shares = mesh["data"] * mesh["fsdp"]
    changes = []
    if isinstance(config, Config):
        if config.model.remat == "none":
            changes.append("--model.remat blocks")
        parts = [n for n in divisors(train.batch_size) if n > needs.parts and train.batch_size // n % shares == 0]
        if parts:
            changes.append(f"--train.accumulation-steps {parts[0]}")
    if mesh["data"] > 1:  # shares out the state alone
        first = needs.parameters + needs.optimizer > needs.total // 2
        changes.insert(0 if first else len(changes), f"--mesh.fsdp {shares}")
    if train.batch_size > shares:
        changes.append(f"--train.batch-size {max(train.batch_size // shares // 2, 1) * shares}")
    return "try " + ", ".join([*changes, "more devices"])


def report(name: str, config: RunConfig, needs: Plan, console: Console) -> None:
    """Prints a plan, in 80 columns.

    Args:
      name: what the run is called.
      config: its settings.
      needs: its plan.
      console: where to.
    """
    done, share = needs.work, needs.total / needs.room
    mesh = " ".join(f"{axis}={size}" for axis, size in needs.mesh.items())

    def section(title: str) -> Table:
        console.print(title, style="bold", highlight=False)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=20)
        table.add_column(width=13, justify="right")
        table.add_column(max_width=41)
        return table

    parts = f" in {needs.parts} parts" if needs.parts > 1 else ""
    seconds = f"traced in {needs.trace_seconds:.1f} s, compiled in {needs.compile_seconds:.1f} s"
    console.print(f"{name} on {needs.target}: {needs.devices}, mesh {mesh}", style="bold", highlight=False)
    console.print(f"batch of {needs.rows} x {needs.length} tokens{parts}, {config.model.compute_dtype}; {seconds}",
                  highlight=False)
    table = section("memory of a device")
    table.add_row("  parameters", _size(needs.parameters), f"{needs.n_parameters:,} numbers in all")
    table.add_row("  optimizer", _size(needs.optimizer))
    table.add_row("  batch", _size(needs.batch))
    if needs.refusal is None:
        table.add_row("  temporaries", _size(needs.temporaries), "activations, gradients")
        table.add_row("  code", "not told" if needs.code is None else _size(needs.code))
        fits = Text("fits", "green") if needs.fits else Text("does not fit", "bold red")
        table.add_row("  all, as laid out", _size(needs.total),
                      Text.assemble(f"{share:.1%} of {_size(needs.room)}: ", fits))
    else:
        table.add_row("  the compiler", "", Text.assemble(needs.refusal, ": ", ("does not fit", "bold red")))
    table.add_row("  there is", _size(needs.room), needs.room_from)
    console.print(table, highlight=False)
    if needs.refusal is not None:
        return
    table = section("a step of a device")
    loops = f"; loops of unknown length, counted once: {done.unknown_loops}" if done.unknown_loops else ""
    table.add_row("  kernels", f"{done.kernels:,}", f"instructions that run{loops}")
    if needs.model_flops is not None:
        table.add_row("  model's arithmetic", _flop(needs.model_flops), "by its shape, nothing computed twice")
    times = f"{done.flops / needs.model_flops:.2f} times the model's" if needs.model_flops else ""
    table.add_row("  compiled products", _flop(done.flops), times)
    if needs.compiler_flops is not None:
        table.add_row("  compiler's count", _flop(needs.compiler_flops), "all operations; a loop's body once")
    table.add_row("  memory traffic", _size(done.traffic), "read and written by kernels")
    for kind, collective in done.collectives.items():
        table.add_row(f"  {kind}", _size(collective.bytes), f"in {collective.count:,}")
    console.print(table, highlight=False)
    table, bounds = section("at best, tokens a second of all devices"), needs.bounds()
    limits = {"arithmetic": f"{(needs.flops_limit or 0) / 1e12:,.0f} TFLOP/s a device",
              "memory": f"{(needs.bandwidth_limit or 0) / 1e9:,.0f} GB/s a device"}
    for bound, rate in bounds.items():
        is_limit = rate == min(bounds.values()) and len(bounds) > 1
        table.add_row(f"  {bound}", f"{rate:,.0f}",
                      Text.assemble(limits[bound], (", the limit" if is_limit else "", "bold")))
    if not bounds:
        table.add_row("  not known", "", f"no data sheet of {needs.devices}, {config.model.compute_dtype}")
    console.print(table, highlight=False)


def _size(count: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:#.3g} {unit}".replace(". ", " ")
    return f"{count:.0f} B"


def _flop(count: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:#.3g} {unit}".replace(". ", " ")
    return f"{count / 1e6:#.3g} MFLOP".replace(". ", " ")
