"""Suites: what `jaxablate score` measures of a run. `SUITES` is their registry; one file a suite."""

from jaxablate.registry import Registry
from jaxablate.suites import (
    autoencoders,
    circuits,
    classification,
    explanations,
    gates,
    importance,
    ioi,
    leakage,
    neurons,
    perplexity,
    samples,
    superposition,
    texts,
    units,
    weights,
)
from jaxablate.suites.suite import Suite

SUITES: Registry[Suite] = Registry("suite", (
    perplexity.SUITE, ioi.SUITE, gates.SUITE, weights.SUITE, samples.SUITE, circuits.SUITE,
    neurons.SUITE, leakage.SUITE, autoencoders.SUITE, units.SUITE, texts.SUITE,
    classification.SUITE, superposition.SUITE, importance.SUITE, explanations.SUITE,
))
"""Every suite, in the order of tables and reports."""
register = SUITES.register
