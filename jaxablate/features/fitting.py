"""`fit`: a sparse autoencoder of anybody's activations, from an array or from whatever yields batches of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.errors import ConfigError, DataError
from jaxablate.features.architectures import AutoencoderConfig, require
from jaxablate.features.config import PRESETS, Preset, SaeRun, SaeTrainConfig
from jaxablate.features.sae import SparseAutoencoder
from jaxablate.features.step import StepMetrics
from jaxablate.features.training import reconstruction, train

Vectors = Float[Array | np.ndarray, "_ _"]
_BUFFER_BATCHES = 16
"""Steps' worth of vectors in the shuffle buffer of `fit` unless settings say otherwise."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained autoencoder and how its training went.

    Attributes:
      autoencoder: for raw activations; ``autoencoder.encode(x)``, ``autoencoder.decode(latents)``.
      settings: length and pace.
      history: figures of each step, arrays [steps].
      explained_variance, l0: on the last vectors that it was trained on; `features.reconstruction` has them for others.
      density: [S] share of those vectors for which a latent is active.
      scale: the factor by which vectors were multiplied in training, folded into the weights.
    """

    autoencoder: SparseAutoencoder
    settings: SaeTrainConfig
    history: StepMetrics
    explained_variance: float
    l0: float
    density: np.ndarray
    scale: float

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
      settings: length and pace; by default what ``preset``, ``steps`` and ``batch_tokens`` say.
      preset: quick: 4,000 steps at a learning rate of 3e-3. paper: 100,000 steps at 1e-5 (docs/papers.md), in fewer
        ``steps`` at a rate that goes as far.
      steps: optimiser steps; by default the preset's.
      batch_tokens: vectors of a step.
      width: latents as a multiple of d.
      l1: L1 coefficient; without effect on topk and batchtopk.
      seed: decides the weights at the start and the order of an array's vectors.
      progress: called after each half buffer with the steps made and their figures, arrays [steps of it].

    Raises:
      ConfigError: a setting is out of range, or the activations are no vectors of the config's width.
      DataError: there are too few activations, or some are not finite.
    """
    require(preset in PRESETS, f"preset={preset!r} must be {' or '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if settings is None:
        settings = SaeTrainConfig(steps=chosen["steps"] if steps is None else steps, batch_tokens=batch_tokens,
                                  learning_rate=chosen["learning_rate"], buffer_batches=_BUFFER_BATCHES, seed=seed)
    batches = _batches(activations, settings.batch_tokens, seed)
    first = next(batches, None)
    if first is None:
        raise DataError(f"the activations end before the first {settings.batch_tokens:,} vectors; give more, or a "
                        "smaller batch_tokens")
    if config is None:
        d = first.shape[-1]
        config = AutoencoderConfig(d_in=d, d_sae=width * d, project_gradient=chosen["project_gradient"])
    history: list[StepMetrics] = []

    def stream(_start: int) -> Iterator[np.ndarray]:
        yield first[None]
        yield from (batch[None] for batch in batches)

    def round_ended(state: Any, metrics: StepMetrics) -> None:
        history.append(jax.tree.map(lambda x: np.asarray(x)[:, 0], metrics))
        progress(int(state.step), history[-1])

    run = SaeRun("the given vectors", l1=l1, seed=seed)
    done = train(_as_they_are, (), stream, [run], config, settings, progress=round_ended)
    sae, = done.autoencoders
    final = reconstruction(sae, done.vectors(run))
    return Fit(autoencoder=sae, settings=settings, history=jax.tree.map(lambda *parts: np.concatenate(parts), *history),
               explained_variance=final.explained_variance, l0=final.l0, density=final.density, scale=done.scales[0])


def _as_they_are(_params: Any, x: jax.Array) -> jax.Array:
    """Vectors [1, M, D] as the activations [1, M, one site, D] that `train` asks for."""
    return jnp.expand_dims(x, 2)


def _batches(activations: Any, size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches [size, D] of vectors, without end where they can be read again."""
    if hasattr(activations, "shape"):
        vectors = np.asarray(activations)
        _check_vectors(vectors)
        return _drawn(vectors, size, np.random.default_rng(seed))
    source: Any = activations if callable(activations) else lambda: activations
    return _regrouped(source, size)


def _drawn(vectors: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows in random order, each once before any comes again."""
    order = np.zeros(0, np.int64)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(vectors))])
        yield vectors[order[:size]]
        order = order[size:]


def _regrouped(source: Callable[[], Iterable[Any]], size: int) -> Iterator[np.ndarray]:
    """Batches of equal size out of those of a source, which is started anew until it yields nothing."""
    rest: list[np.ndarray] = []
    count = 0
    while True:
        empty = True
        for batch in source():
            vectors, empty = np.asarray(batch), False
            _check_vectors(vectors)
            rest.append(vectors)
            count += len(vectors)
            if count >= size:
                joined = np.concatenate(rest)
                for start in range(0, count - size + 1, size):
                    yield joined[start : start + size]
                rest = [joined[count - count % size :]]
                count %= size
        if empty:
            return


def _check_vectors(x: np.ndarray) -> None:
    if x.ndim != 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        raise ConfigError(f"activations have shape {x.shape} and type {x.dtype}; give floats [n, d], a vector a row, "
                          "for example x.reshape(-1, x.shape[-1])")
