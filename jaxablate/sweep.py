"""A sweep: a grid of runs around one configuration, and the cells it has.

A sweep file (``configs/sweeps/*.py``) has one function ``get_sweep()`` that returns a `Sweep`, or is TOML with the
fields of one. ``jaxablate sweep`` trains and scores every cell.
"""

import dataclasses
import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxablate.config import INCIDENTAL, RunConfig, flatten, run_from_dict, to_dict
from jaxablate.config.checks import require
from jaxablate.errors import ConfigError

MOST_CELLS = 10_000
SEED = "train.seed"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
Axis = Sequence[Any] | Mapping[Any, Mapping[str, Any]]
"""Values of the setting that the axis is named after, or settings by label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Where it lies below the sweep's folder: ``local-k4/seed-0``."""
    labels: Mapping[str, str]
    """Its place on each axis."""
    config: RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid of runs: each combination of what the axes say, with each seed, but for what is excluded.

    >>> from jaxablate.config import Config
    >>> ks = {k: {"model.k_attention": k, "model.k_neurons": k} for k in (8, 4)}
    >>> sweep = Sweep(config="tinystories", grid={"model.ablation": ("local", "none"), "k": ks},
    ...               exclude=({"model.ablation": "none", "k": 4},))
    >>> [cell.name for cell in sweep.cells(Config())]
    ['local-k-8/seed-0', 'local-k-4/seed-0', 'none-k-8/seed-0']

    Raises:
      ConfigError: a field is of the wrong kind or names what there is not.
    """

    config: str | RunConfig
    """The configuration that all runs begin with: a shipped one by name, a Python file with get_config() (a relative
    path is from the sweep's own file), or the value itself."""
    grid: Mapping[str, Axis] = dataclasses.field(default_factory=dict)
    """Axes, the last one varying fastest. Either a setting's dotted name with its values,
    ``{"model.ablation": ("local", "global")}``, or any name with settings by label,
    ``{"k": {4: {"model.k_attention": 4, "model.k_neurons": 4}}}``. Labels become folder names."""
    seeds: tuple[int, ...] = (0,)
    """Values of train.seed; every combination is run with each."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of all runs, by dotted name, in place of the configuration's."""
    exclude: tuple[Mapping[str, Any], ...] = ()
    """Combinations that are left out: on each axis named, a label or a list of labels."""
    suites: tuple[str, ...] = ()
    """Suites that score each run, where they fit its model; none given takes every one that fits."""

    def __post_init__(self):
        fields: dict[str, Any] = dict(vars(self))  # Python lets any value into any field
        require(isinstance(fields["config"], str | RunConfig), f"config={self.config!r:.80} must be the name of a "
                "configuration, a Python file, or a Config")
        for name in ("seeds", "suites", "exclude"):
            require(isinstance(fields[name], list | tuple), f"{name}={fields[name]!r:.80} must be a list")
            object.__setattr__(self, name, tuple(fields[name]))
        object.__setattr__(self, "settings", flatten(_mapping("settings", self.settings)))
        require(all(type(seed) is int and seed >= 0 for seed in self.seeds) and len(self.seeds) > 0,
                f"seeds={list(self.seeds)!r:.80} must be whole numbers from 0 on, at least one")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={list(self.seeds)!r:.80} has a seed twice")
        require(all(isinstance(suite, str) for suite in fields["suites"]),
                f"suites={list(self.suites)!r:.80} must be names")
        axes = self.axes
        self._check_settings(axes)
        object.__setattr__(self, "exclude", tuple(_excluded(axes, entry) for entry in self.exclude))

    @property
    def axes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Settings by label, of each axis of the grid."""
        return {name: _axis(name, axis) for name, axis in _taken_apart(_mapping("grid", self.grid)).items()}

    def _check_settings(self, axes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Refuses a setting that has its values from two places."""
        owners: dict[str, str] = {}
        for name, axis in axes.items():
            for setting in dict.fromkeys(setting for values in axis.values() for setting in values):
                require(setting != SEED, f"grid {name!r} sets {SEED}; give seeds")
                other = owners.setdefault(setting, name)
                require(other == name, f"{setting} is set by two axes of the grid, {other!r} and {name!r}; join them")
        twice = [name for name in (*owners, SEED) if name in self.settings]
        by = "seeds" if twice == [SEED] else "the grid"
        require(not twice, f"settings has {', '.join(twice)}, which {by} sets, too; leave it out of one")

    def cells(self, base: RunConfig) -> tuple[Cell, ...]:
        """Every run of the sweep, seeds varying fastest.

        Raises:
          ConfigError: a setting is unknown or out of range (the cell is named), two cells are the same run, or there
            are none, or more than `MOST_CELLS`.
        """
        plain = to_dict(base)
        shared = _with(plain, self.settings, "settings")
        axes = self.axes
        out: list[Cell] = []
        taken: dict[str, str] = {}
        for labels in itertools.product(*axes.values()):
            place = dict(zip(axes, labels, strict=True))
            if any(all(place[axis] in wanted for axis, wanted in entry.items()) for entry in self.exclude):
                continue
            changes = {k: v for axis, label in place.items() for k, v in axes[axis][label].items()}
            folder = "-".join(labels)
            for seed in self.seeds:
                require(len(out) < MOST_CELLS, f"the grid has more than {MOST_CELLS:,} runs; make it smaller")
                name = f"{folder}/seed-{seed}" if folder else f"seed-{seed}"
                try:
                    config = run_from_dict(_with(shared, {**changes, SEED: seed}, "grid"))
                except ConfigError as error:
                    raise ConfigError(f"{name}: {error}") from error
                other = taken.setdefault(_identity(config), name)
                require(other == name, f"{other} and {name} are the same run; exclude one of them")
                out.append(Cell(name=name, labels=place, config=config))
        require(len(out) > 0, "every run is excluded; leave one")
        names = [cell.name for cell in out]
        same = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        require(same is None, f"two runs are called {same}; give one of the axes labels of its own")
        return tuple(out)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    require(isinstance(value, Mapping), f"{name}={value!r:.80} must be a table of names and what they stand for")
    for key in value:
        require(isinstance(key, str), f"{name} has the key {key!r:.80}; names must be text")
    return dict(value)


def _taken_apart(grid: Mapping[str, Any]) -> dict[str, Any]:
    """Axes by name. TOML reads ``model.ablation = [...]`` as a table ``model``, which is taken apart again."""
    out = {}
    for name, axis in grid.items():
        if isinstance(axis, Mapping) and axis and not any(isinstance(value, Mapping) for value in axis.values()):
            out |= {f"{name}.{key}": value for key, value in axis.items()}
        else:
            out[name] = axis
    return out


def _axis(name: str, axis: Any) -> dict[str, dict[str, Any]]:
    """An axis as settings by label."""
    if isinstance(axis, list | tuple):
        short = name.rpartition(".")[2]
        labelled = [(_label(short, value), {name: value}) for value in axis]
    else:
        require(isinstance(axis, Mapping), f"grid {name!r}={axis!r:.80} must be a list of values, or settings by label")
        labelled = []
        for label, settings in axis.items():
            require(isinstance(settings, Mapping),
                    f"grid {name!r}, label {label!r:.80}: {settings!r:.80} must be settings by dotted name")
            labelled.append((_label(name, label), flatten(settings)))
    require(len(labelled) > 0, f"grid {name!r} has no values; give at least one")
    out = dict(labelled)
    require(len(out) == len(labelled), f"grid {name!r} has a value twice; give each once")
    return out


def _excluded(axes: Mapping[str, Mapping[str, Any]], entry: Any) -> dict[str, tuple[str, ...]]:
    """An entry of `Sweep.exclude` as labels by axis; a value may stand for its label (``4`` for ``k-4``)."""
    out = {}
    for name, wanted in _mapping("exclude", entry).items():
        require(name in axes, f"exclude names {_unknown('axis of the grid', name, axes)}")
        short = f"{name.rpartition('.')[2]}-"
        known = {called: label for label in axes[name] for called in (label.removeprefix(short), label)}
        labels = [_words(x) for x in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        for label in labels:
            require(label in known, f"exclude names {_unknown(f'label of {name!r}', label, known)}")
        out[name] = tuple(known[label] for label in labels)
    require(len(out) > 0, "exclude has an entry without any axis, which would leave out all runs")
    return out


def _label(name: str, value: Any) -> str:
    """How folders call a value: a word as it is, anything else after the axis's name."""
    text = _words(value)
    label = text if isinstance(value, str) and not re.match(r"[0-9.+-]", text) else f"{name}-{text}"
    require(_NAME.fullmatch(label) is not None, f"grid {name!r} has {value!r:.80}, which names no folder; give "
            "settings by labels of letters, digits and ._+- in its place")
    return label


def _words(value: Any) -> str:
    """A value as text: ``16-8`` for a list, ``0.001`` for a number, ``true`` for a yes."""
    if isinstance(value, list | tuple):
        return "-".join(_words(part) for part in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _unknown(kind: str, name: Any, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), [*known], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name!r:.80}, which is no {kind}; {hint}There are {', '.join(known) or 'none'}"


def _with(plain: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration's plain dict with settings changed, by dotted name."""
    out, known = json.loads(json.dumps(plain)), flatten(plain)
    for name, value in changes.items():
        if name not in known or name == "task":
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "give a dotted name, such as 'train.steps'"
            raise ConfigError(f"{where} has the unknown setting {name!r:.80}; {hint}")
        section, _, field = name.partition(".")
        out[section][field] = value
    return out


def _identity(config: RunConfig) -> str:
    flat = {name: value for name, value in flatten(to_dict(config)).items()
            if name not in INCIDENTAL and not name.startswith(tuple(f"{mark}." for mark in INCIDENTAL))}
    return json.dumps(flat, sort_keys=True)
