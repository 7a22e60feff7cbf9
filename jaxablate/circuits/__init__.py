"""Circuits of decoders: the edge graph, exact ACDC, attribution, faithfulness (REFERENCE sections 2 and 4)."""
