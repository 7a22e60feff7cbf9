"""Neurons, attention channels and gates: what fires them, what they tell, and whether gates tell too much.

====================  =================================================================================================
``specialisation``    `measure`: every measure of every unit in one pass over a split, with its nulls
``units``             the units of a decoder, and random directions of their spaces
``stream``            the pass: power sums and tables of firings
``firing_table``      counts of firings, two to a number
``measures``          formulas of docs/papers.md, Neuron measures
``nulls``             shuffled tokens, and random directions that fire as often
``facts``             which unit tells which recorded fact of a text
``examples``          where in a text each unit is strongest
``neuron_to_graph``   graphs of what fires units, from their examples; ``pruning``, ``short_runs``: its steps
``graphs``            patterns of tokens, merged, as a trie
``matching``          where patterns match a text, and how well that tells where a unit fires
``leakage``           the ablated stream with its gates, or what they gate, replaced; a sample of gates
``gate_information``  bits that one gate tells of the next token; ``probe``: what a linear reader makes of all
``ngrams``            what counts of tokens and of pairs know of the next
====================  =================================================================================================

Everything takes a model and its parameters and changes neither.
"""

from jaxablate.neurons.examples import TopExamples, UnitReader, top_examples
from jaxablate.neurons.facts import FactMeasures, Facts
from jaxablate.neurons.gate_information import UnitInformation, frequent_tokens, unit_information
from jaxablate.neurons.graphs import Pattern
from jaxablate.neurons.leakage import Audit, GateSample, audit_gates
from jaxablate.neurons.matching import Counts, Text, count_hits, firings
from jaxablate.neurons.measures import Shape, TokenSelectivity
from jaxablate.neurons.neuron_to_graph import GraphSettings, UnitGraph, build_graphs
from jaxablate.neurons.ngrams import ngram_losses
from jaxablate.neurons.probe import ProbeLosses, probe_gates
from jaxablate.neurons.pruning import Neighbours, Noise
from jaxablate.neurons.short_runs import ShortRuns
from jaxablate.neurons.specialisation import MEASURES, NeuronMeasures, UnitGroup, measure

__all__ = [
    "MEASURES", "Audit", "Counts", "FactMeasures", "Facts", "GateSample", "GraphSettings", "Neighbours",
    "NeuronMeasures", "Noise", "Pattern", "ProbeLosses", "Shape", "ShortRuns", "Text", "TokenSelectivity",
    "TopExamples", "UnitGraph", "UnitGroup", "UnitInformation", "UnitReader", "audit_gates", "build_graphs",
    "count_hits", "firings", "frequent_tokens", "measure", "ngram_losses", "probe_gates", "top_examples",
    "unit_information",
]
