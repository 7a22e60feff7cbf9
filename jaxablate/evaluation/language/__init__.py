"""Suites of language models: one file each."""
