"""``jaxablate train``: trains a model from a configuration, or continues a run."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxablate.commands import base
from jaxablate.config import ClassificationConfig, Config, RunConfig, run_from_dict, to_dict
from jaxablate.errors import ConfigError

DESCRIPTION = """Trains a self-ablating transformer or a SAFR text classifier, or continues a run that was stopped or
killed. Any setting of the configuration can be changed: --model.ablation global --model.k-neurons 4 --train.seed 1.

Exit code 0: finished, or saved after SIGTERM or Ctrl-C (the same command continues), or a plan that fits. 2: an error
told in one line."""
_WITH_CONFIG = """

The settings and defaults below are a language model's; with --config sst2 --help they are those of that file."""
COMMON = ("model.d_model", "model.n_layers", "model.n_heads", "model.ablation", "model.k_attention", "model.k_neurons",
          "model.gate", "objective.clean", "objective.ablated", "objective.reconstruction", "objective.importance",
          "objective.interaction", "optimizer.learning_rate", "data.train_path", "data.valid_path", "data.path",
          "data.cache_dir", "train.steps", "train.epochs", "train.batch_size", "train.seed", "train.checkpoint_every")
"""Settings that the short help has."""


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
    about = DESCRIPTION if name is not None else DESCRIPTION + _WITH_CONFIG
    return base.parse(kind, argv, prog=prog, description=about, default=default, prefixes=True, common=COMMON,
                      sections=lambda: {"shipped configurations": base.shipped_about("configs")})


def _unchecked(kind: type[TrainSettings], **values: Any) -> TrainSettings:
    """Settings in which some are still missing."""
    settings = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(settings, field.name, values.get(field.name, field.default))
    return settings


def load_config(path: str | Path, option: str = "--config") -> RunConfig:
    """What ``get_config()`` of a Python file, or of a shipped configuration, returns; ``option`` names it in errors.

    Raises:
      ConfigError: the file is missing, does not run, or has no such function.
    """
    found = base.find_file(path, base.shipped("configs"), option, "get_config")
    if found.suffix != ".py":
        raise ConfigError(f"{option} {found} is no Python file; its name must end in .py")

    def checked(config: Any) -> RunConfig:
        if not isinstance(config, RunConfig):
            raise ConfigError(f"{option} {found}: get_config() must return a jaxablate.config.Config or "
                              f"ClassificationConfig, not a {type(config).__name__}")
        run_from_dict(to_dict(config))  # Python lets any value into any field
        return config

    return base.call_file(found, "get_config", checked, option)


def _config_name(argv: Sequence[str]) -> str | None:
    names = [value for flag, value in itertools.pairwise([*argv, ""]) if flag == "--config"]
    names += [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    if len(names) > 1:
        raise ConfigError(f"--config is given {len(names)} times; give it once")
    return next(iter(names), None)
