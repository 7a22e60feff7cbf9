"""Text classifiers as a `Task`: labelled texts in epochs, SAFR's loss, ranked by accuracy on the development split."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxablate.config import ClassificationConfig
from jaxablate.config.checks import require
from jaxablate.data.progress import progress_report
from jaxablate.data.sentiment.batches import batch_shape, train_batches, validation_batches
from jaxablate.data.sentiment.prepare import prepare
from jaxablate.models.classifier import SafrClassifier
from jaxablate.objectives import check_regularizers, classification_loss
from jaxablate.sharding import fitting_parts, gather
from jaxablate.training.program import Learner, Metrics
from jaxablate.training.task import Pace, Task
from jaxablate.types import Batch, Params


def classification_task(config: ClassificationConfig) -> Task:
    """A text classifier's run, with its data prepared."""
    with progress_report() as report:
        data = prepare(config.data, report=report)
    size = data.tokenizer.vocab_size
    require(config.model.vocab_size == 0 or config.model.vocab_size >= size,
            f"model.vocab_size={config.model.vocab_size} is below the {size} tokens of the data's vocabulary; set it "
            "to 0 to take that, or raise data.min_count")
    train, model, objective = config.train, config.model, config.objective
    texts = {name: len(split) for name, split in data.splits.items()}
    shape: dict[str, Any] = batch_shape(config, data.tokenizer.pad_id) | {
        "process_index": jax.process_index(), "process_count": jax.process_count()}
    per_epoch = -(-texts["train"] // train.batch_size)
    left_out = data.splits["train"].left_out
    balance = f" ({left_out:,} more of the larger class left out by data.balance)" if left_out else ""
    gates = f", k={model.k_attention}/{model.k_neurons}" if model.gated else ""

    def valid_batches() -> Iterator[Batch]:
        for batch in validation_batches(data.splits["dev"], **shape):
            yield {name: rows for name, rows in batch.items() if name != "index"}

    def error_rate(metrics: Mapping[str, float]) -> float:
        """A whole number of wrong texts over all texts, so that equally good epochs compare as equal however the
        batches' means were rounded."""
        return (texts["dev"] - round(metrics["accuracy"] * texts["dev"])) / texts["dev"]

    return Task(
        config=dataclasses.replace(config, model=config.model_for(size)),
        pace=Pace(steps=train.epochs * per_epoch, log_every=train.log_every, eval_every=per_epoch,
                  checkpoint_every=per_epoch, patience=train.patience),
        tokenizer=data.tokenizer,
        facts={"data_hash": {name: split.data_hash for name, split in data.splits.items()}, "texts": texts,
               "tokenizer": {"name": data.tokenizer.name, "fingerprint": data.tokenizer.fingerprint()}},
        train_batches=lambda: train_batches(data.splits["train"], seed=train.seed, **shape),
        valid_batches=valid_batches, valid_loss=error_rate,
        about=f"{config.data.source} with {texts['train']:,} training texts{balance}, {data.tokenizer.name}, lambdas "
              f"{objective.importance:g}/{objective.interaction:g}, padding {model.padding}{gates}",
        unit="texts", units_per_step=train.batch_size,
    )


def classification_learner(config: ClassificationConfig, mesh: Mesh) -> Learner:
    """The SAFR classifier with its loss; the config's vocabulary size is resolved.

    Raises:
      ConfigError: a regulariser is not registered, or reads VMASK of a model without it.
    """
    check_regularizers(config.objective, vmask=config.model.vmask)
    model = SafrClassifier(config.model)
    tokens = jnp.zeros((1, min(8, config.model.max_length)), jnp.int32)  # parameters do not depend on them

    def loss(train: bool, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        dropout, vmask = jax.random.split(key)
        rngs = {"dropout": dropout, "vmask": vmask} if train else None
        return classification_loss(model, gather(mesh, params), batch, config.objective, train=train, rngs=rngs)

    return Learner(
        init_params=lambda key: model.init(key, tokens, jnp.ones(tokens.shape))["params"],
        train_loss=lambda params, batch, key, step: loss(True, params, batch, key),
        eval_loss=functools.partial(loss, False),
        counted="weight", weighed="weight",
        parts=lambda batch: fitting_parts(mesh, *batch["tokens"].shape),
    )
