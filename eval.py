"""Scores trained models, compares them, explains what a classifier makes of a text, finds circuits.

``python eval.py score --workdir runs/local-k8`` is ``jaxablate score --workdir runs/local-k8``; so are the other
commands.
"""

import sys

from jaxablate.commands.main import main

if __name__ == "__main__":
    sys.exit(main(prog="eval.py"))
