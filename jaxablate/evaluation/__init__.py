"""Scoring a trained model: each suite is a pure function from model, parameters and data to a frozen result.

A suite module has ``evaluate(...) -> Result`` and one `Suite` that names it, says which models it fits and how to
run it on a `Subject`. ``runner.py`` lists the suites and writes ``results.json``; nothing else here knows of
checkpoints or training.
"""
