"""Circuits of decoders: the edge-factorised graph, exact ACDC, attribution, faithfulness (REFERENCE sections 2 and 4)."""
