"""Flax Linen models; each returns one output struct with its activations as named fields."""
