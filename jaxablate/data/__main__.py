"""``python -m jaxablate.data prepare | info | download | sentiment | download-sentiment``: the data of a run."""

import sys

from jaxablate.exits import guarded


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is that of `jaxablate.exits.guarded`."""

    def run() -> None:
        from jaxablate.data.program import app  # imports take long enough to be interrupted

        app.cli(args=arguments, prog="python -m jaxablate.data", description=__doc__)

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
