"""`train`: autoencoders of several sites, seeds and coefficients at once, on one stream of a model's activations.

`fit` trains one of anybody's activations, from an array or from whatever yields batches of them.

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
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxablate.errors import DataError
from jaxablate.features.config import PRESETS, Preset, SaeRun, SaeTrainConfig
from jaxablate.features.sae import (
    AutoencoderConfig,
    SparseAutoencoder,
    activation_scale,
    explained,
    init,
    over_all,
    require,
    variances,
)
from jaxablate.features.sites import Activations, ByName, StackedSites
from jaxablate.features.step import SaeState, StepMetrics, check_trainable, first_state, init_state, train_step
from jaxablate.sharding import BATCH_AXES, batch_parts, batch_sharding, check_batch, replicated
from jaxablate.types import Params

Vectors = Float[Array | np.ndarray, "_ _"]
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
    """Autoencoders and what training left behind."""

    runs: tuple[SaeRun, ...]
    autoencoders: tuple[SparseAutoencoder, ...]
    """One for each run, for raw activations: decoder of norm 1 before the scale was folded in."""
    scales: tuple[float, ...]
    """The factor of each run's site."""
    state: TrainState
    """What training can be gone on from."""

    def vectors(self, run: SaeRun) -> Float[Array, "n d"]:
        """The activations of a run's site that are in the buffer."""
        return self.state.buffer[:, sites_of(self.runs).index(run.site)]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How an autoencoder does on some vectors."""

    explained_variance: float
    """1 - sum |x - y|^2 / sum |x - mean x|^2; below 0 it is worse than the mean vector, NaN where x does not vary."""
    l0: float
    """Active latents a vector."""
    density: np.ndarray
    """[S] share of the vectors for which a latent is active."""


def sites_of(runs: Sequence[SaeRun]) -> tuple[str, ...]:
    """The sites that the runs read, each once, in the order in which they first occur: the order of axis C."""
    return tuple(dict.fromkeys(run.site for run in runs))


def train(
    activations: Activations | ByName,
    params: Params,
    tokens: TokenBatches,
    runs: Sequence[SaeRun],
    config: AutoencoderConfig,
    settings: SaeTrainConfig,
    *,
    state: TrainState | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains all runs to the end, or from a saved state to the end; `fit` is simpler for arrays.

    ``activations`` gives the runs' sites, each once, in the order in which they first occur, or all sites of somebody's
    own model by name (`ByName`), of which those of the runs are taken. `settings.tokens` tokens
    of the shuffled text are taken in all. A ``state`` is of an earlier call with the same arguments, and it is used up.
    The devices of a ``mesh`` share the windows, the buffer and the vectors of each step, and have all weights; without
    one everything is where the parameters are.
    ``stop`` is asked after each round; a true answer ends training there, and `TrainResult.state` can be gone on from.
    Warns where an autoencoder ends with a negative explained variance.

    Raises:
      ConfigError: settings do not fit each other, the activations or the mesh.
      DataError: the text ends too soon, or an activation is not finite.
    """
    runs = tuple(runs)
    require(bool(runs), "no runs to train; give at least one SaeRun with a site")
    if mesh is not None:
        params = jax.device_put(params, replicated(mesh))
        check_batch(mesh, settings.batch_tokens, "batch_tokens")
    check_trainable(config)
    site_index = np.array([sites_of(runs).index(run.site) for run in runs], np.int32)
    l1 = np.array([run.l1 for run in runs], config.dtype)
    if state is not None and int(state.step) >= settings.steps:
        return _finished(runs, site_index, config, state)
    taken = 0 if state is None else int(state.batches)
    source = _Source(activations, params, tokens, taken, sites_of(runs), config.d_in, settings, mesh)
    now = _first_state(source, runs, config, settings) if state is None else state
    while (done := int(now.step)) < settings.steps:
        if done > 0:
            used = _slots(settings, done // settings.round_steps - 1, len(now.buffer))
            buffer = source.fill(now.buffer, used)
            now = dataclasses.replace(now, buffer=buffer, batches=jnp.asarray(source.taken, jnp.int32))
        now = _placed(now, params, mesh)
        count = min(settings.round_steps, settings.steps - done)
        now, metrics = _round(now, site_index, l1, count, settings, mesh)
        if progress is not None:
            progress(now, jax.device_get(metrics))
        if int(now.step) >= settings.steps:
            _warn_of_negative_variance(runs, np.mean(np.asarray(metrics.explained_variance), axis=0), settings)
        if stop():
            break
    return _finished(runs, site_index, config, now)


def reconstruction(sae: SparseAutoencoder, x: Float[Array | np.ndarray, "n d"]) -> Reconstruction:
    """Explained variance, L0 and densities of an autoencoder on vectors, for example on held-out ones.

    Raises:
      ConfigError: the vectors have another width than the autoencoder.
    """
    share, counts = jax.device_get(_reconstruction(sae, jnp.asarray(x, sae.config.dtype)))
    density = (counts / max(len(x), 1)).astype(np.float32)
    return Reconstruction(explained_variance=float(share), l0=float(density.sum()), density=density)


@jax.jit
def _reconstruction(sae: SparseAutoencoder, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Explained variance, and for how many vectors each latent is active."""
    mean = jnp.mean(x, axis=0)

    def sums(x: jax.Array) -> tuple[jax.Array, ...]:
        latents = sae.encode(x)
        squares = jnp.sum((x - sae.decode(latents, x)) ** 2)
        return squares, jnp.sum(variances(x, mean)), jnp.sum(latents > 0, axis=0)

    whole = len(x) // 1024 * 1024
    parts = jax.lax.map(sums, x[:whole].reshape(-1, 1024, x.shape[-1]))
    totals = jax.tree.map(lambda each, rest: jnp.sum(each, axis=0) + rest, parts, sums(x[whole:]))
    squares, variance, counts = totals
    return explained(squares, variance), counts


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

    def __init__(self, activations: Activations | ByName, params: Params, tokens: TokenBatches, taken: int,
                 sites: tuple[str, ...], width: int, settings: SaeTrainConfig, mesh: Mesh | None):
        self.taken, self.params, self.sites, self.mesh = taken, params, sites, mesh
        self._settings = settings
        self._half = settings.round_steps * settings.batch_tokens
        self._batches = iter(tokens(taken))
        self._next: np.ndarray | None = self._read()
        self._shape = self._next.shape
        require(len(self._shape) >= 2 and self._half % math.prod(self._shape[:2]) == 0,
                f"a token batch of shape {self._shape} does not divide half the buffer, {self._half:,} tokens "
                "(buffer_batches / 2 * batch_tokens); choose sizes [W, T] whose product does")
        if mesh is not None:
            check_batch(mesh, len(self._next), "windows of a token batch")
        given = jax.eval_shape(activations, params, jax.ShapeDtypeStruct(self._shape, self._next.dtype))
        self._activations: Activations = activations  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(given, Mapping):
            self._activations = StackedSites(activations, sites)  # pyright: ignore[reportArgumentType]
            given = jax.eval_shape(self._activations, params, jax.ShapeDtypeStruct(self._shape, self._next.dtype))
        shape = given.shape
        expected = (*self._shape[:2], len(sites), width)
        require(shape == expected,
                f"activations of {', '.join(sites)} have shape {shape}, not [W, T, sites, D] = {expected}; give those "
                "of the runs' sites and their width as d_in, and train sites of other widths in a call of their own")

    def fill(self, buffer: jax.Array, slots: jax.Array | np.ndarray) -> jax.Array:
        """The buffer [B, C, D] with new activations in half of its slots."""
        batches = []
        for _ in range(self._half // math.prod(self._shape[:2])):
            batch, self._next = self._read() if self._next is None else self._next, None
            require(batch.shape == self._shape,
                    f"token batch {self.taken} has shape {batch.shape}, the first one {self._shape}")
            batches.append(batch)
            self.taken += 1
        windows: Any = np.stack(batches)
        if self.mesh is not None:
            windows = jax.device_put(windows, NamedSharding(self.mesh, P(None, BATCH_AXES)))
        buffer, finite = _fill(self._activations, self.params, windows, buffer, slots, self.mesh)
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
    size = settings.buffer_batches * settings.batch_tokens
    buffer = _bound(jnp.zeros((size, len(source.sites), config.d_in), config.dtype), source.params)
    buffer = buffer if source.mesh is None else jax.device_put(buffer, batch_sharding(source.mesh))
    for slots in np.split(np.arange(size, dtype=np.int32), 2):
        buffer = source.fill(buffer, slots)
    scale = activation_scale(jnp.moveaxis(buffer, 1, 0))
    if not np.all(nonzero := np.asarray(jnp.any(buffer != 0, axis=(0, 2)))):
        zero = [site for site, good in zip(source.sites, nonzero, strict=True) if not good]
        raise DataError(f"activations at {', '.join(zero)} are all zero; there is nothing to train on")
    keys = np.stack([np.asarray(jax.random.key_data(jax.random.key(run.seed))) for run in runs])
    # Not in one program: the weights would be rounded otherwise than those of `init`.
    saes = jax.vmap(lambda key: init(jax.random.wrap_key_data(key), config))(keys)
    count = jnp.asarray(0, jnp.int32), jnp.asarray(source.taken, jnp.int32)
    return TrainState(*count, scale, buffer, _before_training(saes, settings))


@functools.partial(jax.jit, static_argnums=1)
def _before_training(saes: SparseAutoencoder, settings: SaeTrainConfig) -> SaeState:
    return jax.vmap(lambda sae: first_state(sae, settings))(saes)


def _placed(state: TrainState, params: Params, mesh: Mesh | None) -> TrainState:
    """The state where its arrays live between two rounds."""
    if mesh is None:
        return jax.tree.map(lambda x: _bound(x, params), state)
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    places = dataclasses.replace(jax.tree.map(lambda _: everywhere, state), buffer=rows)
    return jax.device_put(state, places)


def _bound(x: jax.Array, params: Params) -> jax.Array:
    """The array bound to the parameters' devices where these are bound: otherwise the first call, whose state is not
    bound yet, would be compiled for itself."""
    leaf = next(iter(jax.tree.leaves(params)), None)
    if isinstance(leaf, jax.Array) and leaf.committed and leaf.sharding.is_fully_replicated:
        return jax.device_put(x, leaf.sharding)
    return x


def _rows(x: jax.Array, mesh: Mesh | None, axis: int) -> jax.Array:
    """The array with an axis split over the devices of a mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*(None,) * axis, BATCH_AXES)))


@functools.partial(jax.jit, static_argnums=(0, 2), inline=True)
def _slots(settings: SaeTrainConfig, round_number: int | jax.Array, size: int) -> jax.Array:
    """The slots that a round trains on, in this order: the first half of a permutation of its own."""
    key = jax.random.fold_in(jax.random.key(settings.seed), round_number)
    return jax.random.permutation(key, size)[: size // 2]


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=3)
def _fill(activations: Activations, params: Params, tokens: jax.Array, buffer: jax.Array, slots: jax.Array,
          mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Puts the activations of tokens [n, W, T] into slots [n W T]; also whether each site's are finite."""

    def body(buffer: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        batch, slots = part
        new = activations(params, batch).reshape(-1, *buffer.shape[1:]).astype(buffer.dtype)
        return _rows(buffer.at[slots].set(new, unique_indices=True), mesh, 0), jnp.isfinite(new).all(axis=(0, 2))

    buffer, finite = jax.lax.scan(body, buffer, (tokens, slots.reshape(len(tokens), -1)))
    return buffer, finite.all(axis=0)


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def _round(state: TrainState, site_index: jax.Array | np.ndarray, l1: jax.Array | np.ndarray, count: int,
           settings: SaeTrainConfig, mesh: Mesh | None) -> tuple[TrainState, StepMetrics]:
    """`count` steps of all runs on this round's half of the buffer."""
    order = _slots(settings, state.step // settings.round_steps, len(state.buffer))
    batches = order[: count * settings.batch_tokens].reshape(count, settings.batch_tokens)

    def body(runs: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, StepMetrics]:
        slots, step = part
        xs = _rows(jnp.moveaxis(state.buffer[slots], 1, 0) * state.scale[:, None, None], mesh, 1)  # [C, M, D]

        def one(part: Any) -> tuple[Any, StepMetrics]:
            run, site, l1 = part
            return train_step(run, xs[site], step, l1, settings)

        return over_all(one)((runs, site_index, l1))

    steps = state.step + jnp.arange(count, dtype=jnp.int32)
    runs, metrics = jax.lax.scan(body, state.runs, (batches, steps))
    if mesh is not None:
        runs = jax.lax.with_sharding_constraint(runs, replicated(mesh))
    return dataclasses.replace(state, step=state.step + count, runs=runs), metrics


def _warn_of_negative_variance(runs: Sequence[SaeRun], values: np.ndarray, settings: SaeTrainConfig) -> None:
    for run, value in zip(runs, values, strict=True):
        if value < 0:
            warnings.warn(f"the autoencoder at {run.site} (L1 {run.l1:g}, seed {run.seed}) explains less than the mean "
                          f"vector does: explained variance {value:.2f} after {settings.steps:,} steps at a learning "
                          f"rate of {settings.rate:g}; take more steps, a higher learning rate or a lower L1 "
                          "coefficient", stacklevel=3)


def _finished(runs: tuple[SaeRun, ...], site_index: np.ndarray, config: AutoencoderConfig, state: TrainState
              ) -> TrainResult:
    scales = state.scale[site_index]
    saes = state.runs.sae
    if config.decoder == "unit":  # the next step would begin so, and the loss was always that of a unit decoder
        saes = jax.vmap(SparseAutoencoder.with_unit_decoder)(saes)
    saes = jax.vmap(SparseAutoencoder.fold_scale)(saes, scales)
    return TrainResult(runs, tuple(_each(saes)), tuple(np.asarray(scales).tolist()), state)


@jax.jit
def _each(saes: SparseAutoencoder) -> list[SparseAutoencoder]:
    return [jax.tree.map(lambda a, i=i: a[i], saes) for i in range(len(saes.b_enc))]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained autoencoder of raw activations, and how its training went."""

    autoencoder: SparseAutoencoder
    settings: SaeTrainConfig
    history: StepMetrics
    """Figures of each step, arrays [steps]."""
    explained_variance: float
    l0: float
    density: np.ndarray
    """On the last vectors that it was trained on; `reconstruction` has all three for others."""
    scale: float
    """The factor by which vectors were multiplied in training, folded into the weights."""

    @property
    def config(self) -> AutoencoderConfig:
        """Shape and kind of the autoencoder."""
        return self.autoencoder.config


def fit(
    activations: Vectors | Callable[[], Iterable[Vectors]] | Iterable[Vectors],
    config: AutoencoderConfig | None = None,
    settings: SaeTrainConfig | None = None,
    *,
    preset: Preset = "quick",
    steps: int | None = None,
    batch_tokens: int = 4096,
    width: int = 16,
    l1: float = 5.0,
    seed: int = 0,
    mesh: Mesh | None = None,
    progress: Callable[[int, StepMetrics], None] = lambda step, metrics: None,
) -> Fit:
    """Trains a sparse autoencoder on activation vectors of any model.

    Warns where it explains less than the mean vector does, which more steps or a higher learning rate may mend.

    >>> x = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    >>> result = fit(x, steps=200, batch_tokens=64)
    >>> result.autoencoder.encode(x).shape, result.history.loss.shape
    ((500, 128), (200,))

    Args:
      activations: an array [n, d] of NumPy or JAX, which is drawn from in random order, anew each time all of it was
        used; or batches [any number, d] in random order: an iterable, or a function that starts it anew when all of it
        was used. A generator is used once, and must be long enough: (steps + buffer) x batch_tokens vectors.
      config: shape and kind; by default the standard architecture with ``width`` times d latents.
      settings: length and pace; by default what ``preset``, ``steps`` and ``batch_tokens`` say, and a buffer of 16
        steps.
      preset: quick: 4,000 steps at a learning rate of 3e-3. paper: 100,000 steps at 1e-5 (docs/papers.md), in fewer
        ``steps`` at a rate that goes as far.
      steps: optimiser steps; by default the preset's.
      batch_tokens: vectors of a step.
      width: latents as a multiple of d.
      l1: L1 coefficient; without effect on topk and batchtopk.
      seed: decides the weights at the start and the order of an array's vectors.
      mesh: its devices share the vectors of each step; by default the first device has all of them.
      progress: called after each half buffer with the steps made and their figures, arrays [steps of it].

    Raises:
      ConfigError: a setting is out of range, or the activations are no vectors of the config's width.
      DataError: there are too few activations, or some are not finite.
    """
    require(preset in PRESETS, f"preset={preset!r} must be {' or '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if settings is None:
        settings = SaeTrainConfig(steps=chosen["steps"] if steps is None else steps, batch_tokens=batch_tokens,
                                  learning_rate=chosen["learning_rate"], buffer_batches=16, seed=seed)
    batches = _batches(activations, settings.batch_tokens, seed)
    first = next(batches, None)
    if first is None:
        raise DataError(f"the activations end before the first {settings.batch_tokens:,} vectors; give more, or a "
                        "smaller batch_tokens")
    if config is None:
        d = first.shape[-1]
        config = AutoencoderConfig(d_in=d, d_sae=width * d, project_gradient=chosen["project_gradient"])
    history: list[StepMetrics] = []

    windows = 1
    if mesh is not None:
        check_batch(mesh, settings.batch_tokens, "batch_tokens")
        windows = batch_parts(mesh)

    def stream(_start: int) -> Iterator[np.ndarray]:
        return (batch.reshape(windows, -1, batch.shape[-1]) for batch in itertools.chain([first], batches))

    def round_ended(state: Any, metrics: StepMetrics) -> None:
        history.append(jax.tree.map(lambda x: np.asarray(x)[:, 0], metrics))
        progress(int(state.step), history[-1])

    run = SaeRun("the given vectors", l1=l1, seed=seed)
    done = train(_one_site, (), stream, [run], config, settings, mesh=mesh, progress=round_ended)
    sae, = done.autoencoders
    final = reconstruction(sae, done.vectors(run))
    return Fit(autoencoder=sae, settings=settings, history=jax.tree.map(lambda *parts: np.concatenate(parts), *history),
               explained_variance=final.explained_variance, l0=final.l0, density=final.density, scale=done.scales[0])


def _one_site(_params: Any, x: jax.Array) -> jax.Array:
    """Vectors [1, M, D] as the activations that `train` asks for; one function, so that it is compiled once."""
    return x[:, :, None]


def _batches(activations: Any, size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches [size, D] of vectors, without end where they can be read again."""
    if hasattr(activations, "shape"):
        return _drawn(_checked(activations), size, np.random.default_rng(seed))
    return _regrouped(activations if callable(activations) else lambda: activations, size)


def _drawn(vectors: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows in random order, each once before any comes again."""
    order = np.zeros(0, np.int64)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(vectors))])
        yield vectors[order[:size]]
        order = order[size:]


def _regrouped(source: Callable[[], Any], size: int) -> Iterator[np.ndarray]:
    """Batches of equal size out of those of a source, which is started anew until it yields nothing."""
    rest: list[np.ndarray] = []
    count, empty = 0, False
    while not empty:
        empty = True
        for batch in source():
            rest.append(_checked(batch))
            count, empty = count + len(rest[-1]), False
            if count >= size:
                joined = np.concatenate(rest)
                for start in range(0, count - size + 1, size):
                    yield joined[start : start + size]
                rest = [joined[count - count % size :]]
                count %= size


def _checked(activations: Any) -> np.ndarray:
    x = np.asarray(activations)
    require(x.ndim == 2 and len(x) > 0 and np.issubdtype(x.dtype, np.floating),
            f"activations have shape {x.shape} and type {x.dtype}; give floats [n, d], a vector a row, for example "
            "x.reshape(-1, x.shape[-1])")
    return x
