"""Other programs' checkpoints to ours and back: folders of Hugging Face, the papers' own PyTorch models."""

from jaxablate.interop.huggingface import from_huggingface, to_huggingface
from jaxablate.interop.reference import (
    objective_from_reference,
    transformer_from_reference,
    transformer_to_reference,
)
from jaxablate.interop.safr import (
    classification_objective_from_reference,
    classifier_from_reference,
    classifier_to_reference,
)

__all__ = [
    "classification_objective_from_reference", "classifier_from_reference", "classifier_to_reference",
    "from_huggingface", "objective_from_reference", "to_huggingface", "transformer_from_reference",
    "transformer_to_reference",
]
