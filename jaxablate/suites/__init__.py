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
<<<<<<< HEAD
    units,
=======
    texts,
>>>>>>> 6cc519e (Texts token by token: suite texts, classifier's texts, scored edges of circuits; the explorer's views Text and Circuit (first))
    weights,
)
from jaxablate.suites.suite import Suite

SUITES: Registry[Suite] = Registry("suite", (
    perplexity.SUITE, ioi.SUITE, gates.SUITE, weights.SUITE, samples.SUITE, circuits.SUITE,
<<<<<<< HEAD
    neurons.SUITE, leakage.SUITE, autoencoders.SUITE, units.SUITE,
=======
    neurons.SUITE, leakage.SUITE, autoencoders.SUITE, texts.SUITE,
>>>>>>> 6cc519e (Texts token by token: suite texts, classifier's texts, scored edges of circuits; the explorer's views Text and Circuit (first))
    classification.SUITE, superposition.SUITE, importance.SUITE, explanations.SUITE,
))
"""Every suite, in the order of tables and reports."""
register = SUITES.register
