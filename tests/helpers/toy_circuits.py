"""A small gated model with three pairs of prompts: tests of circuits that take these share their compiled programs."""

import functools

import jax
import numpy as np

from helpers.weights import drawn_params
from jaxablate import circuits
from jaxablate.circuits import PromptPairs
from jaxablate.circuits.patching import patched_final
from jaxablate.circuits.problem import Batch, Problem
from jaxablate.config import ModelConfig
from jaxablate.models.decoder import SelfAblatingTransformer


@functools.cache
def model():
    """Config and parameters: two blocks of two heads, 46 edges, the second block of windowed attention."""
    config = ModelConfig(vocab_size=13, context_length=8, d_model=8, n_layers=2, n_heads=2, d_mlp=12, k_attention=4,
                         k_neurons=6, attention_layers=("global", "local"), window_size=3)
    return config, drawn_params(SelfAblatingTransformer(config), np.zeros((1, 4), np.int32), scale=0.5)


@functools.cache
def pairs(vocabulary: int = 13, seed: int = 0) -> PromptPairs:
    rng = np.random.default_rng(seed)
    clean, corrupt = ([rng.integers(0, vocabulary, n).tolist() for n in (5, 3, 4)] for _ in range(2))
    return PromptPairs.from_ids(clean, corrupt, [[1], [2, 3], [4]], [[5, 6], [7], [8]], name="toy")


@functools.cache
def problem(stream="clean", metric="logit_difference", kind="resample") -> Problem:
    return circuits.problem(*model(), pairs(), stream=stream, metric=metric, ablation=kind)


def whole(task: Problem) -> Batch:
    """All prompts of a problem as one batch."""
    return next(task.batches())[0]


def patched_metrics(task: Problem, masks: np.ndarray) -> np.ndarray:
    """[m, n] the metric of each prompt with edges patched by each of the masks [m, E], by the plain patched run."""
    return np.asarray(_patched_metrics(whole(task), np.asarray(masks, np.float32)))


@jax.jit
def _patched_metrics(batch: Batch, masks: jax.Array) -> jax.Array:
    return jax.lax.map(lambda mask: batch.target.values(patched_final(
        batch.decoder, batch.params, batch.inputs, mask, batch.replacement)), masks)
