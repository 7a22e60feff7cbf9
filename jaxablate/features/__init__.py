"""Sparse autoencoders: sites, training on a stream of activations, measures, files in SAELens's layout."""
