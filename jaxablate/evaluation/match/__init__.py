"""eval.py match: a run beside the checkpoint of a baseline that has the same validation loss."""
