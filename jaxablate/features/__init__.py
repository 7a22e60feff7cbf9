"""Sparse autoencoders: `fit` for any vectors, `train` for sites of a model, measures, files in SAELens's layout.

>>> import numpy as np
>>> from jaxablate import features
>>> x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
>>> result = features.fit(x, features.AutoencoderConfig(d_in=4, d_sae=16), steps=200, batch_tokens=32)
>>> latents = result.autoencoder.encode(x)  # [1000, 16]

Several at once, on a model's activations as it computes them:

>>> import jax
>>> table = jax.random.normal(jax.random.key(0), (7, 4))
>>> done = features.train(
...     lambda params, tokens: params[tokens][:, :, None],  # [W, T, one site, D]; `features.reader` reads a decoder's
...     table,
...     lambda start: (np.random.default_rng(i).integers(0, 7, (2, 8)) for i in range(start, 400)),
...     [features.SaeRun("embedding", l1=1.0), features.SaeRun("embedding", l1=0.5)],
...     features.AutoencoderConfig(d_in=4, d_sae=16),
...     features.SaeTrainConfig(steps=400, batch_tokens=8, buffer_batches=4),
... )
>>> [sae.W_dec.shape for sae in done.autoencoders]
[(16, 4), (16, 4)]
"""

from jaxablate.features.config import SaeRun, SaeTrainConfig
from jaxablate.features.files import SavedAutoencoder, fingerprint, load, load_state, save, save_state
from jaxablate.features.latents import LatentReader, promoted, promoted_by
from jaxablate.features.metrics import SaeMeasures, evaluate
from jaxablate.features.sae import ARCHITECTURES, Architecture, AutoencoderConfig, SparseAutoencoder
from jaxablate.features.sites import (
    GaussianActivations,
    Moments,
    Reader,
    Site,
    StackedSites,
    find_site,
    forward,
    moments,
    paper_site,
    reader,
)
from jaxablate.features.step import LossTerms, SaeState, StepMetrics, gradient, init_state, losses, train_step
from jaxablate.features.training import Fit, Reconstruction, TrainResult, TrainState, fit, reconstruction, train

__all__ = [
    "ARCHITECTURES", "Architecture", "AutoencoderConfig", "Fit", "GaussianActivations", "LatentReader", "LossTerms",
    "Moments", "Reader", "Reconstruction", "SaeMeasures", "SaeRun", "SaeState", "SaeTrainConfig",
    "SavedAutoencoder", "Site", "SparseAutoencoder", "StackedSites", "StepMetrics", "TrainResult", "TrainState",
    "evaluate", "find_site", "fingerprint", "fit", "forward", "gradient", "init_state", "load", "load_state",
    "losses", "moments", "paper_site", "promoted", "promoted_by", "reader", "reconstruction", "save", "save_state",
    "train", "train_step",
]
