"""Circuits of decoders: the edge graph, exact ACDC, attribution, faithfulness.

Example:
  >>> from jaxablate import circuits
  >>> known = circuits.known_model()
  >>> found = circuits.acdc(known.config, known.params, known.pairs(), taus=(0.03,))
  >>> set(found.circuit(0.03).edge_names()) == set(known.edges())
  True
"""

from jaxablate.circuits.acdc import AcdcResult, AcdcRun, acdc, shuffled_order
from jaxablate.circuits.attribution import eap, eap_ig, mask_gradient, random_scores
from jaxablate.circuits.attribution_units import neuron_eap, node_eap
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.effects import single_edge_effects
from jaxablate.circuits.faithfulness import completeness, faithfulness, metric_values, minimality, prompt_draws, roc
from jaxablate.circuits.formats import load_circuit, load_mib, save_circuit, save_mib
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.ioi import ioi
from jaxablate.circuits.known import known_model
from jaxablate.circuits.metrics import importance, make_target
from jaxablate.circuits.patching import (
    circuit_config,
    make_inputs,
    make_replacement,
    pair_inputs,
    patched_final,
    patched_logits,
    run,
)
from jaxablate.circuits.prompt_files import load_prompts, load_task, save_prompts
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.search import edge_order, first_edges, without_dangling
from jaxablate.circuits.tasks import PromptText, tokenise

__all__ = [
    "AcdcResult", "AcdcRun", "Circuit", "Graph", "PromptPairs", "PromptText", "acdc", "circuit_config", "completeness",
    "eap", "eap_ig", "edge_order", "faithfulness", "first_edges", "importance", "ioi", "known_model", "load_circuit",
    "load_mib", "load_prompts", "load_task", "make_inputs", "make_replacement", "make_target", "mask_gradient",
    "metric_values", "minimality", "neuron_eap", "node_eap", "pair_inputs", "patched_final", "patched_logits",
    "prompt_draws", "random_scores", "roc", "run", "save_circuit", "save_mib", "save_prompts", "shuffled_order",
    "single_edge_effects", "tokenise", "without_dangling",
]
