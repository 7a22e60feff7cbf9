"""Transformers that are interpretable by training, and measures of whether they are, in JAX.

The names below are for ``import jaxablate as ja``. Each is imported when it is first used, so ``import jaxablate``
itself takes no time and starts no device. Everything about text classifiers is in ``ja.classifier``, everything about
text in ``ja.data``; each of ``ja.circuits``, ``ja.features``, ``ja.neurons``, ``ja.suites`` and ``ja.interop`` has its
own list.

Example:
  >>> import jax, jaxablate as ja
  >>> ja.k_wta(jax.numpy.array([0.3, -1.0, 2.0, 0.5]), k=2).tolist()
  [0.0, 0.0, 1.0, 1.0]
  >>> ja.ModelConfig(d_model=64, n_heads=8).mlp_width
  256
"""

from etils import epy as _epy

__version__ = "0.2.0"

# The one list of public names. Type checkers read it as it stands; `as` marks each as exported (PEP 484).
with _epy.lazy_api_imports(globals()):
    from jaxablate import circuits as circuits
    from jaxablate import classifier as classifier
    from jaxablate import config as config
    from jaxablate import data as data
    from jaxablate import errors as errors
    from jaxablate import features as features
    from jaxablate import gating as gating
    from jaxablate import interop as interop
    from jaxablate import neurons as neurons
    from jaxablate import ops as ops
    from jaxablate import regularizers as regularizers
    from jaxablate import runs as runs
    from jaxablate import sharding as sharding
    from jaxablate import stats as stats
    from jaxablate import suites as suites
    from jaxablate.circuits import acdc as acdc
    from jaxablate.circuits import eap as eap
    from jaxablate.circuits import eap_ig as eap_ig
    from jaxablate.commands.score import score as score
    from jaxablate.config import Config as Config
    from jaxablate.config import DataConfig as DataConfig
    from jaxablate.config import MeshConfig as MeshConfig
    from jaxablate.config import ModelConfig as ModelConfig
    from jaxablate.config import ObjectiveConfig as ObjectiveConfig
    from jaxablate.config import OptimizerConfig as OptimizerConfig
    from jaxablate.config import TrainConfig as TrainConfig
    from jaxablate.errors import JaxablateError as JaxablateError
    from jaxablate.features import SparseAutoencoder as SparseAutoencoder
    from jaxablate.gating import k_wta as k_wta
    from jaxablate.models.decoder import SelfAblatingTransformer as SelfAblatingTransformer
    from jaxablate.models.generation import generate as generate
    from jaxablate.objectives import language_model_loss as language_model_loss
    from jaxablate.regularizers import interference as interference
    from jaxablate.regularizers import polysemanticity as polysemanticity
    from jaxablate.runs.run import Run as Run
    from jaxablate.runs.run import open_run as open_run
    from jaxablate.stats import Estimate as Estimate
    from jaxablate.training.loop import train as train
