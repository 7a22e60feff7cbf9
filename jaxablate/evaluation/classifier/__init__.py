"""Suites of text classifiers, and explanations of single texts (eval.py explain)."""
