"""Text classifiers with SAFR: configuration, model, data, loss, and measures of what they make of a text.

Each name is imported when it is first used.
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from jaxablate.classifier.explanation import Explanation as Explanation
    from jaxablate.classifier.explanation import explain as explain
    from jaxablate.classifier.measures import word_importance as word_importance
    from jaxablate.config import ClassificationConfig as ClassificationConfig
    from jaxablate.config import ClassificationObjective as ClassificationObjective
    from jaxablate.config import ClassifierConfig as ClassifierConfig
    from jaxablate.config import EpochTrainConfig as EpochTrainConfig
    from jaxablate.config import SentimentDataConfig as SentimentDataConfig
    from jaxablate.data.sentiment.batches import train_batches as train_batches
    from jaxablate.data.sentiment.batches import validation_batches as validation_batches
    from jaxablate.data.sentiment.prepare import EncodedTexts as EncodedTexts
    from jaxablate.data.sentiment.prepare import SentimentData as SentimentData
    from jaxablate.data.sentiment.prepare import prepare as prepare
    from jaxablate.data.sentiment.texts import LabelledTexts as LabelledTexts
    from jaxablate.data.tokenizer import load_tokenizer as load_tokenizer
    from jaxablate.models.classifier import ClassifierOutput as ClassifierOutput
    from jaxablate.models.classifier import SafrClassifier as SafrClassifier
    from jaxablate.objectives import classification_loss as classification_loss
    from jaxablate.ops.capacity import alignment as alignment
    from jaxablate.ops.capacity import capacity as capacity
