"""The compiled functions of a run, and the shapes and places of its state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxablate.config import Config, ObjectiveConfig
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.objectives import language_model_loss
from jaxablate.sharding import check_batch
from jaxablate.training.optimizer import learning_rate_schedule, make_optimizer
from jaxablate.training.state import InitParams, TrainState, abstract_state, init_state, state_shardings
from jaxablate.training.step import (
    Batch,
    LossFunction,
    Metrics,
    make_eval_step,
    make_finite_check,
    make_train_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What `train` runs; each function compiles at its first call.

    Attributes:
      mesh: devices.
      abstract: shapes of the state.
      shardings: of the state.
      init: makes a fresh state.
      step: (state, batch) -> (state, metrics); donates the state.
      evaluate: (params, batch with mask) -> metrics and their number of tokens.
      finite: state -> whether all of it is finite.
    """

    mesh: Mesh
    abstract: TrainState
    shardings: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Batch], Metrics]
    finite: Callable[[TrainState], jax.Array]

    @property
    def n_parameters(self) -> int:
        """Numbers in the parameter tree."""
        return sum(x.size for x in jax.tree.leaves(self.abstract.params))


def make_program(config: Config, mesh: Mesh) -> Program:
    """Functions that train a self-ablating transformer on a mesh.

    Raises:
      ConfigError: the batch does not split over the mesh, or a parameter has no partition rule.
    """
    accumulation = accumulation_steps(config, mesh)
    check_batch(mesh, config.train.batch_size // accumulation)
    model = SelfAblatingTransformer(config.model)
    init_params = param_initializer(model)
    loss_fn = language_loss(model, config.objective)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    schedule = learning_rate_schedule(config.optimizer, config.train.steps)
    abstract = abstract_state(init_params, optimizer)
    shardings = state_shardings(mesh, abstract, optimizer)
    return Program(
        mesh=mesh,
        abstract=abstract,
        shardings=shardings,
        init=lambda: init_state(init_params, optimizer, config.train.seed, shardings),
        step=make_train_step(loss_fn, optimizer, schedule, mesh, shardings, accumulation),
        evaluate=make_eval_step(loss_fn, mesh, shardings),
        finite=make_finite_check(shardings),
    )


# Tokens of one part of a batch on one CPU device: at the paper's shape 512 was the fastest of 256 to 8,192.
_CPU_PART_TOKENS = 512


def accumulation_steps(config: Config, mesh: Mesh) -> int:
    """Parts of a batch whose gradients are averaged: as configured, or where that is 0 what suits the devices.

    The automatic choice is the smallest number of equal parts that each device can share and hold.
    """
    train = config.train
    if train.accumulation_steps or mesh.devices.flat[0].platform != "cpu":
        return max(1, train.accumulation_steps)
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0]
    fitting = [n for n in parts if train.batch_size // n * train.sequence_length <= _CPU_PART_TOKENS * shares]
    sharable = [n for n in parts if (train.batch_size // n) % shares == 0]
    if not sharable:
        return 1
    return next((n for n in fitting if n in sharable), sharable[-1])


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
