"""Circuits: the suite, and eval.py circuit."""
