"""Language models as a `Task`: story files, both streams' cross-entropy, ranked by the clean one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxablate.config import Config, ObjectiveConfig
from jaxablate.data.pipeline import train_batches, validation_batches
from jaxablate.data.prepare import PreparedData, prepare
from jaxablate.data.progress import progress_report
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.objectives import check_regularizers, language_model_loss
from jaxablate.sharding import fitting_parts
from jaxablate.training.flops import train_flops_per_token
from jaxablate.training.state import InitParams
from jaxablate.training.step import Batch, LossFunction, Metrics
from jaxablate.training.task import Learner, Pace, Task


def language_task(config: Config, mesh: Mesh) -> Task:
    """A language model's run.

    Raises:
      DataError: a data file is missing or damaged, or has more tokens than the model knows.
    """
    with progress_report() as report:
        data = prepare(config.data, report=report)
    data.train.require_vocab(config.model.vocab_size)
    settings, process = config.train, {"process_index": jax.process_index(), "process_count": jax.process_count()}
    parts = accumulation_steps(config, mesh)
    tokens = settings.batch_size * settings.sequence_length
    return Task(
        config=config,
        pace=Pace(steps=settings.steps, log_every=settings.log_every, eval_every=settings.eval_every,
                  checkpoint_every=settings.checkpoint_every),
        tokenizer=data.tokenizer,
        facts=_facts(data),
        train_batches=lambda: train_batches(
            data.train, batch_size=settings.batch_size, sequence_length=settings.sequence_length, seed=settings.seed,
            **process,
        ),
        # Read in the parts that training takes them in; which tokens are seen does not depend on the parts.
        valid_batches=lambda: validation_batches(
            data.valid, batch_size=settings.batch_size // parts, sequence_length=settings.sequence_length,
            max_batches=settings.eval_batches * parts, **process,
        ),
        valid_loss=lambda metrics: metrics["loss_clean"],
        about=_about(config),
        unit="tokens",
        units_per_step=tokens,
        flops_per_step=tokens * train_flops_per_token(config.model, settings.sequence_length),
    )


def language_learner(config: Config) -> Learner:
    """The self-ablating transformer with its loss.

    Raises:
      ConfigError: a regulariser is not registered.
    """
    check_regularizers(config.objective, vmask=False)
    model = SelfAblatingTransformer(config.model)
    loss = language_loss(model, config.objective)
    return Learner(init_params=param_initializer(model), train_loss=loss, eval_loss=loss, counted="mask")


def param_initializer(model: SelfAblatingTransformer) -> InitParams:
    """Function that draws a model's parameters from a key; their shapes do not depend on the tokens seen."""
    tokens = jnp.zeros((1, min(8, model.config.context_length)), jnp.int32)
    return lambda key: model.init(key, tokens)["params"]


def language_loss(model: SelfAblatingTransformer, objective: ObjectiveConfig) -> LossFunction:
    """`jaxablate.objectives.language_model_loss` of a batch with ``inputs``, ``targets`` and perhaps ``mask``."""

    def loss(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        del key  # this objective draws nothing
        inputs, targets = batch["inputs"], batch["targets"]
        return language_model_loss(model, params, inputs, targets, objective, mask_BT=batch.get("mask"))

    return loss


def accumulation_steps(config: Config, mesh: Mesh) -> int:
    """Parts of a batch whose gradients are averaged: as configured, or where that is 0 what suits the devices."""
    train = config.train
    return train.accumulation_steps or fitting_parts(mesh, train.batch_size, train.sequence_length)


def _facts(data: PreparedData) -> dict[str, Any]:
    return {
        "data_hash": {"train": data.train.data_hash, "valid": data.valid.data_hash},
        "train_tokens": data.train.n_tokens,
        "valid_tokens": data.valid.n_tokens,
        "tokenizer": {"name": data.tokenizer.name, "fingerprint": data.tokenizer.fingerprint()},
    }


def _about(config: Config) -> str:
    model = config.model
    gates = f"k={model.k_attention}/{model.k_neurons}" if model.gated else "no gates"
    return f"ablation {model.ablation}, {gates}"
