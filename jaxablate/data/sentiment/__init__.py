"""Labelled texts of two kinds, good and bad: sentences of films and whole reviews, as tokens and batches.

Nothing is imported here; use the modules: `jaxablate.data.sentiment.prepare`, `jaxablate.data.sentiment.batches`,
`jaxablate.data.sentiment.vocabulary`.
"""
