"""The program ``jaxablate``: its commands by name, each imported when it is called."""

import importlib
import sys
from collections.abc import Sequence

from jaxablate.errors import ConfigError
from jaxablate.exits import guarded

COMMANDS = {
    "quickstart": "train a small model and its baseline, and compare them",
    "train": "train a model, or continue a run that was stopped or killed",
    "import": "make a working directory of a Hugging Face folder",
    "export": "write a language model as a Hugging Face folder",
    "score": "measure a checkpoint: results.json, report.html and a table",
    "compare": "one table over scored runs",
    "sweep": "train and score every run of a grid",
    "serve": "show runs in a browser while they train, and read typed text",
    "match": "compare a model with a baseline's checkpoint of equal loss",
    "circuit": "find the circuit of a task in a language model",
    "sae": "train sparse autoencoders on a language model's activations",
    "neurons": "graphs of what fires each neuron of a language model",
    "explain": "explain what a text classifier makes of a text",
}
"""Name of a command, which is that of its file, and what it does."""


def main(argv: Sequence[str] | None = None, *, prog: str = "jaxablate", ends: bool = False) -> int:
    """Runs a command, by default this process's own; exit code and ``ends`` are those of `jaxablate.exits.guarded`."""
    ends = ends or argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"

    def run() -> None:
        if name in ("-h", "--help"):
            print(_usage(prog))
        elif name == "--version":
            from jaxablate import __version__

            print(f"jaxablate {__version__}")
        else:
            _run(name, argv[1:], prog)

    return guarded(run, ends=ends)


def _run(name: str, argv: Sequence[str], prog: str) -> None:
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown command {name!r:.80}; {hint}There are {', '.join(COMMANDS)}")
    # Imports take long enough to be interrupted. Those of a command also read registries, and with them parts of other
    # packages.
    from jaxablate.terminal import PlainConsole

    console = PlainConsole(width=None if sys.stdout.isatty() else 140)
    settings = importlib.import_module(f"jaxablate.commands.{name}").parse(argv, prog=f"{prog} {name}")
    if settings.compiles:
        from jaxablate.commands.compilation import keep_compiled

        keep_compiled()
    settings.run(console)


def _usage(prog: str) -> str:
    lines = [f"usage: {prog} COMMAND ...", "",
             "Trains transformers that are interpretable by training; measures whether they are.", ""]
    lines += [f"  {name:<11} {what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, "", f"{prog} COMMAND --help tells a command's options, --help-all everything of them;",
                      f"{prog} --version the version."])
