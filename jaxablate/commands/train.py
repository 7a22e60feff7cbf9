"""``jaxablate train``: trains a model from a configuration, or continues a run."""

import dataclasses
import itertools
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxablate import files
from jaxablate.commands import base
from jaxablate.config import ClassificationConfig, Config, RunConfig, run_from_dict, to_dict
from jaxablate.errors import ConfigError, JaxablateError
from jaxablate.exits import Terminated

DESCRIPTION = """Trains a self-ablating transformer or a SAFR text classifier, or continues a run that was stopped or
killed.

Any setting of the config file can be changed: --model.ablation global --model.k-neurons 4 --train.seed 1.
Exit code 0: finished, or saved after SIGTERM or Ctrl-C (the same command continues), or a plan that fits. 2: an error
told in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(base.Settings):
    """What ``jaxablate train`` takes."""

    config: Annotated[str, tyro.conf.arg(metavar="NAME|FILE.py")]
    """Name of a shipped configuration (quickstart, tinystories, ...), or a Python file with get_config()."""
    workdir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
    """Where checkpoints and metrics go; a directory that already holds this run is continued. --plan needs none."""
    plan: bool = False
    """Do not train: compile the step and print what it needs, what fits, and how fast it is at best. Reads no data."""
    target: str | None = None
    """With --plan, the machine to compile for: here, a TPU slice (v5e:4x4, v5p:2x2x1, v6e:4x4) or GPUs (h100:8). Only
    its compiler is needed."""
    profile: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Record N steps, after the first three, for TensorBoard or XProf: DIR/profile. In a cluster, those of the first
    process."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds in place of train.seed, one after another, in DIR/seed-0, DIR/seed-1, ..."""
    distributed: bool = False
    """Several processes: call jax.distributed.initialize() first (SLURM, Open MPI, Kubernetes, Cloud TPU)."""
    join_seconds: int = 60
    """Seconds in which the other processes of --distributed must have started."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = Config()

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "join_seconds")
        base.require_at_least(self, 0, "profile")
        if self.profile and self.plan:
            raise ConfigError(f"--profile {self.profile} records steps, and --plan makes none; give one of the two")
        if self.target is not None and not self.plan:
            raise ConfigError(f"--target {self.target} is what --plan compiles for; give --plan, too")
        if self.workdir is None and not self.plan:
            raise ConfigError("workdir is missing; give --workdir DIR, where checkpoints and metrics go")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds {' '.join(map(str, self.seeds))} has a seed twice; give each once")

    def runs(self) -> list[tuple[RunConfig, Path]]:
        """The runs that are asked for: one, or one a seed."""
        assert self.workdir is not None
        if not self.seeds:
            return [(self.settings, self.workdir)]
        seeded = [dataclasses.replace(self.settings, train=dataclasses.replace(self.settings.train, seed=seed))
                  for seed in self.seeds]
        return [(config, self.workdir / f"seed-{config.train.seed}") for config in seeded]

    def run(self, console: Console) -> None:
        """Trains; returns after SIGTERM or Ctrl-C, too, once the state is saved."""
        import jax

        if "float64" in (self.settings.model.param_dtype, self.settings.model.compute_dtype):
            jax.config.update("jax_enable_x64", True)
        if self.plan:
            self._plan(console)
        elif self.distributed:
            from jaxablate.training import processes

            processes.together(self._train, join_seconds=self.join_seconds)
        else:
            self._train()

    def _plan(self, console: Console) -> None:
        import jax

        from jaxablate.training.plan import HERE, advice, plan, report

        target = self.target or HERE
        if target != HERE:
            jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine are left to others
        needs = plan(self.settings, target)
        report(Path(self.config).stem, self.settings, needs, console)
        if not needs.fits:
            raise ConfigError(f"the step does not fit a device of {target}; {advice(self.settings, needs)}")

    def _train(self) -> None:
        from jaxablate.runs.workdir import check_workdir
        from jaxablate.training.loop import train

        for config, workdir in self.runs():  # all before the first, which may take hours
            check_workdir(workdir, config)
        for config, workdir in self.runs():
            if train(config, workdir, profile=self.profile).signalled:
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
    # tyro fills what a default gives; --config and --workdir stay required unless given, or not needed.
    kind = TrainSettings if isinstance(settings, Config) else ClassifierTrainSettings
    default = _unchecked(kind, config=tyro.MISSING,
                         workdir=None if "--plan" in argv else tyro.MISSING, settings=settings)
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
    shipped = shipped_configs()
    if str(path) not in shipped:
        files.check_path(path, "--config")
    path = shipped.get(str(path), Path(path))
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; give a Python file with get_config(), or one of "
                          f"the shipped {', '.join(shipped)}")
    if path.suffix != ".py":
        raise ConfigError(f"--config {path} is no Python file; its name must end in .py")
    try:
        # Not by Python's import, which would take the stored bytecode of a file that had the same size and time.
        module = types.ModuleType(f"jaxablate_config_{path.stem}")
        module.__file__ = str(path)
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        config = module.get_config()
        if not isinstance(config, RunConfig):
            raise ConfigError(f"--config {path}: get_config() must return a jaxablate.config.Config or "
                              f"ClassificationConfig, not a {type(config).__name__}")
        run_from_dict(to_dict(config))  # Python lets any value into any field
    except (JaxablateError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # whatever the user's file raises is told in one line, SystemExit too
        raise ConfigError(f"--config {path} failed: {_told(error)}") from None
    return config


def _told(error: BaseException) -> str:
    """Type and message of an error of somebody's code, whose own ``__str__`` may fail."""
    try:
        return f"{type(error).__name__}: {error!s:.300}".removesuffix(": ")
    except BaseException:
        return type(error).__name__


def _config_name(argv: Sequence[str]) -> str | None:
    names = [value for flag, value in itertools.pairwise([*argv, ""]) if flag == "--config"]
    names += [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    if len(names) > 1:
        raise ConfigError(f"--config is given {len(names)} times; give it once")
    return next(iter(names), None)
