"""A question about circuits in one value: which model, which prompts, what patched edges carry, what is measured.

`problem` makes a `Problem`; the search, every score and every measure of this package take it.

Example:
  >>> from jaxablate.circuits import eap, known_model, problem
  >>> known = known_model()
  >>> task = problem(known.config, known.params, known.pairs(8))
  >>> task
  Problem('who says what': 8 prompts of 6 to 8 tokens, clean stream, resample ablation, logit_difference, 262 edges)
  >>> task.graph.edge_names[eap(task).argmin()]
  'Resid Start->MLP 1'
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxablate.circuits.blocks import Decoder, Inputs, decoder_for, logits
from jaxablate.circuits.decoder_check import STEPS, checked_decoder
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.metrics import METRICS, CappedDifference, Divergence, LogitDifference, Metric, Target
from jaxablate.circuits.patching import ABLATIONS, Ablation, ablated_values, source_run
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.tasks import PromptText, tokenise
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.sharding import batch_parts, batch_sharding, data_mesh, replicated
from jaxablate.types import STREAMS, Params, Stream

_HOW = ("circuits.problem(config, params, pairs), or circuits.problem(run, task='ioi') with run = ja.open_run(workdir)")
P = ParamSpec("P")
R = TypeVar("R")


def _once(method: Callable[[Any], R]) -> functools.cached_property[R]:
    """A property computed at its first use, with concrete values also where that is within a compiled function."""

    @functools.wraps(method)
    def concrete(self: Any) -> R:
        value = method(self)
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            with jax.ensure_compile_time_eval():  # compiles anew what was compiled outside of it
                return method(self)
        return value

    return functools.cached_property(concrete)


@flax.struct.dataclass
class Batch:
    """Some prompts of a problem, with all that belongs to them."""

    decoder: Decoder = flax.struct.field(pytree_node=False)
    params: Params
    inputs: Inputs
    replacement: jax.Array
    """[S, m or 1, T or 1, D] what patched edges carry."""
    target: Target
    weight: jax.Array
    """[m] share of each prompt in the mean over all; 0 where a prompt only fills up the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Problem:
    """A model on the prompts of a task, and what to ask of it. Runs are made when they are first needed, and once.

    Raises:
      ConfigError: a setting is unknown or out of range, or the model has no such stream.
      DataError: the model cannot take the prompts.
    """

    config: ModelConfig | Decoder
    """Config of the model, or the steps of a model of your own. All arithmetic becomes float32 whatever it says."""
    params: Params
    """Weights; kept in float32, on the devices of the mesh, or on one."""
    pairs: PromptPairs
    stream: Stream = "clean"
    """Stream whose output counts. ``ablated`` takes the gates of the clean prompt as part of the nodes."""
    ablation: Ablation = "resample"
    """What patched edges carry: values of the corrupt run, zeros, or means (`patching.ablated_values`)."""
    metric: Metric = "logit_difference"
    batch_size: int = 64
    """Prompts computed at once."""
    mesh: Mesh | None = None
    """Its devices share the prompts that are computed at once, where they divide them, and have all weights."""
    split: bool = False
    """Keys and values of each query head are destinations of their own where the model's heads share them, as in EAP-IG
    and MIB; by default what is shared is one destination."""

    def __post_init__(self):
        for name, choices in (("stream", STREAMS), ("ablation", ABLATIONS), ("metric", METRICS)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; choose among {', '.join(choices)}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size} must be at least 1; it is the number of prompts computed "
                              "at once")
        config = self.config
        if not isinstance(config, ModelConfig):
            if self.split:
                raise ConfigError(f"split=True is for a ModelConfig; {type(config).__name__} chooses its own graph")
            object.__setattr__(self, "params", self._placed(in_type(self.params, np.float32)))
            object.__setattr__(self, "config", checked_decoder(config, self.params, self.pairs, self.stream))
            return
        if self.stream == "ablated" and not config.gated:
            raise ConfigError("stream='ablated' needs a model with gates, this one has ablation='none'; take 'clean'")
        self.pairs.check_fits(context_length=config.context_length, vocab_size=config.vocab_size)
        same = dataclasses.replace(config, compute_dtype="float32", param_dtype="float32")
        object.__setattr__(self, "config", same)
        object.__setattr__(self, "params", self._placed(in_type(self.params, np.float32)))

    def __repr__(self) -> str:
        return (f"Problem({self.pairs.name!r}: {self.pairs.describe()}, {self.stream} stream, {self.ablation} "
                f"ablation, {self.metric}, {self.graph.n_edges:,} edges)")

    def with_metric(self, metric: Metric) -> "Problem":
        """The same problem measured by another metric; runs made so far are shared.

        Raises:
          ConfigError: there is no such metric.
        """
        if metric not in METRICS:
            raise ConfigError(f"metric={metric!r} is unknown; choose among {', '.join(METRICS)}")
        other = copy.copy(self)
        other.__dict__.pop("target", None)
        object.__setattr__(other, "metric", metric)
        return other

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The model's steps."""
        return decoder_for(self.config, self.split) if isinstance(self.config, ModelConfig) else self.config

    @functools.cached_property
    def graph(self) -> Graph:
        """The model's edges."""
        return self.decoder.graph

    @_once
    def inputs(self) -> Inputs:
        """Clean prompts, with the gates of their last tokens for the ablated stream."""
        return self._inputs(self.pairs.clean)

    @_once
    def corrupt(self) -> Inputs:
        """Corrupt prompts, with gates of their own last tokens."""
        return self._inputs(self.pairs.corrupt)

    @_once
    def replacement(self) -> Float[Array, "sources _n _time width"]:
        """What patched edges carry; of the kinds that do not differ by prompt or position, with 1 in their place."""
        return self.replaced(self.decoder, self.params, self.corrupt)

    @_once
    def final(self) -> Float[Array, "n width"]:
        """Last position of the model's own run on the clean prompts, after the final norm."""
        parts = [source_run(self.decoder, self.params, self.taken(self.inputs, rows)).final for rows in self.parts()]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    @property
    def logits(self) -> Float[Array, "n vocab"]:
        """Logits of the next token on the clean prompts."""
        return logits(self.decoder, self.params, self.final)

    @_once
    def target(self) -> Target:
        """The metric of these prompts."""
        table, cap = self.decoder.unembedding(self.params), self.decoder.logit_cap
        if self.metric == "kl":
            return Divergence.of(table, self.final, cap)
        return LogitDifference.of(table, self.pairs) if cap is None else CappedDifference.of(table, self.pairs, cap)

    def parts(self) -> list[np.ndarray]:
        """Rows of all prompts, at most `batch_size` at a time."""
        return np.split(np.arange(len(self.pairs)), range(self.batch_size, len(self.pairs), self.batch_size))

    def taken(self, inputs: Inputs, rows: np.ndarray) -> Inputs:
        """The prompts ``rows`` [m] int of these inputs, shared out over the mesh."""
        part = inputs.take(rows)
        if self.mesh is None or len(rows) % batch_parts(self.mesh):
            return part
        return jax.device_put(part, batch_sharding(self.mesh))

    def replaced(self, decoder: Decoder, params: Params, corrupt: Inputs) -> jax.Array:
        """What patched edges carry, [S, n or 1, T or 1, D], by a run of the corrupt prompts in any floating type."""
        parts = [source_run(decoder, params, self.taken(corrupt, rows)).sources for rows in self.parts()]
        sources = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        return ablated_values(self.ablation, sources, corrupt.valid, self.stream == "ablated")

    def batches(self, size: int | None = None, values: jax.Array | None = None) -> Iterator[tuple[Batch, int]]:
        """All prompts in order, in batches of one size, so that one compilation serves any number of them.

        Args:
          size: prompts of a batch; `batch_size` by default.
          values: [X, n or 1, ...] to carry as the batch's `replacement` in place of the problem's.

        Yields:
          A batch, filled up with its last prompt, and how many of its prompts are real.

        Raises:
          ConfigError: the size is below 1.
        """
        size = self.batch_size if size is None else size
        if size < 1:
            raise ConfigError(f"batch_size={size} must be at least 1; it is the number of prompts computed at once")
        carried: jax.Array = self.replacement if values is None else values
        n = len(self.pairs)
        size = min(size, n)
        for start in range(0, n, size):
            rows, real = np.minimum(np.arange(start, start + size), n - 1), min(size, n - start)
            weight = jnp.asarray(((np.arange(size) < real) / n).astype(carried.dtype), carried.dtype)
            target = self.target if size == n else self.target.take(rows)
            yield Batch(self.decoder, self.params, self.taken(self.inputs, rows), take_prompts(carried, rows), target,
                        weight), real

    def _placed(self, params: Params) -> Params:
        return params if self.mesh is None else jax.device_put(params, replicated(self.mesh))

    def _inputs(self, tokens: np.ndarray) -> Inputs:
        inputs = Inputs(tokens=jnp.asarray(tokens, tokens.dtype), valid=jnp.asarray(self.pairs.valid, bool))
        if self.stream == "clean":
            return inputs
        attention, neuron = self.decoder.last_gates(self.params, inputs)
        return dataclasses.replace(inputs, attention_gates=attention, neuron_gates=neuron)


def problem(
    model: Any, params: Any = None, prompts: PromptPairs | Sequence[PromptText] | int = 64, *, task: str = "ioi",
    seed: int = 0, stream: Stream = "clean", ablation: Ablation = "resample", metric: Metric = "logit_difference",
    batch_size: int = 64, split: bool = False, mesh: Mesh | None = None,
) -> Problem:
    """A problem from a config, parameters and prompts, or from an opened run.

    ``problem(config, params, pairs)``, ``problem(run, task="ioi", prompts=64, seed=0)`` or ``problem(run, pairs)``; of
    a model of your own ``problem(decoder, params, pairs)``.

    Args:
      model: `ModelConfig`, or a run (``ja.open_run``), which brings ``config.model``, ``params``, ``tokenizer`` and
        ``tasks``; or your own implementation of `Decoder`, whose steps are checked against one another.
      params: weights of a config; with a run nothing, or the prompts.
      prompts: pairs of tokenised prompts; with a run also prompts as texts, or the number to draw of its task.
      task: name of the run's task that prompts are drawn from.
      seed: seed of the drawing.
      stream: stream whose output counts.
      ablation: what patched edges carry.
      metric: what is measured.
      batch_size: prompts computed at once.
      split: whether query heads that share keys and values have destinations of their own for them.
      mesh: its devices share them; by default a run's problem is shared by all accelerators of this machine.

    Raises:
      ConfigError: the arguments are not of these kinds, the run has no such task, or as `Problem`.
      DataError: the model or its tokenizer cannot take the prompts.
    """
    options: dict[str, Any] = {"stream": stream, "ablation": ablation, "metric": metric, "batch_size": batch_size,
                               "split": split, "mesh": mesh}
    if isinstance(model, ModelConfig) or _is_decoder(model):
        if not isinstance(prompts, PromptPairs) or not hasattr(params, "keys"):
            raise ConfigError(f"a problem takes parameters (a mapping) and PromptPairs after the model, not "
                              f"{type(params).__name__} and {type(prompts).__name__}; write {_HOW}")
        return Problem(config=model, params=params, pairs=prompts, **options)
    if not all(hasattr(model, name) for name in ("config", "params", "tasks", "tokenizer")):
        raise ConfigError(f"a problem is made from a ModelConfig, a Decoder or an opened run, not "
                          f"{type(model).__name__}; write {_HOW}, or take circuits.sites for any other model")
    chosen: Any = prompts if params is None else params
    if not isinstance(getattr(model.config, "model", None), ModelConfig):
        raise ConfigError("circuits are found in language models, and this run is not one of them; open another")
    if isinstance(chosen, PromptPairs):
        return _of_run(model, chosen, options)
    name, length = "task", model.config.model.context_length
    if isinstance(chosen, int):
        if task not in model.tasks:
            raise ConfigError(f"task={task!r} is unknown; the run has {', '.join(model.tasks) or 'none'}")
        chosen, name = model.tasks[task](seed, chosen), task_title(task)
    return _of_run(model, tokenise(chosen, model.tokenizer, name=name, context_length=length), options)


def _of_run(run: Any, pairs: PromptPairs, options: dict[str, Any]) -> Problem:
    mesh: Any = options["mesh"] or data_mesh(min(options["batch_size"], len(pairs)))
    return Problem(config=run.config.model, params=run.params, pairs=pairs, **options | {"mesh": mesh})


def _is_decoder(model: Any) -> bool:
    """Whether somebody meant a `Decoder`, which may yet lack a step."""
    return sum(hasattr(model, step) for step in STEPS) > len(STEPS) // 2


def task_title(task: str) -> str:
    """What figures and files call a task of a run.

    >>> task_title("ioi"), task_title("greater than")
    ('IOI', 'greater than')
    """
    return task.upper() if len(task) <= 3 else task


def takes_problem(function: Callable[Concatenate[Problem, P], R]) -> Callable[Concatenate[Problem, P], R]:
    """Refuses a first argument that is no `Problem` with a line that says how to make one."""

    @functools.wraps(function)
    def inner(problem: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        if not isinstance(problem, Problem):
            raise ConfigError(f"{function.__name__} takes a Problem, not {type(problem).__name__}; make one by {_HOW}")
        return function(problem, *args, **kwargs)

    return inner


def in_type(params: Params, dtype: Any) -> Params:
    """Weights in a floating type, on one device."""
    # NumPy converts, and JAX is told the type: otherwise it compiles a program for each shape.
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype), dtype), params)


def take_prompts(values: jax.Array, rows: np.ndarray) -> jax.Array:
    """Values [X, n or 1, ...] of the prompts ``rows`` [m] int; those of all prompts stay as they are."""
    everything = values.shape[1] == 1 or np.array_equal(rows, np.arange(values.shape[1]))  # then it is not copied
    return values if everything else _second_axis(values, rows)


@jax.jit
def _second_axis(values: jax.Array, rows: jax.Array) -> jax.Array:
    return values[:, rows]
