"""Other programs' checkpoints to ours and back: the papers' own PyTorch models."""

from jaxablate.interop.reference import (
    objective_from_reference,
    transformer_from_reference,
    transformer_to_reference,
)

__all__ = ["objective_from_reference", "transformer_from_reference", "transformer_to_reference"]
