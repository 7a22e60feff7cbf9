"""The compiled functions of a run, and the shapes and places of its state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxablate.config import Config, RunConfig
from jaxablate.sharding import check_batch, fitting_parts
from jaxablate.training.classification import classification_learner
from jaxablate.training.language import accumulation_steps, language_learner
from jaxablate.training.optimizer import learning_rate_schedule, make_optimizer
from jaxablate.training.state import TrainState, abstract_state, make_initializer, state_shardings
from jaxablate.training.step import Batch, Metrics, make_eval_step, make_finite_check, make_train_step
from jaxablate.training.task import Learner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What `train` runs; each function compiles at its first call with a batch of another shape.

    Attributes:
      mesh: devices.
      abstract: shapes of the state.
      shardings: of the state.
      init: seed -> a fresh state.
      step: (state, batch) -> (state, metrics); donates the state.
      evaluate: (params, batch with mask or weight) -> metrics, and ``count``, of how many things they are means.
      finite: state -> whether all of it is finite.
    """

    mesh: Mesh
    abstract: TrainState
    shardings: TrainState
    init: Callable[[int], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Batch], Metrics]
    finite: Callable[[TrainState], jax.Array]

    @property
    def n_parameters(self) -> int:
        """Numbers in the parameter tree."""
        return sum(x.size for x in jax.tree.leaves(self.abstract.params))


def make_program(config: RunConfig, mesh: Mesh, steps: int | None = None) -> Program:
    """Functions that train a model on a mesh.

    Args:
      config: of the run; a classifier's vocabulary size is resolved.
      mesh: from `jaxablate.sharding.make_mesh`.
      steps: updates of the whole run, the length of the learning rate's schedule; None takes ``config.train.steps``,
        which a language model's run has.

    Returns:
      The same program for runs that differ in their seed alone, so that they share what is compiled.

    Raises:
      ConfigError: the batch does not split over the mesh, or a parameter has no partition rule.
    """
    check_shares(config, mesh)
    seedless = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=0))
    return _program(seedless, mesh, config.train.steps if steps is None else steps)


def check_shares(config: RunConfig, mesh: Mesh) -> None:
    """Refuses a batch that does not split over the mesh.

    Raises:
      ConfigError: see above.
    """
    if isinstance(config, Config):
        rows = config.train.batch_size // accumulation_steps(config, mesh)
        check_batch(mesh, rows, "train.batch_size over train.accumulation_steps")
    else:
        check_batch(mesh, config.train.batch_size)


def _parts(config: RunConfig, mesh: Mesh) -> Callable[[Batch], int]:
    if isinstance(config, Config):
        return lambda batch: accumulation_steps(config, mesh)
    return lambda batch: fitting_parts(mesh, *batch["tokens"].shape)


def _learner(config: RunConfig) -> Learner:
    return language_learner(config) if isinstance(config, Config) else classification_learner(config)


@functools.lru_cache(maxsize=2)
def _program(config: RunConfig, mesh: Mesh, steps: int) -> Program:
    learner = _learner(config)
    optimizer = make_optimizer(config.optimizer, steps)
    schedule = learning_rate_schedule(config.optimizer, steps)
    abstract = abstract_state(learner.init_params, optimizer)
    shardings = state_shardings(mesh, abstract, optimizer)
    return Program(
        mesh=mesh,
        abstract=abstract,
        shardings=shardings,
        init=make_initializer(learner.init_params, optimizer, shardings),
        step=make_train_step(
            learner.train_loss, optimizer, schedule, mesh, shardings, _parts(config, mesh), learner.weighed
        ),
        evaluate=make_eval_step(learner.eval_loss, mesh, shardings, learner.counted),
        finite=make_finite_check(shardings),
    )
