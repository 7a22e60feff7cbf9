"""Text classifiers as a `Task`: labelled texts in epochs, SAFR's loss, ranked by accuracy on the development split."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxablate.config import ClassificationConfig
from jaxablate.data.progress import progress_report
from jaxablate.data.sentiment.batches import batch_shape, train_batches, validation_batches
from jaxablate.data.sentiment.prepare import SentimentData, prepare
from jaxablate.errors import ConfigError
from jaxablate.models.classifier import SafrClassifier
from jaxablate.objectives import check_regularizers, classification_loss
from jaxablate.sharding import fitting_parts
from jaxablate.training.program import Learner, LossFunction, Metrics
from jaxablate.training.task import Pace, Task
from jaxablate.types import Batch


def classification_task(config: ClassificationConfig) -> Task:
    """A text classifier's run.

    Raises:
      DataError: the data is missing, malformed or damaged.
      ConfigError: the model's vocabulary is smaller than the data's.
    """
    with progress_report() as report:
        data = prepare(config.data, report=report)
    if 0 < config.model.vocab_size < data.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is below the {data.tokenizer.vocab_size} tokens of the data's"
            " vocabulary; set it to 0 to take that, or raise data.min_count"
        )
    train, shape = config.train, batch_shape(config, data.tokenizer.pad_id) | _process()
    per_epoch = -(-len(data.splits["train"]) // train.batch_size)
    steps = train.epochs * per_epoch
    return Task(
        config=dataclasses.replace(config, model=config.model_for(data.tokenizer.vocab_size)),
        pace=Pace(steps=steps, log_every=train.log_every, eval_every=per_epoch,
                  checkpoint_every=per_epoch, patience=train.patience),
        tokenizer=data.tokenizer,
        facts=_facts(data),
        train_batches=lambda: train_batches(data.splits["train"], seed=train.seed, **shape),
        valid_batches=lambda: _without_index(validation_batches(data.splits["dev"], **shape)),
        valid_loss=lambda metrics: _error_rate(metrics["accuracy"], len(data.splits["dev"])),
        about=_about(config, data),
        unit="texts",
        units_per_step=train.batch_size,
    )


def classification_learner(config: ClassificationConfig, mesh: Mesh) -> Learner:
    """The SAFR classifier with its loss; the config's vocabulary size is resolved.

    Raises:
      ConfigError: a regulariser is not registered, or reads VMASK of a model without it.
    """
    check_regularizers(config.objective, vmask=config.model.vmask)
    model = SafrClassifier(config.model)
    tokens = jnp.zeros((1, min(8, config.model.max_length)), jnp.int32)
    return Learner(
        init_params=lambda key: model.init(key, tokens, jnp.ones(tokens.shape))["params"],
        train_loss=_loss(model, config, train=True),
        eval_loss=_loss(model, config, train=False),
        counted="weight",
        weighed="weight",
        parts=lambda batch: fitting_parts(mesh, *batch["tokens"].shape),
    )


def _loss(model: SafrClassifier, config: ClassificationConfig, train: bool) -> LossFunction:
    def loss(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        dropout, vmask = jax.random.split(key)
        rngs = {"dropout": dropout, "vmask": vmask} if train else None
        return classification_loss(model, params, batch, config.objective, train=train, rngs=rngs)

    return loss


def _without_index(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    return ({name: rows for name, rows in batch.items() if name != "index"} for batch in batches)


def _error_rate(accuracy: float, texts: int) -> float:
    """Wrong texts over all of them: a whole number of them, so that equally good epochs compare as equal however the
    batches' means were rounded."""
    return (texts - round(accuracy * texts)) / texts


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def _facts(data: SentimentData) -> dict[str, Any]:
    return {
        "data_hash": {name: split.data_hash for name, split in data.splits.items()},
        "texts": {name: len(split) for name, split in data.splits.items()},
        "tokenizer": {"name": data.tokenizer.name, "fingerprint": data.tokenizer.fingerprint()},
    }


def _about(config: ClassificationConfig, data: SentimentData) -> str:
    model, objective = config.model, config.objective
    gates = f", k={model.k_attention}/{model.k_neurons}" if model.gated else ""
    lambdas = f"lambdas {objective.importance:g}/{objective.interaction:g}, padding {model.padding}{gates}"
    train = data.splits["train"]
    left_out = f" ({train.left_out:,} more of the larger class left out by data.balance)" if train.left_out else ""
    return f"{config.data.source} with {len(train):,} training texts{left_out}, {data.tokenizer.name}, {lambdas}"


