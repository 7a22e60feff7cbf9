"""Sparse autoencoders: the suite, and eval.py sae, which trains them."""
