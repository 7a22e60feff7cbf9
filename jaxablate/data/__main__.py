"""``python -m jaxablate.data prepare | info | download | sentiment | download-sentiment``: the data of a run."""

import sys

from jaxablate.exits import guarded


def main(arguments: list[str] | None = None, *, ends: bool = False) -> int:
    """Runs one command, by default this process's own. The exit code and ``ends`` are those of
    `jaxablate.exits.guarded`."""

    def run() -> None:
        from jaxablate.data.program import app  # imports take long enough to be interrupted

        app.cli(args=arguments, prog="python -m jaxablate.data", description=__doc__)

    return guarded(run, ends=ends or arguments is None)


if __name__ == "__main__":
    sys.exit(main())
