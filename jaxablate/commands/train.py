"""``jaxablate train``: trains a model from a configuration, or continues a run."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxablate.commands import base
from jaxablate.config import ClassificationConfig, Config, RunConfig
from jaxablate.errors import ConfigError, JaxablateError

DESCRIPTION = """Trains a self-ablating transformer or a SAFR text classifier, or continues a run that was stopped or
killed.

Any setting of the config file can be changed: --model.ablation global --model.k-neurons 4 --train.seed 1.
Exit code 0: finished, or saved after SIGTERM or Ctrl-C (the same command continues). 2: an error told in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(base.Settings):
    """What ``jaxablate train`` takes."""

    config: Annotated[str, tyro.conf.arg(metavar="NAME|FILE.py")]
    """Name of a shipped configuration (quickstart, tinystories, ...), or a Python file with get_config()."""
    workdir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Where checkpoints and metrics go; a directory that already holds this run is continued."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds in place of train.seed, one after another, in DIR/seed-0, DIR/seed-1, ..."""
    distributed: bool = False
    """Several processes: call jax.distributed.initialize() first (SLURM, Open MPI, Kubernetes, Cloud TPU)."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = Config()

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds {' '.join(map(str, self.seeds))} has a seed twice; give each once")

    def runs(self) -> list[tuple[RunConfig, Path]]:
        """The runs that are asked for: one, or one a seed."""
        if not self.seeds:
            return [(self.settings, self.workdir)]
        seeded = [dataclasses.replace(self.settings, train=dataclasses.replace(self.settings.train, seed=seed))
                  for seed in self.seeds]
        return [(config, self.workdir / f"seed-{config.train.seed}") for config in seeded]

    def run(self, console: Console) -> None:
        """Trains; returns after SIGTERM or Ctrl-C, too, once the state is saved."""
        del console  # training draws a picture of its own
        import jax

        if "float64" in (self.settings.model.param_dtype, self.settings.model.compute_dtype):
            jax.config.update("jax_enable_x64", True)
        if self.distributed:
            _initialize_distributed()
        from jaxablate.runs.workdir import check_workdir
        from jaxablate.training.loop import train

        for config, workdir in self.runs():  # all before the first, which may take hours
            check_workdir(workdir, config)
        for config, workdir in self.runs():
            if train(config, workdir).signalled:
                break


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTrainSettings(TrainSettings):
    """The same where the configuration is a text classifier's."""

    settings: Annotated[ClassificationConfig, tyro.conf.arg(name="")] = ClassificationConfig()


def parse(argv: Sequence[str], *, prog: str = "jaxablate train") -> TrainSettings:
    """Settings with those of the configuration as defaults of the typed flags.

    Raises:
      ConfigError: the config file is missing or broken, or a setting is out of range.
      SystemExit: a flag is unknown (the nearest is named) or of the wrong type, or help was asked for.
    """
    name = _config_name(argv)
    settings = Config() if name is None else load_config(name)
    # tyro fills what a default gives; --config and --workdir stay required unless given.
    kind = TrainSettings if isinstance(settings, Config) else ClassifierTrainSettings
    default = _unchecked(kind, config=tyro.MISSING, workdir=tyro.MISSING, settings=settings)
    return base.parse(kind, argv, prog=prog, description=DESCRIPTION, default=default,
                      config=(tyro.conf.FlagCreatePairsOff,))


def _unchecked(kind: type[TrainSettings], **values: Any) -> TrainSettings:
    """Settings in which some are still missing."""
    settings = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(settings, field.name, values.get(field.name, field.default))
    return settings


def shipped_configs() -> dict[str, Path]:
    """Configurations that come with the package, by name."""
    package = Path(__file__).resolve().parent.parent
    # The wheel has them inside the package, a checkout beside it.
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def load_config(path: str | Path) -> RunConfig:
    """What ``get_config()`` of a Python file, or of a shipped configuration, returns.

    Raises:
      ConfigError: the file is missing, does not run, or has no such function.
    """
    path = shipped_configs().get(str(path), Path(path))
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; give a Python file with get_config(), or one of "
                          f"the shipped {', '.join(shipped_configs())}")
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


def _config_name(argv: Sequence[str]) -> str | None:
    for index, argument in enumerate(argv):
        if argument == "--config" and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def _initialize_distributed() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--distributed could not join the other processes ({str(error).splitlines()[0]}); start them under SLURM, "
            "Open MPI, Kubernetes or Cloud TPU, or leave --distributed out"
        ) from error
