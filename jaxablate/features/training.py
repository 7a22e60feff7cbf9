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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import ConfigError, DataError
from jaxablate.features import sae as ae
from jaxablate.features.config import AutoencoderConfig, SaeRun, SaeTrainConfig
from jaxablate.features.sae import Autoencoder, check_trainable
from jaxablate.features.step import SaeState, StepMetrics, init_state, train_step

Params = Any
Activations = Callable[[Params, jax.Array], jax.Array]
"""(model parameters, tokens [W, T]) -> [W, T, sites, D]; `jaxablate.features.sites.reader` makes one."""
TokenBatches = Callable[[int], Iterator[np.ndarray]]
"""start -> token batches start, start + 1, ...: int arrays [W, T], all of one shape. It is a function of its argument,
so that a run can go on where it stopped, as ``train_batches(..., start_step=start)`` of `jaxablate.data` is."""


@flax.struct.dataclass
class TrainState:
    """All that a run goes on from, between two rounds. R runs, C sites, B tokens of the buffer."""

    step: jax.Array
    """int32, steps made."""
    batches: jax.Array
    """int32, token batches taken: where the stream goes on."""
    scale: jax.Array
    """[C] factor by which each site's activations are multiplied, from the first filling of the buffer."""
    buffer: jax.Array
    """[B, C, D] raw activations."""
    runs: SaeState
    """Of all runs, with a leading axis R."""


Progress = Callable[[TrainState, StepMetrics], None]
"""Called after each round with the state, which is valid only until it returns, and figures [steps of the round, R]."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """Finished autoencoders.

    Attributes:
      runs: what was asked for.
      autoencoders: one for each run, for raw activations: decoder of norm 1 before the scale was folded in.
      scales: the factor of each run's site.
      state: what training left behind.
    """

    runs: tuple[SaeRun, ...]
    autoencoders: tuple[Autoencoder, ...]
    scales: tuple[float, ...]
    state: TrainState


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
) -> Trained:
    """Train all runs to the end, or from a saved state to the end.

    Args:
      activations: gives `sites_of(runs)`, in that order.
      params: the model's parameters.
      tokens: the shuffled text; `settings.tokens` tokens of it are taken in all.
      runs: what differs: site, L1 coefficient, seed.
      config: what all autoencoders have in common.
      settings: length and pace.
      state: of an earlier call with the same arguments; it is used up. None starts anew.
      progress: called after each round; it may save the state and print figures.
      stop: asked after each round; a true answer ends training there, and `Trained.state` can be gone on from.

    Returns:
      `Trained`.

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
    done = 0 if state is None else int(state.batches)
    source = _Source(tokens(done), done, settings)
    if state is None:
        state = _first_state(activations, params, source, runs, config, settings)
    while int(state.step) < settings.steps:
        if int(state.step) > 0:
            state = _refilled(activations, params, source, runs, state, settings)
        state = jax.tree.map(functools.partial(_beside, params), state)
        count = min(settings.round_steps, settings.steps - int(state.step))
        state, metrics = _round(state, site_index, l1, count, config, settings)
        if progress is not None:
            progress(state, jax.device_get(metrics))
        if stop():
            break
    return _finished(runs, site_index, config, state)


def _beside(params: Params, x: jax.Array) -> jax.Array:
    """Bound to the parameters' devices where these are bound; else the first call would be compiled for itself."""
    leaf = jax.tree.leaves(params)[0]
    bound = isinstance(leaf, jax.Array) and leaf.committed and leaf.sharding.is_fully_replicated
    return jax.device_put(x, leaf.sharding) if bound else x


def abstract_state(runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig) -> TrainState:
    """Shapes and types of a `TrainState` of these runs, as `jax.ShapeDtypeStruct`."""
    dtype, sites = jnp.dtype(config.dtype), len(sites_of(runs))
    one = jax.eval_shape(lambda: init_state(jax.random.key(0), config, settings))
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((len(runs), *a.shape), a.dtype), one)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    buffer = (settings.buffer_batches * settings.batch_tokens, sites, config.d_in)
    return TrainState(count, count, jax.ShapeDtypeStruct((sites,), dtype), jax.ShapeDtypeStruct(buffer, dtype), many)


def _first_state(activations, params, source: "_Source", runs, config: AutoencoderConfig, settings: SaeTrainConfig):
    sites = sites_of(runs)
    _check_width(activations, params, source, sites, config)
    buffer = _beside(params, jnp.zeros((2 * source.half, len(sites), config.d_in), config.dtype))
    for slots in jnp.split(jnp.arange(2 * source.half), 2):
        buffer = _checked_fill(activations, params, source, runs, buffer, slots)
    scale = ae.activation_scale(jnp.moveaxis(buffer, 1, 0))
    if not np.all(np.isfinite(scale)):
        zero = [site for site, good in zip(sites, np.isfinite(scale), strict=True) if not good]
        raise DataError(f"activations at {', '.join(zero)} are all zero; there is nothing to train on")
    keys = jnp.stack([jax.random.key_data(jax.random.key(run.seed)) for run in runs])
    fresh = jax.vmap(lambda key: init_state(jax.random.wrap_key_data(key), config, settings))(keys)
    return TrainState(
        step=jnp.zeros((), jnp.int32), batches=jnp.asarray(source.taken, jnp.int32),
        scale=scale, buffer=buffer, runs=fresh,
    )


def _refilled(activations, params, source: "_Source", runs, state: TrainState, settings: SaeTrainConfig) -> TrainState:
    used = _slots(settings, int(state.step) // settings.round_steps - 1, len(state.buffer))
    buffer = _checked_fill(activations, params, source, runs, state.buffer, used)
    return state.replace(buffer=buffer, batches=jnp.asarray(source.taken, jnp.int32))


def _slots(settings: SaeTrainConfig, round_number: int | jax.Array, size: int) -> jax.Array:
    """The slots that a round trains on, in this order: the first half of a permutation of its own."""
    key = jax.random.fold_in(jax.random.key(settings.seed), round_number)
    return jax.random.permutation(key, size)[: size // 2]


def _checked_fill(activations, params, source: "_Source", runs, buffer: jax.Array, slots: jax.Array) -> jax.Array:
    tokens = source.take()
    buffer, finite = _fill(activations, params, tokens, buffer, slots)
    if not np.all(finite):
        wrong = [site for site, good in zip(sites_of(runs), np.asarray(finite), strict=True) if not good]
        raise DataError(
            f"activations at {', '.join(wrong)} are NaN or infinite for token batches before number {source.taken}; "
            "the model's parameters are damaged or overflow in this number type"
        )
    return buffer


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _fill(activations, params, tokens: jax.Array, buffer: jax.Array, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts the activations of tokens [n, W, T] into slots [n W T]; also whether each site's are finite."""

    def body(buffer, part):
        batch, slots = part
        new = activations(params, batch).reshape(-1, *buffer.shape[1:]).astype(buffer.dtype)
        return buffer.at[slots].set(new, unique_indices=True), jnp.isfinite(new).all(axis=(0, 2))

    buffer, finite = jax.lax.scan(body, buffer, (tokens, slots.reshape(len(tokens), -1)))
    return buffer, finite.all(axis=0)


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def _round(state: TrainState, site_index, l1, count: int, config: AutoencoderConfig, settings: SaeTrainConfig):
    """`count` steps of all runs on this round's half of the buffer."""
    order = _slots(settings, state.step // settings.round_steps, len(state.buffer))
    batches = order[: count * settings.batch_tokens].reshape(count, settings.batch_tokens)

    def body(runs, part):
        slots, step = part
        xs = jnp.moveaxis(state.buffer[slots], 1, 0) * state.scale[:, None, None]  # [C, M, D]

        def one(part):
            run, site, l1 = part
            return train_step(run, xs[site], step, l1, config, settings)

        return ae.over_all(one)((runs, site_index, l1))

    steps = state.step + jnp.arange(count, dtype=jnp.int32)
    runs, metrics = jax.lax.scan(body, state.runs, (batches, steps))
    return state.replace(step=state.step + count, runs=runs), metrics


def _finished(runs, site_index, config: AutoencoderConfig, state: TrainState) -> Trained:
    scales = state.scale[site_index]
    saes = state.runs.sae
    if config.decoder == "unit":  # the next step would begin so, and the loss was always that of a unit decoder
        saes = jax.vmap(ae.with_unit_decoder)(saes)
    saes = jax.vmap(ae.fold_scale)(saes, scales)
    each = tuple(jax.tree.map(lambda a, i=i: a[i], saes) for i in range(len(runs)))
    return Trained(runs, each, tuple(np.asarray(scales).tolist()), state)


def buffer_density(done: Trained, config: AutoencoderConfig) -> tuple[np.ndarray, ...]:
    """[S] for each autoencoder: share of the vectors left in the buffer for which a latent is active.

    Args:
      done: finished autoencoders.
      config: of all of them.
    """
    sites = sites_of(done.runs)
    return tuple(np.asarray(_density(sae, done.state.buffer, sites.index(run.site), config))
                 for run, sae in zip(done.runs, done.autoencoders, strict=True))


@functools.partial(jax.jit, static_argnums=3)
def _density(sae: Autoencoder, buffer: jax.Array, site: jax.Array, config: AutoencoderConfig) -> jax.Array:
    parts = jnp.take(buffer, site, axis=1)
    parts = parts.reshape(-1, math.gcd(len(parts), 1024), config.d_in)
    counts = jax.lax.map(lambda x: jnp.sum(ae.encode(sae, x, config) > 0, axis=0), parts)
    return jnp.sum(counts, axis=0) / len(buffer)


def _check_width(activations, params, source: "_Source", sites: tuple[str, ...], config: AutoencoderConfig) -> None:
    batch = jax.ShapeDtypeStruct(source.shape, jnp.int32)
    shape = jax.eval_shape(activations, params, batch).shape
    expected = (*source.shape, len(sites), config.d_in)
    if shape != expected:
        raise ConfigError(
            f"activations of {', '.join(sites)} have shape {shape}, not [W, T, sites, D] = {expected}; give those of "
            "the runs' sites and their width as d_in, and train sites of other widths in a call of their own"
        )


class _Source:
    """Takes half a buffer's worth of token batches at a time, and counts them."""

    def __init__(self, batches: Iterator[np.ndarray], taken: int, settings: SaeTrainConfig):
        self.taken = taken
        self.half = settings.round_steps * settings.batch_tokens
        self._settings = settings
        self._batches = iter(batches)
        self._next = self._read()
        self.shape = self._next.shape
        self._per_batch = self._next.size
        if self._next.ndim != 2 or self.half % self._per_batch:
            raise ConfigError(
                f"a token batch of shape {self.shape} does not divide half the buffer, {self.half:,} tokens "
                "(buffer_batches / 2 * batch_tokens); choose sizes [W, T] whose product does"
            )

    def take(self) -> np.ndarray:
        """[n, W, T] int32, W T n tokens being half the buffer."""
        found = []
        for _ in range(self.half // self._per_batch):
            batch = self._read() if self._next is None else self._next
            self._next = None
            if batch.shape != self.shape:
                raise ConfigError(f"token batch {self.taken} has shape {batch.shape}, the first one {self.shape}")
            found.append(batch)
            self.taken += 1
        return np.stack(found)

    def _read(self) -> np.ndarray:
        try:
            return np.asarray(next(self._batches), np.int32)
        except StopIteration:
            s = self._settings
            raise DataError(
                f"the text ended after {self.taken:,} token batches; {s.steps:,} steps of {s.batch_tokens:,} tokens "
                f"take {s.tokens:,} tokens with the buffer; give more text, let it repeat, or set fewer steps"
            ) from None
