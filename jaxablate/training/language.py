"""Language models as a `Task`: story files, both streams' cross-entropy, ranked by the clean one."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxablate.config import Config
from jaxablate.data.pipeline import train_batches, validation_batches
from jaxablate.data.preparation import prepare
from jaxablate.data.progress import progress_report
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.objectives import check_regularizers, language_model_loss
from jaxablate.sharding import fitting_parts
from jaxablate.training.program import Learner, Metrics
from jaxablate.training.task import Pace, Task
from jaxablate.training.throughput import train_flops_per_token
from jaxablate.types import Params


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
    multiple = math.lcm(config.mesh.vocab_multiple, mesh.shape["tensor"])
    rows = -(-config.model.vocab_size // multiple) * multiple
    padded = SelfAblatingTransformer(config.model, vocab_rows=rows)
    tokens = jnp.zeros((1, min(8, config.model.context_length)), jnp.int32)  # parameters do not depend on them

    def loss(params: Params, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Metrics]:
        del key  # this objective draws nothing
        return language_model_loss(padded, params, batch["inputs"], batch["targets"], config.objective,
                                   mask_BT=batch.get("mask"))

    return Learner(
        init_params=lambda key: model.init(key, tokens)["params"],
        train_loss=loss, eval_loss=loss, counted="mask", padded_rows={"embed/embedding": rows},
        parts=lambda batch: accumulation_steps(config, mesh),
    )


def accumulation_steps(config: Config, mesh: Mesh) -> int:
    """Parts of a batch whose gradients are averaged: as configured, or where that is 0 what suits the devices."""
    train = config.train
    return train.accumulation_steps or fitting_parts(mesh, train.batch_size, train.sequence_length)
