"""Sparse autoencoders: sites, training on a stream of activations, measures, files in SAELens's layout.

Example:
  >>> import jax, numpy as np
  >>> from jaxablate import features
  >>> table = jax.random.normal(jax.random.key(0), (7, 4))
  >>> settings = features.SaeTrainConfig(steps=4, batch_tokens=8, buffer_batches=4)
  >>> done = features.train(
  ...     lambda params, tokens: params[tokens][:, :, None],  # [W, T, one site, D]; `reader` reads a decoder's
  ...     table,
  ...     lambda start: (np.random.default_rng(i).integers(0, 7, (2, 8)) for i in range(start, 100)),
  ...     [features.SaeRun("embedding", l1=5.0), features.SaeRun("embedding", l1=0.5)],
  ...     features.AutoencoderConfig(d_in=4, d_sae=16),
  ...     settings,
  ... )
  >>> [sae.W_dec.shape for sae in done.autoencoders]
  [(16, 4), (16, 4)]
"""

from jaxablate.features.config import AutoencoderConfig, SaeRun, SaeTrainConfig
from jaxablate.features.controls import GaussianActivations, Moments, blanks, moments
from jaxablate.features.files import (
    Saved,
    fingerprint,
    load_autoencoder,
    load_state,
    save_autoencoder,
    save_state,
)
from jaxablate.features.metrics import COLUMNS, SaeMeasures, Subject, ce_score, evaluate, evaluate_alone
from jaxablate.features.sae import (
    Autoencoder,
    decode,
    encode,
    fold_decoder_norm,
    fold_scale,
    losses,
    training_latents,
)
from jaxablate.features.sites import Reader, Site, find_site, forward, paper_site, reader
from jaxablate.features.step import SaeState, StepMetrics, gradient, init_state, train_step
from jaxablate.features.training import Trained, TrainState, buffer_density, sites_of, train

__all__ = [
    "COLUMNS", "Autoencoder", "AutoencoderConfig", "GaussianActivations", "Moments", "Reader", "SaeMeasures", "SaeRun",
    "SaeState", "SaeTrainConfig", "Saved", "Site", "StepMetrics", "Subject", "TrainState", "Trained", "blanks",
    "buffer_density", "ce_score", "decode", "encode", "evaluate", "evaluate_alone", "find_site", "fingerprint",
    "fold_decoder_norm", "fold_scale", "forward", "gradient", "init_state", "load_autoencoder", "load_state", "losses",
    "moments", "paper_site", "reader", "save_autoencoder", "save_state", "sites_of", "train", "train_step",
    "training_latents",
]
