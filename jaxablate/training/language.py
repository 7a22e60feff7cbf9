"""Language models as a `Task`: story files, both streams' cross-entropy, ranked by the clean one."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxablate.config import Config
from jaxablate.data.pipeline import train_batches, validation_batches
from jaxablate.data.preparation import prepare
from jaxablate.data.progress import progress_report
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.stacking import Columns, layer_groups, stack_layers, unstack_layers
from jaxablate.objectives import Moment, check_regularizers, language_model_loss
from jaxablate.ops.triton import is_gpu
from jaxablate.sharding import BATCH_AXES, batch_parts, by_device, fitting_parts, gather
from jaxablate.training.program import Learner, Metrics, Rows
from jaxablate.training.task import Pace, Task
from jaxablate.training.throughput import train_flops_per_token
from jaxablate.types import Params

_MOST_UNROLLED = 12


def language_task(config: Config, mesh: Mesh) -> Task:
    """A language model's run with its token files open.

    Raises:
      DataError: a data file is missing or damaged, or has more tokens than the model knows.
    """
    with progress_report() as report:
        data = prepare(config.data, report=report)
    data.train.require_vocab(config.model.vocab_size)
    settings, model = config.train, config.model
    shape: dict[str, Any] = {"sequence_length": settings.sequence_length, "process_index": jax.process_index(),
                             "process_count": jax.process_count()}
    parts = accumulation_steps(config, mesh)
    tokens = settings.batch_size * settings.sequence_length
    gates = f"k={model.k_attention}/{model.k_neurons}" if model.gated else "no gates"
    return Task(
        config=config,
        pace=Pace(steps=settings.steps, log_every=settings.log_every, eval_every=settings.eval_every,
                  checkpoint_every=settings.checkpoint_every),
        tokenizer=data.tokenizer,
        facts={
            "data_hash": {"train": data.train.data_hash, "valid": data.valid.data_hash},
            "train_tokens": data.train.n_tokens,
            "valid_tokens": data.valid.n_tokens,
            "tokenizer": {"name": data.tokenizer.name, "fingerprint": data.tokenizer.fingerprint()},
        },
        train_batches=lambda: train_batches(data.train, batch_size=settings.batch_size, seed=settings.seed, **shape),
        # Read in the parts that training takes them in; which tokens are seen does not depend on the parts.
        valid_batches=lambda: validation_batches(data.valid, batch_size=settings.batch_size // parts,
                                                 max_batches=settings.eval_batches * parts, **shape),
        valid_loss=lambda metrics: metrics["loss_clean"],
        about=f"ablation {model.ablation}, {gates}",
        unit="tokens",
        units_per_step=tokens,
        flops_per_step=tokens * train_flops_per_token(model, settings.sequence_length),
    )


def language_learner(config: Config, mesh: Mesh) -> Learner:
    """The self-ablating transformer with `jaxablate.objectives.language_model_loss`.

    Raises:
      ConfigError: a regulariser is not registered.
    """
    check_regularizers(config.objective, vmask=False)
    model = SelfAblatingTransformer(config.model)
    # On one CPU device padding is of no use, and leaving its logits out takes the loss a tenth of its time.
    on_cpu, parts = mesh.devices.flat[0].platform == "cpu", mesh.shape["tensor"]
    multiple = 1 if on_cpu and parts == 1 else math.lcm(config.mesh.vocab_multiple, parts)
    rows = -(-config.model.vocab_size // multiple) * multiple
    groups = None if on_cpu else _layer_groups(config)
    whole = mesh.shape["fsdp"] == mesh.shape["tensor"] == 1  # only a scan gathers parameters a layer at a time
    packed = SelfAblatingTransformer(config.model, vocab_rows=rows, groups=groups, mesh=mesh,
                                     unroll=is_gpu(mesh) and whole and config.model.n_layers <= _MOST_UNROLLED)
    shared_out = batch_parts(mesh) > 1
    tokens = jnp.zeros((1, min(8, config.model.context_length)), jnp.int32)  # parameters do not depend on them

    def loss_of_rows(params: Params, batch: Rows, moment: Moment | None) -> tuple[jax.Array, Metrics]:
        # A scan gathers those of its layers, one after another.
        scanned = {name: value for name, value in params.items() if groups and re.match(r"layers_\d+$", name)}
        params = gather(mesh, {name: value for name, value in params.items() if name not in scanned}) | scanned
        return language_model_loss(packed, params, batch["inputs"], batch["targets"], config.objective,
                                   mask_BT=batch.get("mask"), batch_axes=BATCH_AXES if shared_out else (),
                                   moment=moment)

    def loss(params: Params, batch: Rows, moment: Moment | None) -> tuple[jax.Array, Metrics]:
        return (by_device(mesh, loss_of_rows) if shared_out else loss_of_rows)(params, batch, moment)

    def train_loss(params: Params, batch: Rows, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        return loss(params, batch, Moment(step / config.train.steps, key) if config.objective.changes else None)

    def pack(params: Params) -> Params:
        return _with_vocabulary(params if groups is None else stack_layers(params, groups), rows)

    def unpack(params: Params) -> Params:
        return _with_vocabulary(params if groups is None else unstack_layers(params, groups), config.model.vocab_size)

    return Learner(
        init_params=lambda key: model.init(key, tokens)["params"], pack=pack, unpack=unpack,
        train_loss=train_loss, eval_loss=lambda params, batch, key: loss(params, batch, None), counted="mask",
        parts=lambda batch: accumulation_steps(config, mesh),
    )


def _with_vocabulary(params: Params, rows: int) -> Params:
    """Parameters with so many rows of the embedding, and of the output matrix where it is another one: rows of zeros
    are added at the end, or the last ones removed."""
    def sized(table: jax.Array) -> jax.Array:
        return jnp.pad(table, [(0, max(0, rows - table.shape[0])), (0, 0)])[:rows]

    return {**params, **{name: jax.tree.map(sized, params[name]) for name in ("embed", "unembed") if name in params}}


def _layer_groups(config: Config) -> tuple[Columns, ...]:
    """Layers of the same code: the same window, as far as a sequence shows it, and k, and regularised or not."""
    model, regularized = config.model, config.objective.regularized_layers

    def kind(i: int) -> tuple[Any, ...]:
        window = model.layer_window(i)
        narrow = window if window is not None and window < config.train.sequence_length else None
        return narrow, model.layer_k("attention", i), model.layer_k("neurons", i), not regularized or i in regularized

    return layer_groups([kind(i) for i in range(model.n_layers)])


def accumulation_steps(config: Config, mesh: Mesh) -> int:
    """Parts of a batch whose gradients are averaged: as configured, or where that is 0 what suits the devices."""
    train = config.train
    return train.accumulation_steps or fitting_parts(mesh, train.batch_size, train.sequence_length)
