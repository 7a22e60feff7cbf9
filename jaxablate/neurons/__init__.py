"""Neurons, attention channels and gates: what fires them, what they tell, and whether gates tell too much.

==================  =================================================================================================
``specialisation``  `measure`: every measure of every unit in one pass over a split, with its nulls
``units``           the units of a decoder, and random directions of their spaces
``stream``          the pass: power sums and tables of firings
``measures``        formulas of REFERENCE section 5
``nulls``           shuffled tokens, and random directions that fire as often
``facts``           which unit tells which recorded fact of a text
==================  =================================================================================================

Everything takes a model and its parameters and changes neither.
"""

from jaxablate.neurons.facts import FactMeasures, Facts
from jaxablate.neurons.measures import Shape, TokenSelectivity
from jaxablate.neurons.specialisation import MEASURES, NeuronMeasures, UnitGroup, measure

__all__ = ["MEASURES", "FactMeasures", "Facts", "NeuronMeasures", "Shape", "TokenSelectivity", "UnitGroup", "measure"]
