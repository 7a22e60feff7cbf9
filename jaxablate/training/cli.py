"""The command line of ``train.py``."""

import contextlib
import dataclasses
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxablate.config import ClassificationConfig, Config, RunConfig
from jaxablate.errors import ConfigError, JaxablateError

DESCRIPTION = """Trains a self-ablating transformer or a SAFR text classifier, or continues a run that was stopped or
killed.

Any setting of the config file can be changed: --model.ablation global --model.k-neurons 4 --train.seed 1.
Exit code 0: finished, or saved after SIGTERM or Ctrl-C (the same command continues). 2: an error told in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What ``train.py`` takes."""

    config: Annotated[Path, tyro.conf.arg(metavar="FILE.py")]
    """Python file with get_config(), for example configs/tinystories.py."""
    workdir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Where checkpoints and metrics go; a directory that already holds this run is continued."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds in place of train.seed, one after another, in DIR/seed-0, DIR/seed-1, ..."""
    distributed: bool = False
    """Several processes: call jax.distributed.initialize() first (SLURM, Open MPI, Kubernetes, Cloud TPU)."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationArguments(Arguments):
    """The same where the config file is a text classifier's."""

    settings: Annotated[ClassificationConfig, tyro.conf.arg(name="")] = ClassificationConfig()


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, trains, and returns the exit code; an unknown or missing flag ends the program with exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parse(argv)
        _set_precision(arguments.settings)
        if arguments.distributed:
            _initialize_distributed()
        from jaxablate.training.loop import train
        from jaxablate.training.workdir import check_workdir

        chosen = runs(arguments)
        for settings, workdir in chosen:  # all before the first, which may take hours
            check_workdir(workdir, settings)
        for settings, workdir in chosen:
            if train(settings, workdir).signalled:
                break
    except JaxablateError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def runs(arguments: Arguments) -> list[tuple[RunConfig, Path]]:
    """The runs that the arguments ask for: one, or one a seed."""
    settings, workdir = arguments.settings, arguments.workdir
    if not arguments.seeds:
        return [(settings, workdir)]
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, arguments.seeds))} has a seed twice; give each once")
    seeded = [dataclasses.replace(settings, train=dataclasses.replace(settings.train, seed=s)) for s in arguments.seeds]
    return [(config, workdir / f"seed-{config.train.seed}") for config in seeded]


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments with the config file's settings as defaults of the typed flags.

    Raises:
      ConfigError: the config file is missing or broken, or a setting is out of range.
      SystemExit: a flag is unknown (the nearest is named) or of the wrong type, or help was asked for.
    """
    path = _config_path(argv)
    settings = Config() if path is None else load_config(path)
    # tyro fills what a default gives; --config and --workdir stay required unless given.
    kind = Arguments if isinstance(settings, Config) else ClassificationArguments
    default = kind(config=tyro.MISSING, workdir=tyro.MISSING, settings=settings)
    options = (tyro.conf.FlagCreatePairsOff,)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                kind, args=argv, default=default, prog="train.py", description=DESCRIPTION, config=options
            )
    except SystemExit as stop:
        if (refused := _config_error(stop)) is not None:
            raise refused from None
        print(told.getvalue(), end="", file=sys.stderr)
        raise


def load_config(path: str | Path) -> RunConfig:
    """What ``get_config()`` of a Python file returns.

    Raises:
      ConfigError: the file is missing, does not run, or has no such function.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; give a Python file with get_config(), as in configs/")
    spec = importlib.util.spec_from_file_location(f"jaxablate_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except JaxablateError:
        raise
    except Exception as error:  # whatever the user's file raises is told in one line
        raise ConfigError(f"--config {path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"--config {path}: get_config() must return a jaxablate.config.Config or ClassificationConfig, not "
            f"{config!r:.80}"
        )
    return config


def _config_error(stop: SystemExit) -> ConfigError | None:
    """What a configuration refused, which tyro has drawn a box around; None where tyro refused the flags itself."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, ConfigError):
        error = error.__cause__ or error.__context__
    return error


def _config_path(argv: Sequence[str]) -> str | None:
    for index, argument in enumerate(argv):
        if argument == "--config" and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def _set_precision(config: RunConfig) -> None:
    import jax

    if "float64" in (config.model.param_dtype, config.model.compute_dtype):
        jax.config.update("jax_enable_x64", True)


def _initialize_distributed() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--distributed could not join the other processes ({str(error).splitlines()[0]}); start them under SLURM, "
            "Open MPI, Kubernetes or Cloud TPU, or leave --distributed out"
        ) from error
