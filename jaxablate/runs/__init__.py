"""A run's working directory: configuration, lock, checkpoints and their seals, and `open_run`, the one way in."""
