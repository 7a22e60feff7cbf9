"""The program ``jaxablate``: its commands by name, each imported when it is called."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from jaxablate.errors import guarded
from jaxablate.terminal import PlainConsole

COMMANDS = {
    "train": "train a model, or continue a run that was stopped or killed",
    "score": "measure a checkpoint: results.json, report.html and a table",
    "compare": "one table over scored runs",
    "match": "compare a model with a baseline's checkpoint of equal loss",
    "circuit": "find the circuit of a task in a language model",
    "sae": "train sparse autoencoders on a language model's activations",
    "neurons": "graphs of what fires each neuron of a language model",
    "explain": "explain what a text classifier makes of a text",
}
"""Name of a command, which is that of its file, and what it does."""


def main(argv: Sequence[str] | None = None, *, prog: str = "jaxablate") -> int:
    """Runs a command, by default this process's. The exit code is that of `jaxablate.errors.guarded`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_usage(prog))
        return 0
    if name == "--version":
        from jaxablate import __version__

        print(f"jaxablate {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"error: unknown command {name!r}; {hint}There are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2

    def run() -> None:
        console = PlainConsole(width=None if sys.stdout.isatty() else 140)
        # Importing a command reads registries, and with them parts of other packages.
        command = importlib.import_module(f"jaxablate.commands.{name}")
        command.parse(argv[1:], prog=f"{prog} {name}").run(console)

    return guarded(run)


def _usage(prog: str) -> str:
    lines = [f"usage: {prog} COMMAND ...", "",
             "Trains transformers that are interpretable by training, and measures whether they are.", ""]
    lines += [f"  {name:<9} {what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, "", f"{prog} COMMAND --help tells a command's options; {prog} --version the version."])
