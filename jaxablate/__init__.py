"""Self-ablating transformers and SAFR classifiers in JAX: train and score them, take their parts into other JAX code.

The names of `__all__` are for ``import jaxablate as ja``; everything else is imported from the module it lives in
(``from jaxablate.suites import perplexity``). A name's module is imported when the name is first used, so
``import jaxablate`` itself imports no other package and starts no device.

Example:
  >>> import jax, jaxablate as ja
  >>> ja.gating.k_wta(jax.numpy.array([0.3, -1.0, 2.0, 0.5]), k=2).tolist()
  [0.0, 0.0, 1.0, 1.0]
  >>> ja.ModelConfig(d_model=64, n_heads=8).mlp_width
  256
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` finds the same names
    from jaxablate import (
        circuits,
        config,
        errors,
        features,
        gating,
        interop,
        neurons,
        objectives,
        regularizers,
        sharding,
    )
    from jaxablate.classifier.explain import Explanation, explain
    from jaxablate.commands.score import ScoreSettings, score
    from jaxablate.config import (
        ClassificationConfig,
        ClassificationObjective,
        ClassifierConfig,
        Config,
        DataConfig,
        EpochTrainConfig,
        MeshConfig,
        ModelConfig,
        ObjectiveConfig,
        OptimizerConfig,
        SentimentDataConfig,
        TrainConfig,
        from_dict,
        to_dict,
    )
    from jaxablate.data import corpus
    from jaxablate.data.pipeline import train_batches, validation_batches
    from jaxablate.data.prepare import PreparedData, prepare
    from jaxablate.data.sentiment.batches import evaluation_batches, training_batches
    from jaxablate.data.sentiment.prepare import SentimentData, prepare_sentiment
    from jaxablate.data.sentiment.vocabulary import load_vocabulary
    from jaxablate.data.token_file import open_token_file
    from jaxablate.data.tokenizer import load_tokenizer
    from jaxablate.errors import JaxablateError
    from jaxablate.models.classifier import ClassifierOutput, SafrClassifier
    from jaxablate.models.decoder import (
        CleanOutput,
        DecoderOutput,
        Gates,
        LayerActivations,
        SelfAblatingTransformer,
        StreamActivations,
    )
    from jaxablate.models.generation import generate
    from jaxablate.objectives import classification_loss, language_model_loss
    from jaxablate.ops.attention import attention_weights, two_stream_attention
    from jaxablate.ops.capacity import alignment, capacity
    from jaxablate.ops.cross_entropy import linear_cross_entropy, per_token_cross_entropy
    from jaxablate.runs.checkpoint import restore_params
    from jaxablate.runs.run import open_run
    from jaxablate.runs.workdir import read_config
    from jaxablate.training.loop import TrainResult, train
    from jaxablate.training.metrics import read_metrics

__version__ = "0.1.0"

__all__ = [
    "ClassificationConfig", "ClassificationObjective", "ClassifierConfig", "ClassifierOutput", "CleanOutput",
    "Config", "DataConfig", "DecoderOutput", "EpochTrainConfig", "Explanation", "Gates", "JaxablateError",
    "LayerActivations", "MeshConfig", "ModelConfig", "ObjectiveConfig", "OptimizerConfig", "PreparedData",
    "SafrClassifier", "ScoreSettings", "SelfAblatingTransformer", "SentimentData", "SentimentDataConfig",
    "StreamActivations", "TrainConfig", "TrainResult", "__version__", "alignment", "attention_weights", "capacity",
    "circuits", "classification_loss", "config", "corpus", "errors", "evaluation_batches", "explain", "features",
    "from_dict", "gating", "generate", "interop", "language_model_loss", "linear_cross_entropy", "load_tokenizer",
    "load_vocabulary", "neurons", "objectives", "open_run", "open_token_file", "per_token_cross_entropy", "prepare",
    "prepare_sentiment", "read_config", "read_metrics", "regularizers", "restore_params", "score", "sharding",
    "to_dict", "train", "train_batches", "training_batches", "two_stream_attention", "validation_batches",
]  # fmt: skip

_MODULES = {
    "circuits": "circuits",
    "config": "config",
    "corpus": "data.corpus",
    "errors": "errors",
    "features": "features",
    "gating": "gating",
    "interop": "interop",
    "neurons": "neurons",
    "objectives": "objectives",
    "regularizers": "regularizers",
    "sharding": "sharding",
}
_MEMBERS = {
    "config": ("ClassificationConfig", "ClassificationObjective", "ClassifierConfig", "Config", "DataConfig",
               "EpochTrainConfig", "MeshConfig", "ModelConfig", "ObjectiveConfig", "OptimizerConfig",
               "SentimentDataConfig", "TrainConfig", "from_dict", "to_dict"),
    "data.pipeline": ("train_batches", "validation_batches"),
    "data.prepare": ("PreparedData", "prepare"),
    "data.sentiment.batches": ("evaluation_batches", "training_batches"),
    "data.sentiment.prepare": ("SentimentData", "prepare_sentiment"),
    "data.sentiment.vocabulary": ("load_vocabulary",),
    "data.token_file": ("open_token_file",),
    "data.tokenizer": ("load_tokenizer",),
    "errors": ("JaxablateError",),
    "ops.capacity": ("alignment", "capacity"),
    "classifier.explain": ("Explanation", "explain"),
    "commands.score": ("ScoreSettings", "score"),
    
    "models.classifier": ("ClassifierOutput", "SafrClassifier"),
    "models.decoder": ("CleanOutput", "DecoderOutput", "Gates", "LayerActivations", "SelfAblatingTransformer",
                       "StreamActivations"),
    "models.generation": ("generate",),
    "objectives": ("classification_loss", "language_model_loss"),
    "ops.attention": ("attention_weights", "two_stream_attention"),
    "ops.cross_entropy": ("linear_cross_entropy", "per_token_cross_entropy"),
    "runs.checkpoint": ("restore_params",),
    "runs.run": ("open_run",),
    "training.loop": ("TrainResult", "train"),
    "training.metrics": ("read_metrics",),
    "runs.workdir": ("read_config",),
}  # fmt: skip
_HOMES = {name: home for home, names in _MEMBERS.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use (PEP 562)."""
    if name in _MODULES:
        value = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
