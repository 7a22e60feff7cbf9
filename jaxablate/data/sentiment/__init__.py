"""Labelled texts of two classes, negative and positive: sentences about films and film reviews, as tokens and batches.

Nothing is imported here; `jaxablate.classifier` has the public names.
"""
