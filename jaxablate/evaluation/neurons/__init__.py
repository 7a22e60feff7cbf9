"""Neurons: the suite of measures, and eval.py neurons, which makes graphs of what fires each one."""
