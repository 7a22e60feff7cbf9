"""Trains autoencoders of several sites, seeds and coefficients at once on one stream of a model's activations.

Activations are never dumped: token batches go through the model on the device, and a shuffle buffer there mixes what
comes out. The buffer is SAELens's: it holds two halves; each round the older half is mixed with a half of new
activations, a random half of both is trained on, and the rest waits for the next round. So an activation leaves the
buffer after 2 rounds on average, and a batch has tokens of many windows. Here nothing is moved for it: round r trains
on the slots in the first half of a permutation of all slots, drawn from (seed, r), and the next round writes its new
activations into exactly these slots. All runs see the same batches.

One round is two dispatches, one that fills and one that makes half a buffer's worth of steps (`lax.scan`). Between
rounds all there is is `TrainState`, a pytree; a run that goes on from a saved one makes the same numbers.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.errors import ConfigError, DataError
from jaxablate.features.architectures import AutoencoderConfig
from jaxablate.features.config import SaeRun, SaeTrainConfig
from jaxablate.features.sae import SparseAutoencoder, activation_scale, over_all
from jaxablate.features.step import StepMetrics, check_trainable, init_state, train_step
from jaxablate.types import Params

Activations = Callable[[Params, jax.Array], jax.Array]
"""(model parameters, tokens [W, T]) -> [W, T, sites, D]; `jaxablate.features.sites.reader` makes one."""
TokenBatches = Callable[[int], Iterator[np.ndarray]]
"""start -> batches start, start + 1, ...: int tokens [W, T], or any arrays [W, T, ...] that the `Activations` take, all
of one shape. It is a function of its argument, so that a run can go on where it stopped, as ``train_batches(...,
start_step=start)`` of `jaxablate.data` is."""


@flax.struct.dataclass
class TrainState:
    """All that a run goes on from, between two rounds. R runs, C sites, B tokens of the buffer."""

    step: Any
    """int32, steps made."""
    batches: Any
    """int32, token batches taken: where the stream goes on."""
    scale: Any
    """[C] factor by which each site's activations are multiplied, from the first filling of the buffer."""
    buffer: Any
    """[B, C, D] raw activations."""
    runs: Any
    """`SaeState` of all runs, with a leading axis R."""


Progress = Callable[[TrainState, StepMetrics], None]
"""Called after each round with the state, which is valid only until it returns, and figures [steps of the round, R]."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Autoencoders and what training left behind.

    Attributes:
      runs: what was asked for.
      autoencoders: one for each run, for raw activations: decoder of norm 1 before the scale was folded in.
      scales: the factor of each run's site.
      state: what training can be gone on from.
    """

    runs: tuple[SaeRun, ...]
    autoencoders: tuple[SparseAutoencoder, ...]
    scales: tuple[float, ...]
    state: TrainState

    def vectors(self, run: SaeRun) -> Float[Array, "n d"]:
        """The activations of a run's site that are in the buffer."""
        return self.state.buffer[:, sites_of(self.runs).index(run.site)]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How an autoencoder does on some vectors.

    Attributes:
      explained_variance: 1 - sum |x - y|^2 / sum |x - mean x|^2; below 0 it is worse than the mean vector.
      l0: active latents a vector.
      density: [S] share of the vectors for which a latent is active.
    """

    explained_variance: float
    l0: float
    density: np.ndarray


def sites_of(runs: Sequence[SaeRun]) -> tuple[str, ...]:
    """The sites that the runs read, each once, in the order in which they first occur: the order of axis C."""
    return tuple(dict.fromkeys(run.site for run in runs))


def train(
    activations: Activations,
    params: Params,
    tokens: TokenBatches,
    runs: Sequence[SaeRun],
    config: AutoencoderConfig,
    settings: SaeTrainConfig,
    *,
    state: TrainState | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains all runs to the end, or from a saved state to the end; `jaxablate.features.fit` is simpler for arrays.

    Warns where an autoencoder ends with a negative explained variance.

    Args:
      activations: gives the runs' sites, each once, in the order in which they first occur.
      params: the model's parameters.
      tokens: the shuffled text; `settings.tokens` tokens of it are taken in all.
      runs: what differs: site, L1 coefficient, seed.
      config: what all autoencoders have in common.
      settings: length and pace.
      state: of an earlier call with the same arguments; it is used up. None starts anew.
      progress: called after each round; it may save the state and print figures.
      stop: asked after each round; a true answer ends training there, and `TrainResult.state` can be gone on from.

    Raises:
      ConfigError: settings do not fit each other or the activations.
      DataError: the text ends too soon, or an activation is not finite.
    """
    runs = tuple(runs)
    if not runs:
        raise ConfigError("no runs to train; give at least one SaeRun with a site")
    check_trainable(config)
    site_index = jnp.array([sites_of(runs).index(run.site) for run in runs])
    l1 = jnp.array([run.l1 for run in runs], config.dtype)
    if state is not None and int(state.step) >= settings.steps:
        return _finished(runs, site_index, config, state)
    source = _Source(activations, params, tokens, 0 if state is None else int(state.batches), sites_of(runs), settings)
    now = _first_state(source, runs, config, settings) if state is None else state
    while (done := int(now.step)) < settings.steps:
        if done > 0:
            used = _slots(settings, done // settings.round_steps - 1, len(now.buffer))
            buffer = source.fill(now.buffer, used)
            now = dataclasses.replace(now, buffer=buffer, batches=jnp.asarray(source.taken, jnp.int32))
        now = jax.tree.map(functools.partial(_beside, params), now)
        count = min(settings.round_steps, settings.steps - done)
        now, metrics = _round(now, site_index, l1, count, settings)
        if progress is not None:
            progress(now, jax.device_get(metrics))
        if int(now.step) >= settings.steps:
            _warn_of_negative_variance(runs, np.mean(metrics.explained_variance, axis=0), settings)
        if stop():
            break
    return _finished(runs, site_index, config, now)


def reconstruction(sae: SparseAutoencoder, x: Float[Array | np.ndarray, "n d"]) -> Reconstruction:
    """Explained variance, L0 and densities of an autoencoder on vectors, for example on held-out ones.

    Raises:
      ConfigError: the vectors have another width than the autoencoder.
    """
    error, variance, counts = jax.device_get(_reconstruction_sums(sae, jnp.asarray(x, sae.config.dtype)))
    density = (counts / len(x)).astype(np.float32)
    return Reconstruction(explained_variance=float(1 - error / variance), l0=float(density.sum()), density=density)


@jax.jit
def _reconstruction_sums(sae: SparseAutoencoder, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean = jnp.mean(x, axis=0)

    def sums(x: jax.Array) -> tuple[jax.Array, ...]:
        latents = sae.encode(x)
        return jnp.sum((x - sae.decode(latents)) ** 2), jnp.sum((x - mean) ** 2), jnp.sum(latents > 0, axis=0)

    whole = len(x) // 1024 * 1024
    parts = jax.lax.map(sums, x[:whole].reshape(-1, 1024, x.shape[-1]))
    return jax.tree.map(lambda each, rest: jnp.sum(each, axis=0) + rest, parts, sums(x[whole:]))


def abstract_state(runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig) -> TrainState:
    """Shapes and types of a `TrainState` of these runs, as `jax.ShapeDtypeStruct`."""
    dtype, sites = jnp.dtype(config.dtype), len(sites_of(runs))
    one = jax.eval_shape(lambda: init_state(jax.random.key(0), config, settings))
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((len(runs), *a.shape), a.dtype), one)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    buffer = (settings.buffer_batches * settings.batch_tokens, sites, config.d_in)
    return TrainState(count, count, jax.ShapeDtypeStruct((sites,), dtype), jax.ShapeDtypeStruct(buffer, dtype), many)


class _Source:
    """Reads half a buffer's worth of batches at a time and puts their activations into the buffer."""

    def __init__(self, activations: Activations, params: Params, tokens: TokenBatches, taken: int,
                 sites: tuple[str, ...], settings: SaeTrainConfig):
        self.taken, self.params, self.sites = taken, params, sites
        self._activations, self._settings = activations, settings
        self._half = settings.round_steps * settings.batch_tokens
        self._batches = iter(tokens(taken))
        self._next: np.ndarray | None = self._read()
        self._shape, self._dtype = self._next.shape, self._next.dtype
        if len(self._shape) < 2 or self._half % math.prod(self._shape[:2]):
            raise ConfigError(
                f"a token batch of shape {self._shape} does not divide half the buffer, {self._half:,} tokens "
                "(buffer_batches / 2 * batch_tokens); choose sizes [W, T] whose product does"
            )

    def check_width(self, config: AutoencoderConfig) -> None:
        """Raises ConfigError where the activations have not the shape of the runs' sites."""
        shape = jax.eval_shape(self._activations, self.params, jax.ShapeDtypeStruct(self._shape, self._dtype)).shape
        expected = (*self._shape[:2], len(self.sites), config.d_in)
        if shape != expected:
            raise ConfigError(
                f"activations of {', '.join(self.sites)} have shape {shape}, not [W, T, sites, D] = {expected}; give "
                "those of the runs' sites and their width as d_in, and train sites of other widths in a call of their "
                "own"
            )

    def fill(self, buffer: jax.Array, slots: jax.Array) -> jax.Array:
        """The buffer [B, C, D] with new activations in half of its slots."""
        batches = []
        for _ in range(self._half // math.prod(self._shape[:2])):
            batch, self._next = self._read() if self._next is None else self._next, None
            if batch.shape != self._shape:
                raise ConfigError(f"token batch {self.taken} has shape {batch.shape}, the first one {self._shape}")
            batches.append(batch)
            self.taken += 1
        buffer, finite = _fill(self._activations, self.params, np.stack(batches), buffer, slots)
        if not np.all(finite):
            wrong = [site for site, good in zip(self.sites, np.asarray(finite), strict=True) if not good]
            raise DataError(
                f"activations at {', '.join(wrong)} are NaN or infinite for token batches before number {self.taken}; "
                "the model's parameters are damaged or overflow in this number type"
            )
        return buffer

    def _read(self) -> np.ndarray:
        try:
            batch = np.asarray(next(self._batches))
        except StopIteration:
            s = self._settings
            raise DataError(
                f"the data ended after {self.taken:,} batches; {s.steps:,} steps of {s.batch_tokens:,} tokens take "
                f"{s.tokens:,} tokens with the buffer; give more, let it repeat, or set fewer steps"
            ) from None
        return batch.astype(np.int32) if np.issubdtype(batch.dtype, np.integer) else batch


def _first_state(source: _Source, runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig
                 ) -> TrainState:
    source.check_width(config)
    size = settings.buffer_batches * settings.batch_tokens
    buffer = _beside(source.params, jnp.zeros((size, len(source.sites), config.d_in), config.dtype))
    for slots in jnp.split(jnp.arange(size), 2):
        buffer = source.fill(buffer, slots)
    scale = activation_scale(jnp.moveaxis(buffer, 1, 0))
    if not np.all(nonzero := np.asarray(jnp.any(buffer != 0, axis=(0, 2)))):
        zero = [site for site, good in zip(source.sites, nonzero, strict=True) if not good]
        raise DataError(f"activations at {', '.join(zero)} are all zero; there is nothing to train on")
    keys = jnp.stack([jax.random.key_data(jax.random.key(run.seed)) for run in runs])
    fresh = jax.vmap(lambda key: init_state(jax.random.wrap_key_data(key), config, settings))(keys)
    return TrainState(
        step=jnp.zeros((), jnp.int32), batches=jnp.asarray(source.taken, jnp.int32),
        scale=scale, buffer=buffer, runs=fresh,
    )


def _beside(params: Params, x: jax.Array) -> jax.Array:
    """The array bound to the parameters' devices where these are bound: otherwise the first call, whose state is not
    bound yet, would be compiled for itself."""
    leaf = next(iter(jax.tree.leaves(params)), None)
    if isinstance(leaf, jax.Array) and leaf.committed and leaf.sharding.is_fully_replicated:
        return jax.device_put(x, leaf.sharding)
    return x


def _slots(settings: SaeTrainConfig, round_number: int | jax.Array, size: int) -> jax.Array:
    """The slots that a round trains on, in this order: the first half of a permutation of its own."""
    key = jax.random.fold_in(jax.random.key(settings.seed), round_number)
    return jax.random.permutation(key, size)[: size // 2]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _fill(activations: Activations, params: Params, tokens: jax.Array, buffer: jax.Array, slots: jax.Array
          ) -> tuple[jax.Array, jax.Array]:
    """Puts the activations of tokens [n, W, T] into slots [n W T]; also whether each site's are finite."""

    def body(buffer: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        batch, slots = part
        new = activations(params, batch).reshape(-1, *buffer.shape[1:]).astype(buffer.dtype)
        return buffer.at[slots].set(new, unique_indices=True), jnp.isfinite(new).all(axis=(0, 2))

    buffer, finite = jax.lax.scan(body, buffer, (tokens, slots.reshape(len(tokens), -1)))
    return buffer, finite.all(axis=0)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _round(state: TrainState, site_index: jax.Array, l1: jax.Array, count: int, settings: SaeTrainConfig
           ) -> tuple[TrainState, StepMetrics]:
    """`count` steps of all runs on this round's half of the buffer."""
    order = _slots(settings, state.step // settings.round_steps, len(state.buffer))
    batches = order[: count * settings.batch_tokens].reshape(count, settings.batch_tokens)

    def body(runs: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, StepMetrics]:
        slots, step = part
        xs = jnp.moveaxis(state.buffer[slots], 1, 0) * state.scale[:, None, None]  # [C, M, D]

        def one(part: Any) -> tuple[Any, StepMetrics]:
            run, site, l1 = part
            return train_step(run, xs[site], step, l1, settings)

        return over_all(one)((runs, site_index, l1))

    steps = state.step + jnp.arange(count, dtype=jnp.int32)
    runs, metrics = jax.lax.scan(body, state.runs, (batches, steps))
    return dataclasses.replace(state, step=state.step + count, runs=runs), metrics


def _warn_of_negative_variance(runs: Sequence[SaeRun], values: np.ndarray, settings: SaeTrainConfig) -> None:
    for run, value in zip(runs, values, strict=True):
        if value < 0:
            warnings.warn(f"the autoencoder at {run.site} (L1 {run.l1:g}, seed {run.seed}) explains less than the mean "
                          f"vector does: explained variance {value:.2f} after {settings.steps:,} steps at a learning "
                          f"rate of {settings.rate:g}; take more steps, a higher learning rate or a lower L1 "
                          "coefficient", stacklevel=3)


def _finished(runs: tuple[SaeRun, ...], site_index: jax.Array, config: AutoencoderConfig, state: TrainState
              ) -> TrainResult:
    scales = state.scale[site_index]
    saes = state.runs.sae
    if config.decoder == "unit":  # the next step would begin so, and the loss was always that of a unit decoder
        saes = jax.vmap(SparseAutoencoder.with_unit_decoder)(saes)
    saes = jax.vmap(SparseAutoencoder.fold_scale)(saes, scales)
    each = tuple(jax.tree.map(lambda a, i=i: a[i], saes) for i in range(len(runs)))
    return TrainResult(runs, each, tuple(np.asarray(scales).tolist()), state)
