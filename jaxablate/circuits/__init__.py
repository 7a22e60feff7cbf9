"""Circuits of decoders: the edge graph, exact ACDC, attribution, faithfulness.

Example:
  >>> from jaxablate import circuits
  >>> known = circuits.known_model()
  >>> task = circuits.problem(known.config, known.params, known.pairs())
  >>> found = circuits.acdc(task, taus=(0.03,))
  >>> set(found.circuit(0.03).edge_names()) == set(known.edges())
  True
"""

from jaxablate.circuits import sites
from jaxablate.circuits.acdc import AcdcResult, AcdcRun, acdc, shuffled_order
from jaxablate.circuits.attribution import eap, eap_ig, mask_gradient, neuron_eap, node_eap, random_scores
from jaxablate.circuits.blocks import Decoder, Inputs
from jaxablate.circuits.circuit import Circuit, edge_order, first_edges, without_dangling
from jaxablate.circuits.competence import competence, measure
from jaxablate.circuits.effects import effects
from jaxablate.circuits.faithfulness import completeness, faithfulness, metric_values, minimality, prompt_draws, roc
from jaxablate.circuits.formats import load_circuit, load_mib, save_circuit, save_mib
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.ioi import ioi
from jaxablate.circuits.known import known_model
from jaxablate.circuits.linen import from_linen
from jaxablate.circuits.methods import METHODS, Method
from jaxablate.circuits.metrics import importance
from jaxablate.circuits.problem import Problem, problem
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.pruning import Pruned, PruneRow, PruneSettings, prune, prune_with_nulls
from jaxablate.circuits.tasks import PromptText, load_prompts, load_task, save_prompts, tokenise

__all__ = [
    "METHODS", "AcdcResult", "AcdcRun", "Circuit", "Decoder", "Graph", "Inputs", "Method", "Problem", "PromptPairs",
    "PromptText", "PruneRow", "PruneSettings", "Pruned", "acdc", "competence", "completeness", "eap", "eap_ig",
    "edge_order", "effects", "faithfulness", "first_edges", "from_linen", "importance", "ioi", "known_model",
    "load_circuit", "load_mib", "load_prompts", "load_task", "mask_gradient", "measure", "metric_values", "minimality",
    "neuron_eap", "node_eap", "problem", "prompt_draws", "prune", "prune_with_nulls", "random_scores", "roc",
    "save_circuit", "save_mib", "save_prompts", "shuffled_order", "sites", "tokenise", "without_dangling",
]
