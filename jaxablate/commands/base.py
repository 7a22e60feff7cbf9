"""What the commands share: settings of a stored run, parsing, lines of progress, and stopping in good order."""

import abc
import ast
import contextlib
import dataclasses
import inspect
import io
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from jaxablate import files
from jaxablate.commands import usage
from jaxablate.config.checks import LARGEST, require_numbers
from jaxablate.errors import ConfigError, JaxablateError
from jaxablate.exits import Terminated
from jaxablate.terminal import PlainConsole, printable

S = TypeVar("S")
Say = Callable[[str], None]
"""Takes a line of progress."""
MOST_ROWS = 1 << 16
"""Sequences in a batch of a command that measures, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(abc.ABC):
    """Settings of a command; a text given for a path becomes a path.

    Raises:
      ConfigError: a value is of the wrong type for a path, or no path that a file can have (`files.check_path`), or a
        number is beyond what arrays hold (`config.checks.require_numbers`), or a text is not Unicode.
    """

    @property
    def compiles(self) -> bool:
        """Whether the command uses JAX; what it compiles is kept (`jaxablate.commands.compilation`)."""
        return True

    def __post_init__(self):
        require_numbers(self)
        for name, value in vars(self).items():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, str) and part != part.encode(errors="replace").decode():
                    raise ConfigError(f"{name}={part!r:.80} is not UTF-8; write it anew")
        for name, kind in typing.get_type_hints(type(self)).items():
            if Path in (kind, *typing.get_args(kind)):
                value = getattr(self, name)
                if isinstance(value, tuple):
                    object.__setattr__(self, name, tuple(_path(name, part) for part in value))
                elif value is not None:
                    object.__setattr__(self, name, _path(name, value))

    @abc.abstractmethod
    def run(self, console: Console) -> None:
        """Does what the command is for, and prints what came of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Settings of a command that looks at one checkpoint of a run."""

    workdir: Path
    """Working directory of a training run."""
    checkpoint: str = "auto"
    """newest, best (by validation loss, or accuracy on the development split), or a step. auto: the newest of a
    language model; the best of a classifier, or the newest one where padding is as in the paper, whose code kept no
    other."""
    batch_size: int | None = None
    """Sequences at once; the default is that of training. No figure depends on it beyond rounding."""
    seed: int = 0
    """Seed of resampling, of prompts that are drawn, and of sampled text."""

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "batch_size")
        if self.batch_size is not None and self.batch_size > MOST_ROWS:
            raise ConfigError(f"batch_size={self.batch_size} must be at most {MOST_ROWS:,}; a batch is held in memory")
        require_at_least(self, 0, "seed")
        is_step = self.checkpoint.isdecimal() and len(self.checkpoint) <= len(str(LARGEST))
        if self.checkpoint not in ("auto", "newest", "last", "best") and not is_step:
            raise ConfigError(f"checkpoint={self.checkpoint!r:.80} must be auto, newest, best or a step")

    def open(self) -> Any:
        """The checkpoint as a `jaxablate.runs.run.Run`."""
        from jaxablate.runs.run import open_run

        return open_run(self.workdir, self.checkpoint, batch_size=self.batch_size, seed=self.seed)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name}={value!r} must be a path")
    files.check_path(value, name)
    return Path(value)


def require_at_least(settings: Any, least: int, *names: str) -> None:
    """Raises ConfigError where a field is given and below a limit."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            limit = f"must be at least {least}" if least else "must not be negative"
            raise ConfigError(f"{name}={value} {limit}")


def parse(kind: type[S], argv: Sequence[str], *, prog: str, description: str | None = None, default: S | None = None,
          prefixes: bool = False, common: Collection[str] = (), sections: Callable[[], usage.Sections] = dict) -> S:
    """Settings from a command line.

    Args:
      kind: dataclass of the settings.
      argv: the command line.
      prog: the command as it is called.
      description: what the help says of it; by default the docstring of the settings.
      default: an instance with other defaults.
      prefixes: whether flags of settings inside settings have dotted names.
      common: those of them that the short help has (`usage.show`).
      sections: gives further lists of the help.

    Raises:
      ConfigError: a value is out of range.
      SystemExit: a flag is unknown (the nearest is named) or of the wrong type, or help was asked for.
    """
    whole = usage.asked(argv)
    if whole is not None:
        about = description or (inspect.getdoc(kind) or "").partition("Raises:")[0]
        usage.show(PlainConsole(), kind, prog=prog, about=about, whole=whole, default=default, prefixes=prefixes,
                   common=common, sections=sections())
        raise SystemExit(0)
    config = (tyro.conf.FlagCreatePairsOff,) if prefixes else (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    printed = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, args=list(argv), prog=prog, description=description, config=config, **options)
    except SystemExit as stop:
        # What a settings class itself refused, tyro has drawn a box around.
        error: BaseException | None = stop
        while error is not None and not isinstance(error, ConfigError):
            error = error.__cause__ or error.__context__
        if error is not None:
            raise error from None
        print(printed.getvalue(), end="", file=sys.stderr)
        raise


def shipped(folder: str) -> dict[str, Path]:
    """Python files of a folder that comes with the package (``configs``, ``configs/sweeps``), by name."""
    package = Path(__file__).resolve().parent.parent
    # The wheel has them inside the package, a checkout beside it.
    found = next((f for f in (package / folder, package.parent / folder) if f.is_dir()), package)
    return {path.stem: path for path in sorted(found.glob("*.py")) if path.stem != "__init__"}


def shipped_about(folder: str) -> dict[str, str]:
    """The first paragraph of each of those files, by name."""
    docs = {name: ast.get_docstring(ast.parse(path.read_bytes())) or "" for name, path in shipped(folder).items()}
    return {name: " ".join(doc.split("\n\n")[0].split()) for name, doc in docs.items()}


def find_file(path: str | Path, known: Mapping[str, Path], option: str, function: str) -> Path:
    """A shipped file by its name, or a file of the user.

    Raises:
      ConfigError: there is none; ``option`` says what it was given for, ``function`` what it should have.
    """
    if str(path) in known:
        return known[str(path)]
    files.check_path(path, option)
    if not Path(path).is_file():
        raise ConfigError(f"{option} {path} does not exist; give a Python file with {function}(), or one of "
                          f"the shipped {', '.join(known)}")
    return Path(path)


def call_file(path: Path, function: str, checked: Callable[[Any], S], option: str) -> S:
    """What a function of a Python file returns, as ``checked`` gives it.

    Raises:
      ConfigError: the file does not run, has no such function, or ``checked`` refuses what it returns.
    """
    try:
        # Not by Python's import, which would take the stored bytecode of a file that had the same size and time.
        module = types.ModuleType(f"jaxablate_config_{path.stem}")
        module.__file__ = str(path)
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        return checked(getattr(module, function)())
    except (JaxablateError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # whatever the user's file raises is told in one line, SystemExit too
        raise ConfigError(f"{option} {path} failed: {_told(error)}") from None


def _told(error: BaseException) -> str:
    """Type and message of an error of somebody's code, whose own ``__str__`` may fail."""
    try:
        return f"{type(error).__name__}: {error!s:.300}".removesuffix(": ")
    except BaseException:
        return type(error).__name__


def say(console: Console, line: str) -> None:
    """Prints a line of progress, on a terminal folded between words."""
    console.print(line, style="dim", highlight=False, soft_wrap=not console.is_terminal)


def say_paths(console: Console, paths: Sequence[Any]) -> None:
    """Prints where the files are, a line each."""
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def terminable(line: str) -> Iterator[None]:
    """Ends the program with a line where Ctrl-C (exit code 130) or SIGTERM (143) stops the block."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        print(printable(line), file=sys.stderr)
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else 143) from None
