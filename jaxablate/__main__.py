"""``python -m jaxablate``: the same as the command ``jaxablate``."""

import sys

from jaxablate.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
