"""Trains a model: ``python train.py --config configs/quickstart.py --workdir runs/quickstart``."""

import sys

from jaxablate.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
