"""What the commands share: settings of a stored run, parsing, lines of progress, and stopping in good order."""

import abc
import contextlib
import dataclasses
import io
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from jaxablate import files
from jaxablate.config.checks import LARGEST, require_numbers
from jaxablate.errors import ConfigError
from jaxablate.exits import Terminated
from jaxablate.terminal import printable

S = TypeVar("S")
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
          config: tuple[Any, ...] = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)) -> S:
    """Settings from a command line.

    Raises:
      ConfigError: a value is out of range.
      SystemExit: a flag is unknown (the nearest is named) or of the wrong type, or help was asked for.
    """
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


def say(console: Console, line: str) -> None:
    """Prints a line of progress."""
    console.print(line, style="dim", highlight=False, soft_wrap=True)


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
