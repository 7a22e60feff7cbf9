"""Labelled texts of two kinds, good and bad: sentences of films and whole reviews, as tokens and batches.

Nothing is imported here; `jaxablate.classifier` has the public names.
"""
