"""Neurons, attention channels and gates: what fires them, what they tell, and whether gates tell too much.

* ``specialisation``: `measure` of a decoder, `measure_sites` of any model, `measure_arrays` of arrays; `summarise`
* ``measures``: formulas of docs/papers.md, Neuron measures, and their nulls
* ``firing_counts``: the pass of a model over a split: thresholds, power sums, tables of firings
* ``units``: the units of a decoder, and random directions of their spaces
* ``facts``: which unit tells which recorded fact of a text
* ``survey``: the places, histograms and partners that a page about each unit shows
* ``examples``: where in a text each unit is strongest, and how strong at the end of short sequences
* ``graphs``: Neuron to Graph: patterns of tokens that fire units, from their examples
* ``matching``: where patterns match a text, and how well that tells where a unit fires
* ``leakage``: the ablated stream with its gates, or what they gate, replaced; a sample of gates; n-grams
* ``gate_information``: bits that one gate tells of the next token; what a linear reader makes of all gates

Everything takes a model and its parameters, or arrays, and changes neither.
"""

from jaxablate.neurons.examples import ShortRuns, TopExamples, UnitReader, top_examples
from jaxablate.neurons.facts import FactMeasures, Facts
from jaxablate.neurons.gate_information import (
    ProbeLosses,
    UnitInformation,
    frequent_tokens,
    probe_gates,
    unit_information,
)
from jaxablate.neurons.graphs import GraphSettings, Neighbours, Pattern, UnitGraph, build_graphs
from jaxablate.neurons.leakage import Audit, GateSample, audit_gates, ngram_losses
from jaxablate.neurons.matching import Counts, GraphSummary, count_hits, firings, summarise_graphs
from jaxablate.neurons.measures import Shape, TokenSelectivity
from jaxablate.neurons.specialisation import (
    MEASURES,
    GroupSummary,
    MeasureSummary,
    NeuronMeasures,
    UnitGroup,
    measure,
    measure_arrays,
    measure_sites,
    measure_units,
    summarise,
)

__all__ = [
    "MEASURES", "Audit", "Counts", "FactMeasures", "Facts", "GateSample", "GraphSettings", "GraphSummary",
    "GroupSummary", "MeasureSummary", "Neighbours", "NeuronMeasures", "Pattern", "ProbeLosses", "Shape", "ShortRuns",
    "TokenSelectivity", "TopExamples", "UnitGraph", "UnitGroup", "UnitInformation", "UnitReader", "audit_gates",
    "build_graphs", "count_hits", "firings", "frequent_tokens", "measure", "measure_arrays", "measure_sites",
    "measure_units", "ngram_losses", "probe_gates", "summarise", "summarise_graphs", "top_examples", "unit_information",
]
